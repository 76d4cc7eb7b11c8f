"""The definition of window attention: an explicit loop over the windows, differentiable by PyTorch itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _bias(table: Tensor, window: int, key_window: int) -> Tensor:
    """Look up the bias of every pair of query and key, (heads, window^2, key_window^2)."""
    reach = (window + key_window) // 2 - 1
    border = (key_window - window) // 2
    queries = torch.cartesian_prod(torch.arange(window), torch.arange(window)).reshape(-1, 2)
    keys = torch.cartesian_prod(torch.arange(key_window), torch.arange(key_window)).reshape(-1, 2) - border
    offset = keys[None] - queries[:, None]  # (window^2, key_window^2, 2)
    if key_window == window:
        offset = -offset
    row = (offset[..., 0] + reach) * (window + key_window - 1) + offset[..., 1] + reach
    return table[row.to(table.device)].permute(2, 0, 1)


def _region(position: int, size: int, window: int, shift: int) -> int:
    """Number the parts of the cyclically moved axis whose pixels are neighbours in the picture too."""
    if position < size - window:
        return 0
    return 1 if position < size - shift else 2


def _allowed(top: int, left: int, height: int, width: int, window: int, shift: int) -> Tensor:
    """Say which pairs of pixels of one window belong to the same region, (window^2, window^2)."""
    regions = torch.tensor(
        [
            3 * _region(top + y, height, window, shift) + _region(left + x, width, window, shift)
            for y in range(window)
            for x in range(window)
        ]
    )
    return regions[:, None] == regions[None, :]


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
) -> Tensor:
    """Compute every window by itself, in float32 for half-precision inputs; see `window_attention`."""
    wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.promote_types(v.dtype, torch.float32))
    _, height, width, _, _ = q.shape
    border = (key_window - window) // 2
    moved = [x.to(wide).roll((-shift, -shift), (1, 2)) for x in (q, k, v)]
    queries = moved[0]
    keys, values = (F.pad(x, (0, 0, 0, 0, border, border, border, border)) for x in moved[1:])
    rows = []
    for top in range(0, height, window):
        row = []
        for left in range(0, width, window):
            query = queries[:, top : top + window, left : left + window].flatten(1, 2)  # (B, window^2, heads, d)
            key = keys[:, top : top + key_window, left : left + key_window].flatten(1, 2)
            value = values[:, top : top + key_window, left : left + key_window].flatten(1, 2)
            scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale
            if bias_table is not None:
                scores = scores + _bias(bias_table.to(wide), window, key_window)
            if shift:
                allowed = _allowed(top, left, height, width, window, shift).to(q.device)
                scores = scores.masked_fill(~allowed, float("-inf"))
            out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
            row.append(out.unflatten(1, (window, window)))
        rows.append(torch.cat(row, 2))
    return torch.cat(rows, 1).roll((shift, shift), (1, 2)).to(q.dtype)
