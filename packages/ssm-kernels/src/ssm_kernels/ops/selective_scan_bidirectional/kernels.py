"""Both directions by the kernels of one: the second launch adds to what the first left, and applies the gate.

Nothing is flipped and the gate is read once. A direction is (x, dt, A, B, C, D, dt_bias).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..selective_scan import kernels_single as single
from ..selective_scan.kernels import launch_backward, launch_forward, like
from ..selective_scan.kernels_plan import Scan, partial_dtype, prepare
from ..selective_scan.kernels_single_plan import Single, suits
from ..selective_scan.kernels_single_plan import prepare as prepare_single

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
    x, scale = ahead[0], 0.5 if average else 1.0
    half = torch.empty(x.shape, dtype=partial_dtype(x.dtype), device=x.device)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    states = _forward(ahead, None, dt_softplus, False, chunk, span, 1.0, save_states, half, None)
    states_b = _forward(behind, z, dt_softplus, True, chunk, span, scale, save_states, y, half)
    shape, shape_b = ((s.shape[0], *d[2].shape[-2:]) for s, d in ((states, ahead), (states_b, behind)))
    return y, states.view(shape), states_b.view(shape_b)


def _forward(
    direction: Direction,
    z: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    span: int | None,
    scale: float,
    save_states: bool,
    out: Tensor,
    added: Tensor | None,
) -> Tensor:
    """Run one direction into `out`; return its saved states."""
    options = (dt_softplus, reverse, chunk, span, scale)
    if suits(direction[2]):
        scan = _prepare_single(direction, z, *options)
        return single.launch_forward(scan, save_states=save_states, out=out, added=added)[1]
    return launch_forward(_prepare(direction, z, *options), save_states=save_states, out=out, added=added)[1]


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
        half = torch.empty(z.shape, dtype=partial_dtype(z.dtype), device=z.device)
        grad_z = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    options = (chunk, span, scale)
    grads = _backward(ahead, z, dt_softplus, False, *options, states, grad_y, half, None)
    added = None if z is None else half
    grads_b = _backward(behind, z, dt_softplus, True, *options, states_b, grad_y, grad_z, added)
    return (*_in_order(grads, ahead), *_in_order(grads_b, behind), grad_z)


def _backward(
    direction: Direction,
    z: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    span: int | None,
    scale: float,
    states: Tensor,
    grad_y: Tensor,
    grad_z: Tensor,
    added: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Differentiate one direction; its gradient of z goes to `grad_z`."""
    options = (dt_softplus, reverse, chunk, span, scale)
    if suits(direction[2]):
        scan = _prepare_single(direction, z, *options)
        return single.launch_backward(scan, states, grad_y, None, grad_z=grad_z, added=added)
    scan = _prepare(direction, z, *options, backward=True)
    buffer = grad_z if z is not None and added is None else added  # the same kernel serves both directions
    return launch_backward(scan, states, grad_y, None, grad_z=grad_z, added=buffer, adds=added is not None)


def _prepare_single(
    direction: Direction,
    z: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    span: int | None,
    scale: float,
) -> Single:
    """As `_prepare`, for one state per channel."""
    x, dt, A, B, C, D, dt_bias = direction
    rest = (D, z, dt_bias, None, dt_softplus, reverse)
    return prepare_single(x, dt, A, B, C, *rest, chunk=chunk, span=span, scale=scale)


def _prepare(
    direction: Direction,
    z: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    span: int | None,
    scale: float,
    backward: bool = False,
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
        backward=backward,
        scale=scale,
    )


def _in_order(grads: tuple[Tensor | None, ...], direction: Direction) -> tuple[Tensor, ...]:
    """Take a direction's gradients out of those of the scan of one, in the direction's order, shapes and dtypes."""
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, _, grad_bias, _ = grads
    return like((grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias), direction)
