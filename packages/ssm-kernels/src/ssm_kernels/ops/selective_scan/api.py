"""The public function: documentation, checks, one dispatch.

Letters: B batch, L length, D channels, N state, G groups of channels that share B and C, S packed sequences.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import check_impl
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
    _check(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
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


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    """Check dtypes, devices and shapes; sizes are compared as they are, so that symbolic ones work too."""
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    for name, tensor in (named | {"initial_state": initial_state}).items():
        if tensor is not None:
            check_floating(_OP, name, tensor)
            check_device(_OP, name, tensor, x)
    if x.dim() != 3 or x.numel() == 0:
        refuse(
            _OP, "x", "(B, L, D) with every size at least 1", tuple(x.shape), "add the missing axis or drop the call"
        )
    batch, length, channels = x.shape
    rows = batch if cu_seqlens is None else _check_cu_seqlens(cu_seqlens, x)
    row = "B" if cu_seqlens is None else "S"
    check_shape(_OP, "dt", dt, [x.shape], "(B, L, D)", "one time step per element of x; use dt.expand_as(x)")
    if A.dim() not in (2, 3) or A.shape[-1] == 0:
        refuse(_OP, "A", f"(D, N) or ({row}, D, N) with N at least 1", tuple(A.shape), "give one rate per state")
    state = A.shape[-1]
    legend = f"(D, N) or ({row}, D, N)"
    check_shape(_OP, "A", A, [(channels, state), (rows, channels, state)], legend, "D is the last size of x")
    _check_groups(B, batch, length, channels, state)
    check_shape(_OP, "C", C, [B.shape], "the shape of B", "B and C share N and the groups")
    if D is not None:
        check_shape(_OP, "D", D, [(channels,), (rows, channels)], f"(D,) or ({row}, D)", "give one weight per channel")
    if z is not None:
        check_shape(_OP, "z", z, [x.shape], "(B, L, D)", "one gate per element of x")
    if dt_bias is not None:
        check_shape(_OP, "dt_bias", dt_bias, [(channels,)], "(D,)", "give one bias per channel")
    if initial_state is not None:
        shape = (rows, channels, state)
        check_shape(_OP, "initial_state", initial_state, [shape], f"({row}, D, N)", "pass the final state of a run")


def _check_groups(B: Tensor, batch: int, length: int, channels: int, state: int) -> None:
    """Check B, whose own third size may be the number of groups."""
    if B.dim() != 4:
        check_shape(_OP, "B", B, [(batch, length, state)], "(B, L, N)", "N is the last size of A")
        return
    groups = B.shape[2]
    check_shape(_OP, "B", B, [(batch, length, groups, state)], "(B, L, G, N)", "N is the last size of A")
    if groups == 0 or channels % groups != 0:
        refuse(
            _OP, "B", f"(B, L, G, N) with G a divisor of D={channels}", tuple(B.shape), "every group has D / G channels"
        )


def _check_cu_seqlens(cu_seqlens: Tensor, x: Tensor) -> int:
    """Check the bounds' form, not their values, and return the number of sequences."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        refuse(_OP, "cu_seqlens", "int32 or int64", cu_seqlens.dtype, "convert it with cu_seqlens.int()")
    check_device(_OP, "cu_seqlens", cu_seqlens, x)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        refuse(_OP, "cu_seqlens", "(S + 1,) with S at least 1", tuple(cu_seqlens.shape), "pass [0, ..., L]")
    if x.shape[0] != 1:
        remedy = "pack the sequences behind one another along L"
        refuse(_OP, "x", "(1, L, D) when cu_seqlens is given", tuple(x.shape), remedy)
    return cu_seqlens.shape[0] - 1
