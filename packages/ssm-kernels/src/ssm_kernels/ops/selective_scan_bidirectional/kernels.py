"""Both directions by the kernels of one: the second launch adds to what the first left, and applies the gate.

Nothing is flipped and the gate is read once. A direction is (x, dt, A, B, C, D, dt_bias).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..selective_scan.kernels import launch_backward, launch_forward, like
from ..selective_scan.kernels_plan import Scan, prepare

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
    span: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the saved states of both directions."""
    x = ahead[0]
    first = _prepare(ahead, None, dt_softplus, False, chunk, span, 1.0)
    second = _prepare(behind, z, dt_softplus, True, chunk, span, 0.5 if average else 1.0)
    half = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _, states = launch_forward(first, save_states=save_states, out=half)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _, states_b = launch_forward(second, save_states=save_states, out=y, added=half)
    return y, *(s.view(s.shape[0], *d[2].shape[-2:]) for s, d in ((states, ahead), (states_b, behind)))


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
    span: int | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of both directions' arguments and of z; empty tensors for those that are None."""
    x, scale = ahead[0], 0.5 if average else 1.0
    half = grad_z = x.new_empty(0)
    if z is not None:
        half = torch.empty(z.shape, dtype=torch.float32, device=z.device)
        grad_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    first = _prepare(ahead, z, dt_softplus, False, chunk, span, scale)
    second = _prepare(behind, z, dt_softplus, True, chunk, span, scale)
    grads = launch_backward(first, states, grad_y, None, grad_z=half)
    added = None if z is None else half
    grads_b = launch_backward(second, states_b, grad_y, None, grad_z=grad_z, added=added)
    return (*_in_order(grads, ahead), *_in_order(grads_b, behind), grad_z)


def _prepare(
    direction: Direction,
    z: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    span: int | None,
    scale: float,
) -> Scan:
    x, dt, A, B, C, D, dt_bias = direction
    return prepare(
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        None,
        None,
        dt_softplus,
        reverse,
        chunk=chunk,
        span=span,
        scale=scale,
    )


def _in_order(grads: tuple[Tensor | None, ...], direction: Direction) -> tuple[Tensor, ...]:
    """Take a direction's gradients out of those of the scan of one, in the direction's order, shapes and dtypes."""
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, _, grad_bias, _ = grads
    return like((grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias), direction)
