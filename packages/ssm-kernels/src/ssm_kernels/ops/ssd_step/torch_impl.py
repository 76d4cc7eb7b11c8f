"""One step of the Mamba-2 scan with heads in groups, and its gradient, which computes the step again.

Letters: B batch, G groups, R heads per group, P head dim, N state. Inside, heads are (G, R), so that B and C
(B, G, 1, 1, N) meet them without being repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class _Step:
    """What the gradient needs of a step: inputs in the working dtype, (B, G, R, P, N) or less, and what they gave."""

    x: Tensor
    raw: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    state: Tensor
    decay: Tensor
    following: Tensor
    total: Tensor


def _run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
) -> _Step:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    groups = B.shape[1]
    split = (groups, x.shape[1] // groups)

    def heads(t: Tensor, dim: int) -> Tensor:
        return t.to(kind).unflatten(dim, split)

    raw = heads(dt, 1)
    if dt_bias is not None:
        raw = raw + heads(dt_bias, 0)
    delta = F.softplus(raw) if dt_softplus else raw
    wide, rates, before = heads(x, 1), heads(A, 0), heads(state, 1)
    B, C = (t.to(kind)[:, :, None, None] for t in (B, C))
    decay = torch.exp(delta * rates)[..., None, None]
    following = torch.addcmul(decay * before, (delta[..., None] * wide)[..., None], B)
    total = (following * C).sum(-1)
    skip = None if D is None else heads(D if D.dim() == 2 else D[:, None], 0)
    if skip is not None:
        total = torch.addcmul(total, skip, wide)
    gate = None if z is None else heads(z, 1)
    return _Step(wide, raw, delta, rates, B, C, skip, gate, before, decay, following, total)


def ssd_step_torch(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Return y and the next state."""
    step = _run(x, dt, A, B, C, D, z, dt_bias, state, dt_softplus)
    y = step.total if step.z is None else step.total * F.silu(step.z)
    return y.to(x.dtype).reshape(x.shape), step.following.reshape(state.shape)


def ssd_step_backward_torch(
    grad: Tensor | None,
    grad_next: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, ...]:
    """Compute all gradients, those of missing arguments empty. A gradient that is None is zero."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, state)
    step = _run(*inputs, dt_softplus)
    grad_y = torch.zeros_like(step.total) if grad is None else grad.to(step.x.dtype).reshape(step.x.shape)
    grad_z = None
    if step.z is not None:
        grad_z = torch.ops.aten.silu_backward(grad_y * step.total, step.z)
        grad_y = grad_y * F.silu(step.z)
    grad_state = grad_y[..., None] * step.C
    if grad_next is not None:
        grad_state = grad_state + grad_next.to(grad_state.dtype).reshape(grad_state.shape)
    grad_added = (grad_state * step.B).sum(-1)  # of delta * x
    grad_exponent = (grad_state * step.state * step.decay).sum((-1, -2))
    grad_delta = grad_exponent * step.A + (grad_added * step.x).sum(-1)
    if dt_softplus:
        grad_delta = grad_delta * torch.where(step.raw > 20, 1.0, torch.sigmoid(step.raw))
    grad_x = grad_added * step.delta[..., None]
    if step.D is not None:
        grad_x = torch.addcmul(grad_x, grad_y, step.D)
    grad_D = grad_y * step.x
    if D is not None and D.dim() == 1:
        grad_D = grad_D.sum(-1)
    found = (
        grad_x,
        grad_delta,
        grad_exponent * step.delta,
        (grad_state * (step.delta[..., None] * step.x)[..., None]).sum((2, 3)),
        (step.following * grad_y[..., None]).sum((2, 3)),
        grad_D,
        grad_z,
        grad_delta,
        grad_state * step.decay,
    )
    return tuple(x.new_empty(0) if t is None or g is None else _fold(g, t) for g, t in zip(found, inputs, strict=True))


def _fold(grad: Tensor, like: Tensor) -> Tensor:
    """Give a gradient the shape and dtype of its argument, summed over the batch where that has none."""
    if grad.numel() != like.numel():
        grad = grad.sum(0)
    return grad.to(like.dtype).reshape(like.shape).clone(memory_format=torch.contiguous_format)
