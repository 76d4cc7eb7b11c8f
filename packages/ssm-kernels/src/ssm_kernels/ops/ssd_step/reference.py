"""The definition of one step of the Mamba-2 scan in plain PyTorch, which PyTorch differentiates itself.

Letters: B batch, H heads, P head dim, N state, G groups of heads that share B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ssd_step_reference(
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
    """Return y (B, H, P) in x.dtype and the next state (B, H, P, N), float32 (float64 for float64 x)."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        delta = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
        if dt_softplus:
            delta = F.softplus(delta)
        wide = x.to(kind)
        B, C = (t.to(kind).repeat_interleave(x.shape[1] // t.shape[1], 1)[:, :, None] for t in (B, C))
        decay = torch.exp(delta * A.to(kind))[..., None, None]
        following = decay * state.to(kind) + (delta[..., None] * wide)[..., None] * B
        y = (following * C).sum(-1)
        if D is not None:
            y = y + (D if D.dim() == 2 else D[:, None]).to(kind) * wide
        if z is not None:
            y = y * F.silu(z.to(kind))
        return y.to(x.dtype), following
