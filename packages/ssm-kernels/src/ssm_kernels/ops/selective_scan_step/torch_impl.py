"""One step of the selective scan with channels in groups, and its gradient, which computes the step again.

Letters: B batch, D channels, N state, G groups of channels that share B and C, P = D / G channels of a group. Inside,
channels are (G, P), so that B and C (B, G, 1, N) meet them without being repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class _Step:
    """What the gradient needs of a step: inputs in the working dtype, (B, G, P, N) or without N, and what they gave."""

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
    groups = 1 if B.dim() == 2 else B.shape[1]
    split = (groups, x.shape[1] // groups)

    def channels(t: Tensor, dim: int) -> Tensor:
        return t.to(kind).unflatten(dim, split)

    raw = channels(dt, -1)
    if dt_bias is not None:
        raw = raw + channels(dt_bias, -1)
    delta = F.softplus(raw) if dt_softplus else raw
    wide, rates, before = channels(x, -1), channels(A, -2), channels(state, -2)
    B, C = (t.to(kind).view(x.shape[0], groups, 1, -1) for t in (B.contiguous(), C.contiguous()))
    decay = torch.exp(delta[..., None] * rates)
    following = torch.addcmul(decay * before, (delta * wide)[..., None], B)
    total = (following * C).sum(-1)
    skip = None if D is None else channels(D, -1)
    if skip is not None:
        total = torch.addcmul(total, skip, wide)
    gate = None if z is None else channels(z, -1)
    return _Step(wide, raw, delta, rates, B, C, skip, gate, before, decay, following, total)


def selective_scan_step_torch(
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


def selective_scan_step_backward_torch(
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
    grad_exponent = grad_state * step.state * step.decay
    grad_delta = torch.addcmul((grad_exponent * step.A).sum(-1), grad_added, step.x)
    if dt_softplus:
        grad_delta = grad_delta * torch.where(step.raw > 20, 1.0, torch.sigmoid(step.raw))
    grad_x = grad_added * step.delta
    if step.D is not None:
        grad_x = torch.addcmul(grad_x, grad_y, step.D)
    found = (
        grad_x,
        grad_delta,
        grad_exponent * step.delta[..., None],
        (grad_state * (step.delta * step.x)[..., None]).sum(2),
        (step.following * grad_y[..., None]).sum(2),
        grad_y * step.x,
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
