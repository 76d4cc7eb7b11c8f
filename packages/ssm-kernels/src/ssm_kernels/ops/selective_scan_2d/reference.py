"""The definition: every direction's sequence written out, one loop over its steps, summed back over the pixels.

B batch, H height, W width, L = H * W, D channels, N state, K directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross import merge_order, scan_order, to_sequence


def _scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan one direction: x and delta (B, L, D), A (D, N), B and C (B, L, N); returns (B, L, D)."""
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return torch.stack(outputs, dim=1)


def selective_scan_2d_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
) -> Tensor:
    """Compute `selective_scan_2d` step by step in float32, in float64 for float64 `x`; PyTorch differentiates it."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(device_type=x.device.type, enabled=False):
        sequences = scan_order(x.to(wide), codes)
        outputs = []
        for k, code in enumerate(codes):
            u = sequences[:, k]
            delta, B_k, C_k = (to_sequence(t[..., k, :].to(wide), code) for t in (dt, B, C))
            if dt_bias is not None:
                delta = delta + dt_bias[k].to(wide)
            if dt_softplus:
                delta = F.softplus(delta)
            y = _scan(u, delta, A[k].to(wide), B_k, C_k)
            outputs.append(y if D is None else y + D[k].to(wide) * u)
        return merge_order(torch.stack(outputs, dim=1), x.shape[1], x.shape[2], codes).to(x.dtype)
