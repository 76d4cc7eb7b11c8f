"""The definition of the linear scan in plain PyTorch: complex numbers and a loop, which PyTorch differentiates itself.

Letters: B batch, L length, D channels, M modes of a channel; for S5 H channels, P modes shared by them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan_reference(
    x: Tensor,
    Lambda: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    initial_state: Tensor | None,
    discretization: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return y in x.dtype and the final state, complex (or real for a real Lambda), (B, D, M) or for S5 (B, P)."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    complex_kind = torch.complex128 if kind == torch.float64 else torch.complex64
    paired = Lambda.is_complex()
    rate, into, out = Lambda.to(complex_kind), B.to(complex_kind), C.to(complex_kind)
    shared = Lambda.dim() == 1
    delta = step.to(kind) if shared else step.to(kind)[:, None]
    a, f = _discretize(rate, delta, discretization)
    b = f[:, None] * into if shared else f * into
    values = x.to(kind).to(complex_kind)
    shape = (x.shape[0], *Lambda.shape)
    state = values.new_zeros(shape) if initial_state is None else initial_state.to(complex_kind)
    steps = range(x.shape[1])
    rows = []
    for t in reversed(steps) if reverse else steps:
        added = values[:, t] @ b.mT if shared else values[:, t, :, None] * b
        state = a * state + added
        total = state @ out.mT if shared else (state * out).sum(-1)
        rows.append(2 * total.real if paired else total.real)
    y = torch.stack(rows[::-1] if reverse else rows, 1)
    return y.to(x.dtype), state if paired else state.real


def _discretize(rate: Tensor, step: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    z = rate * step
    if discretization == "bilinear":
        return (1 + z / 2) / (1 - z / 2), step / (1 - z / 2)
    still = rate == 0
    safe = torch.where(still, torch.ones_like(rate), rate)
    return torch.exp(z), torch.where(still, step.to(rate.dtype) * (1 + z / 2), torch.expm1(z) / safe)
