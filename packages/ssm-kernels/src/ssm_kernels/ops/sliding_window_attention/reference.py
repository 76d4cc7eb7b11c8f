"""The definition of sliding-window attention: an explicit loop over the queries, differentiable by PyTorch itself."""

from __future__ import annotations

import torch
from torch import Tensor


def _seen(position: int, size: int, window: int, band: bool) -> slice:
    """Give the keys that the query at a position of an axis sees."""
    if band:
        return slice(max(position - window, 0), min(position + window + 1, size))
    start = min(max(position - window // 2, 0), size - window)
    return slice(start, start + window)


def sliding_window_attention_reference(q: Tensor, k: Tensor, v: Tensor, window: int, band: bool) -> Tensor:
    """Compute every query by itself, in float32 for half-precision inputs; see `sliding_window_attention`.

    Args:
        q: Queries, (B, H, W, heads, d), H = 1 for a sequence.
        k: Keys, the same shape.
        v: Values, the same shape.
        window: Reach of the band, or side of the square.
        band: The axis of W is a sequence.
    """
    wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.promote_types(v.dtype, torch.float32))
    query, key, value = q.to(wide), k.to(wide), v.to(wide)
    height, width = q.shape[1:3]
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            place = slice(None) if band else _seen(y, height, window, band)
            box = (slice(None), place, _seen(x, width, window, band))
            near, content = key[box].flatten(1, 2), value[box].flatten(1, 2)  # (B, keys, heads, d)
            scores = torch.einsum("bhd,bnhd->bhn", query[:, y, x], near) * q.shape[-1] ** -0.5
            row.append(torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), content))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1).to(q.dtype)
