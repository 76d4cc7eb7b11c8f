"""The public function: documentation, checks, one dispatch.

Letters: B batch, L length, H heads, P head dim, N state, G groups of heads that share B and C, S packed sequences.
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from ..dispatch import check_impl
from ..selective_scan.arguments import check_cu_seqlens
from .arguments import check_chunk, check_gate, check_ssd, check_state
from .autograd import ssd_op
from .mamba_ssm_impl import ssd_mamba_ssm
from .reference import ssd_reference
from .schema import check_bounds

Impl = Literal["auto", "triton", "torch", "reference", "mamba_ssm"]
_OP = "ssd"


@overload
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: Literal[True],
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the state-space recurrence of Mamba-2 along a sequence: one rate per head, a state of (P, N) per head.

    With delta = dt + dt_bias (through softplus if `dt_softplus`), for every head:
    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * x[t] B[t]^T, y[t] = h[t] C[t], plus D * x[t], times silu(z[t]).

    Args:
        x: Input, (B, L, H, P). float32, bfloat16, float16 or float64, as all floating arguments; dtypes may differ.
        dt: Time step before bias and softplus, (B, L, H), in units of 1 / A. Without `dt_softplus` it is used as it
            is and should not be negative: a decay above 1 grows without bound.
        A: Rate of every head, (H,); normally negative.
        B: Input weights, (B, L, G, N) with G dividing H: group g serves H / G heads in order.
        C: Output weights, the shape of B.
        D: Weight of x in y, (H,) or (H, P). None leaves the term out.
        z: Gate, (B, L, H, P): y is multiplied by silu(z). None leaves it out.
        dt_bias: Added to dt, (H,).
        dt_softplus: Pass dt + dt_bias through softplus (linear above 20, as in PyTorch).
        initial_state: State before the first step (after the last one if `reverse`), (B, H, P, N). Zero if None.
        return_final_state: Also return the state after the last step (after the first one if `reverse`).
        reverse: Run from the last step to the first. Nothing is flipped in memory.
        cu_seqlens: Bounds of packed sequences, (S + 1,), int32 or int64, from 0 to L, on the device of x; x then has
            batch 1 and states are (S, H, P, N). An empty sequence returns the state it was given. On a GPU reading
            the bounds to check them waits for the device.
        chunk: Steps that one set of matrix products covers at most, 16, 32, 64 or 128. None picks one. It changes
            speed, memory and rounding, nothing else; "reference" and "mamba_ssm" have no use for it.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" (the definition,
            a loop) never fall back; "mamba_ssm" calls that package where it is installed, to compare with.

    Returns:
        y (B, L, H, P) in x.dtype; with `return_final_state` also the state (B, H, P, N) in float32 (float64 for
        float64 x), which carries gradient. The gradient has no gradient of its own, except with impl="reference".

    Raises:
        ValueError: A shape, a dtype, a device, `cu_seqlens`, `chunk` or `impl` is wrong. The message names the
            argument.

    Cost: with Q steps per chunk about 2 * B * L * H * (Q * N + Q * P + 2 * N * P) flop in matrix products, and
        B * L * H * Q exponentials; the backward about three times that. Memory: nothing but the inputs is kept for the
        backward.
    Source: Dao and Gu 2024, arXiv:2405.21060, sections 6 and 7.
    """
    check_impl(_OP, impl, x, ("auto", "triton", "torch", "reference", "mamba_ssm"))
    check_ssd(_OP, x, dt, A, B, C, D, dt_bias)
    rows, row = (None, "B") if cu_seqlens is None else (check_cu_seqlens(_OP, cu_seqlens, x), "S")
    check_gate(_OP, z, x)
    check_state(_OP, initial_state, x, B, rows=rows, row=row)
    check_chunk(_OP, chunk)
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    if impl == "reference":
        if cu_seqlens is not None:
            check_bounds(cu_seqlens, x.shape[1])
        y, final = ssd_reference(*tensors, dt_softplus=dt_softplus, reverse=reverse)
    elif impl == "mamba_ssm":
        y, final = ssd_mamba_ssm(*tensors, dt_softplus=dt_softplus, reverse=reverse)
    else:
        y, final = ssd_op(*tensors, dt_softplus, reverse, 0 if chunk is None else chunk, impl)
    return (y, final) if return_final_state else y
