"""mamba-ssm's one-token update, as in `mamba_ssm.ops.triton.selective_state_update`.

It is `selective_scan_step` and, where every head has one rate, `ssd_step`.

Letters: B batch, H heads, P channels of a head, N state, G groups of heads that share B and C. Without an axis H, P
counts all channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..ops.checks import check_shape, refuse
from ..ops.selective_scan_step import selective_scan_step
from ..ops.ssd_step import ssd_step
from .scan import check_real


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Make one step and change the state in place, as `selective_state_update` of mamba-ssm.

    Args:
        state: (B, P, N) or (B, H, P, N), float32 or narrower; changed in place. Its rows may be more with
            `state_batch_indices`.
        x: Input, (B, P) or (B, H, P).
        dt: Time step, the shape of x.
        A: Rate, (P, N) or (H, P, N), real.
        B: Input weights, (B, N), or (B, G, N) with G dividing H (or P, without heads).
        C: Output weights, the shape of B.
        D: Weight of x in the output, (P,) or (H, P).
        z: Gate, the shape of x.
        dt_bias: Added to dt, (P,) or (H, P).
        dt_softplus: Pass dt + dt_bias through softplus.
        state_batch_indices: Which row of the state each row of x goes with, (B,), integer.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: A shape, dtype or device is wrong, or A is complex. The message names the argument.
    """
    return _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, "auto")


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Do the same by the formula that defines it."""
    return _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, None, "reference")


def _update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    impl: Literal["auto", "reference"],
) -> Tensor:
    _check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    now = state if state_batch_indices is None else state[state_batch_indices]
    if _one_per_head(dt, A, dt_bias):
        y, after = ssd_step(
            x,
            dt[..., 0],
            A[..., 0, 0],
            B.unsqueeze(1) if B.dim() == 2 else B,
            C.unsqueeze(1) if C.dim() == 2 else C,
            D,
            state=now,
            z=z,
            dt_bias=None if dt_bias is None else dt_bias[..., 0],
            dt_softplus=bool(dt_softplus),
            impl=impl,
        )
    else:
        y, after = selective_scan_step(
            x.flatten(1),
            dt.flatten(1),
            A.flatten(0, -2),
            B,
            C,
            None if D is None else D.flatten(),
            state=now.flatten(1, -2),
            z=None if z is None else z.flatten(1),
            dt_bias=None if dt_bias is None else dt_bias.flatten(),
            dt_softplus=bool(dt_softplus),
            impl=impl,
        )
    with torch.no_grad():
        if state_batch_indices is None:
            state.copy_(after.view(state.shape))
        else:
            state[state_batch_indices.long()] = after.view(now.shape).to(state.dtype)
    return y.view(x.shape)


def _one_per_head(dt: Tensor, A: Tensor, dt_bias: Tensor | None) -> bool:
    """Say whether every head has one step and one rate, expanded over its channels and states, as in Mamba-2."""
    expanded = A.dim() == 3 and A.stride(1) == 0 == A.stride(2) and dt.stride(-1) == 0
    return expanded and (dt_bias is None or dt_bias.stride(-1) == 0)


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state_batch_indices: Tensor | None,
) -> None:
    op = "selective_state_update"
    check_real(op, A)
    if state.dim() not in (3, 4):
        refuse(op, "state", "(B, P, N) or (B, H, P, N)", tuple(state.shape), "H are heads of P channels")
    inner, states = tuple(state.shape[1:-1]), state.shape[-1]
    batch = x.shape[0] if x.dim() else 0
    letters = "P" if len(inner) == 1 else "H, P"
    check_shape(op, "x", x, [(batch, *inner)], f"(B, {letters})", "one step, of the channels of the state")
    if state_batch_indices is None:
        check_shape(op, "state", state, [(batch, *inner, states)], f"(B, {letters}, N)", "B is that of x")
    else:
        check_shape(op, "state_batch_indices", state_batch_indices, [(batch,)], "(B,)", "one row for each of x")
    check_shape(op, "dt", dt, [x.shape], "the shape of x", "use dt.unsqueeze(-1).expand_as(x) for one per head")
    check_shape(op, "A", A, [(*inner, states)], f"({letters}, N)", "expand one rate per head to all its states")
    groups = B.shape[1] if B.dim() == 3 else 1
    shapes = [(batch, states), (batch, groups, states)]
    check_shape(op, "B", B, shapes, "(B, N) or (B, G, N)", "N is the last size of the state")
    if groups == 0 or inner[0] % groups:
        refuse(op, "B", f"(B, G, N) with G a divisor of {inner[0]}", tuple(B.shape), "groups are equally large")
    check_shape(op, "C", C, [B.shape], "the shape of B", "B and C share N and the groups")
    for name, vector in {"D": D, "dt_bias": dt_bias}.items():
        if vector is not None:
            check_shape(op, name, vector, [inner], f"({letters})", "one number per channel")
    if z is not None:
        check_shape(op, "z", z, [x.shape], "the shape of x", "one gate per channel")
