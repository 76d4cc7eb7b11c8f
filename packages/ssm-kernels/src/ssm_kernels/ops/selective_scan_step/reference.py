"""The definition of one step of the selective scan in plain PyTorch, which PyTorch differentiates itself.

Letters: B batch, D channels, N state, G groups of channels that share B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan_step_reference(
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
    """Return y (B, D) in x.dtype and the next state (B, D, N), float32 (float64 for float64 x)."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        delta = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
        if dt_softplus:
            delta = F.softplus(delta)
        wide = x.to(kind)
        B, C = (_per_channel(t.to(kind), x.shape[1]) for t in (B, C))
        following = torch.exp(delta[..., None] * A.to(kind)) * state.to(kind) + (delta * wide)[..., None] * B
        y = (following * C).sum(-1)
        if D is not None:
            y = y + D.to(kind) * wide
        if z is not None:
            y = y * F.silu(z.to(kind))
        return y.to(x.dtype), following


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """Repeat (B, N) or (B, G, N) to (B, D, N)."""
    grouped = x[:, None] if x.dim() == 2 else x
    return grouped.repeat_interleave(channels // grouped.shape[1], 1)
