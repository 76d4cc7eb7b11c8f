"""Checks of the arguments that selective scans share. Sizes are compared as they are, so that symbolic ones work too.

Letters: B batch, L length, D channels, N state, G groups of channels that share B and C, S packed sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse


def check_scan(
    op: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    *,
    rows: int | None = None,
    row: str = "B",
    suffix: str = "",
) -> None:
    """Check dtypes, devices and shapes of what one direction takes.

    Args:
        op: Name for the messages.
        x: And the following, as in `selective_scan`.
        dt: Time steps.
        A: Rates.
        B: Input weights.
        C: Output weights.
        D: Weight of x in y.
        dt_bias: Bias of dt.
        rows: How many rows an A or D of its own per row has; None for the batch.
        row: The letter for them.
        suffix: Behind the names of the arguments in the messages.
    """
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias}
    for name, tensor in tensors.items():
        if tensor is not None:
            check_floating(op, name + suffix, tensor)
            check_device(op, name + suffix, tensor, x)
    if x.dim() != 3 or x.numel() == 0:
        remedy = "add the missing axis or leave the call out"
        refuse(op, f"x{suffix}", "(B, L, D) with every size at least 1", tuple(x.shape), remedy)
    batch, length, channels = x.shape
    rows = batch if rows is None else rows
    check_shape(op, f"dt{suffix}", dt, [x.shape], "(B, L, D)", "one time step per element of x; use dt.expand_as(x)")
    legend = f"(D, N) or ({row}, D, N)"
    if A.dim() not in (2, 3) or A.shape[-1] == 0:
        refuse(op, f"A{suffix}", f"{legend} with N at least 1", tuple(A.shape), "give one rate per state")
    state = A.shape[-1]
    check_shape(op, f"A{suffix}", A, [(channels, state), (rows, channels, state)], legend, "D is the last size of x")
    _check_groups(op, f"B{suffix}", B, batch, length, channels, state)
    check_shape(op, f"C{suffix}", C, [B.shape], f"the shape of B{suffix}", "B and C share N and the groups")
    if D is not None:
        shapes = [(channels,), (rows, channels)]
        check_shape(op, f"D{suffix}", D, shapes, f"(D,) or ({row}, D)", "give one weight per channel")
    if dt_bias is not None:
        check_shape(op, f"dt_bias{suffix}", dt_bias, [(channels,)], "(D,)", "give one bias per channel")


def check_gate(op: str, z: Tensor | None, x: Tensor) -> None:
    """Check the gate."""
    if z is not None:
        check_floating(op, "z", z)
        check_device(op, "z", z, x)
        check_shape(op, "z", z, [x.shape], "(B, L, D)", "one gate per element of x")


def check_state(op: str, initial_state: Tensor | None, x: Tensor, A: Tensor, *, rows: int | None, row: str) -> None:
    """Check the initial state."""
    if initial_state is not None:
        check_floating(op, "initial_state", initial_state)
        check_device(op, "initial_state", initial_state, x)
        shape = (x.shape[0] if rows is None else rows, x.shape[2], A.shape[-1])
        check_shape(op, "initial_state", initial_state, [shape], f"({row}, D, N)", "pass the final state of a run")


def check_cu_seqlens(op: str, cu_seqlens: Tensor, x: Tensor) -> int:
    """Check the form of the bounds, not their values, and return the number of sequences."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        refuse(op, "cu_seqlens", "int32 or int64", cu_seqlens.dtype, "convert it with cu_seqlens.int()")
    check_device(op, "cu_seqlens", cu_seqlens, x)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        refuse(op, "cu_seqlens", "(S + 1,) with S at least 1", tuple(cu_seqlens.shape), "pass [0, ..., L]")
    if x.shape[0] != 1:
        refuse(op, "x", "(1, L, D) when cu_seqlens is given", tuple(x.shape), "pack the sequences one behind another")
    return cu_seqlens.shape[0] - 1


def _check_groups(op: str, name: str, B: Tensor, batch: int, length: int, channels: int, state: int) -> None:
    """Check B, whose own third size may be the number of groups."""
    if B.dim() != 4:
        check_shape(op, name, B, [(batch, length, state)], "(B, L, N)", "N is the last size of A")
        return
    groups = B.shape[2]
    check_shape(op, name, B, [(batch, length, groups, state)], "(B, L, G, N)", "N is the last size of A")
    if groups == 0 or channels % groups != 0:
        wanted = f"(B, L, G, N) with G a divisor of D={channels}"
        refuse(op, name, wanted, tuple(B.shape), "every group has D / G channels")
