"""Both directions by the vectorised scan of one; the sum and the gate are formed in the wide dtype.

A direction is (x, dt, A, B, C, D, dt_bias).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..selective_scan import torch_impl as one_way

Direction = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def forward(
    ahead: Direction,
    behind: Direction,
    z: Tensor | None,
    dt_softplus: bool,
    average: bool,
    *,
    save_states: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the saved states of both directions."""
    x = ahead[0]
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    y, states = _run(ahead, kind, dt_softplus, False, save_states, chunk)
    y_b, states_b = _run(behind, kind, dt_softplus, True, save_states, chunk)
    y += y_b
    if z is not None:
        y *= F.silu(z.to(kind))
    if average:
        y *= 0.5
    return y.to(x.dtype), states, states_b


def backward(
    ahead: Direction,
    behind: Direction,
    z: Tensor | None,
    states: Tensor,
    states_b: Tensor,
    grad_y: Tensor,
    dt_softplus: bool,
    average: bool,
    *,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of both directions' arguments and of z; empty tensors for those that are None."""
    kind = torch.float64 if ahead[0].dtype == torch.float64 else torch.float32
    grad = grad_y.to(kind) / 2 if average else grad_y.to(kind)
    gate = None if z is None else z.to(kind)
    grads, grad_z = _differentiate(ahead, kind, gate, states, grad, dt_softplus, False, chunk)
    grads_b, grad_z_b = _differentiate(behind, kind, gate, states_b, grad, dt_softplus, True, chunk)
    return (*grads, *grads_b, grad_z if z is None else grad_z.add_(grad_z_b).to(z.dtype))


def _run(
    direction: Direction, kind: torch.dtype, dt_softplus: bool, reverse: bool, save_states: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    x, dt, A, B, C, D, dt_bias = direction
    y, _, states = one_way.forward(
        x.to(kind),
        dt,
        A,
        B,
        C,
        D,
        None,
        dt_bias,
        None,
        None,
        dt_softplus,
        reverse,
        save_states=save_states,
        chunk=chunk,
    )
    return y, states


def _differentiate(
    direction: Direction,
    kind: torch.dtype,
    gate: Tensor | None,
    states: Tensor,
    grad: Tensor,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return one direction's gradients in its order, and its part of the gradient of z in the wide dtype."""
    x, dt, A, B, C, D, dt_bias = direction
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, _ = one_way.backward(
        x.to(kind),
        dt,
        A,
        B,
        C,
        D,
        gate,
        dt_bias,
        None,
        None,
        dt_softplus,
        reverse,
        states,
        grad,
        None,
        chunk=chunk,
    )
    return (grad_x.to(x.dtype), grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias), grad_z
