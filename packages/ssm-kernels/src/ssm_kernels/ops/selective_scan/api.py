"""The public function: documentation, checks, one dispatch.

Letters: B batch, L length, D channels, N state, G groups of channels that share B and C, S packed sequences.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..dispatch import check_impl
from .arguments import check_cu_seqlens, check_gate, check_scan, check_state
from .autograd import selective_scan_op
from .mamba_ssm_impl import selective_scan_mamba_ssm
from .reference import selective_scan_reference
from .schema import check_bounds

Impl = Literal["auto", "triton", "torch", "reference", "mamba_ssm"]
_OP = "selective_scan"


@overload
def selective_scan(
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
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def selective_scan(
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
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
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
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence of Mamba along a sequence.

    With delta = dt + dt_bias (through softplus if `dt_softplus`), for every channel d and state n:
    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * x[t], y[t] = sum over n of C[t] * h[t], plus D * x[t],
    times silu(z[t]).

    Args:
        x: Input, (B, L, D). float32, bfloat16, float16 or float64, as all floating arguments; dtypes may differ.
        dt: Time step before bias and softplus, (B, L, D), in units of 1 / A. Without `dt_softplus` it is used as it
            is and should not be negative: a decay above 1 grows without bound.
        A: Rate of every state, (D, N) or one per row, (B, D, N); normally negative.
        B: Input weights, (B, L, N), or (B, L, G, N) with G dividing D: group g serves D / G channels in order.
        C: Output weights, the shape of B.
        D: Weight of x in y, (D,) or (B, D). None leaves the term out.
        z: Gate, (B, L, D): y is multiplied by silu(z). None leaves it out.
        dt_bias: Added to dt, (D,).
        dt_softplus: Pass dt + dt_bias through softplus (linear above 20, as in PyTorch).
        initial_state: State before the first step (after the last one if `reverse`), (B, D, N). Zero if None.
        return_final_state: Also return the state after the last step (after the first one if `reverse`).
        reverse: Run from the last step to the first. Nothing is flipped in memory.
        cu_seqlens: Bounds of packed sequences, (S + 1,), int32 or int64, from 0 to L, on the device of x; x then has
            batch 1, states are (S, D, N), A may be (S, D, N) and D (S, D). An empty sequence returns the state it
            was given. On a GPU reading the bounds to check them waits for the device.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" (the definition,
            a loop) never fall back; "mamba_ssm" calls that package where it is installed, to compare with.

    Returns:
        y (B, L, D) in x.dtype; with `return_final_state` also the state (B, D, N) in float32 (float64 for float64
        x), which carries gradient. The gradient has no gradient of its own, except with impl="reference".

    Raises:
        ValueError: A shape, a dtype, a device, `cu_seqlens` or `impl` is wrong. The message names the argument.

    Cost: B * L * D * N exponentials and about 6 * B * L * D * N flop; the backward about three times that. Memory: the
        inputs and one state per 64 steps are kept for the backward.
    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2 (the input is discretised by delta * B, as in its code).
    """
    check_impl(_OP, impl, x, ("auto", "triton", "torch", "reference", "mamba_ssm"))
    rows, row = (None, "B") if cu_seqlens is None else (check_cu_seqlens(_OP, cu_seqlens, x), "S")
    check_scan(_OP, x, dt, A, B, C, D, dt_bias, rows=rows, row=row)
    check_gate(_OP, z, x)
    check_state(_OP, initial_state, x, A, rows=rows, row=row)
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    if impl == "reference":
        if cu_seqlens is not None:
            check_bounds(cu_seqlens, x.shape[1])
        y, final = selective_scan_reference(*tensors, dt_softplus=dt_softplus, reverse=reverse)
    elif impl == "mamba_ssm":
        y, final = selective_scan_mamba_ssm(*tensors, dt_softplus=dt_softplus, reverse=reverse)
    else:
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        y, final, _ = selective_scan_op(*tensors, dt_softplus, reverse, save, impl)
    return (y, final) if return_final_state else y
