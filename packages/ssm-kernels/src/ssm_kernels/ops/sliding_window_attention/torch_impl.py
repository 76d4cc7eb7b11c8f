"""Sliding-window attention with batched matrix products, a tile of queries at a time so that the scores stay small.

Letters: h heads, d head dim; a tile has Q queries, which together see a box of K keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..window_attention.torch_impl import work_dtype

SCORE_BYTES = {"cpu": 16 * 2**20, "other": 256 * 2**20}
SHORTEST_TILE = {1: 64, 2: 8}  # tokens along an axis, by the number of axes


@dataclass(frozen=True)
class Axis:
    """Tiles of one axis.

    Attributes:
        size: Tokens.
        window: Reach of the band, or number of keys.
        band: Which of the two it is.
        tile: Queries of a tile.
    """

    size: int
    window: int
    band: bool
    tile: int

    def keys(self, first: int, end: int) -> slice:
        """Give the keys that any of the queries first .. end - 1 sees."""
        if self.band:
            return slice(max(first - self.window, 0), min(end + self.window, self.size))
        start, last = (min(max(i - self.window // 2, 0), self.size - self.window) for i in (first, end - 1))
        return slice(start, last + self.window)

    def seen(self, queries: slice, keys: slice, device: torch.device) -> Tensor:
        """Say which query sees which key, (queries, keys)."""
        i = torch.arange(queries.start, queries.stop, device=device)[:, None]
        j = torch.arange(keys.start, keys.stop, device=device)
        if self.band:
            return (i - j).abs() <= self.window
        start = (i - self.window // 2).clamp(0, self.size - self.window)
        return (j >= start) & (j < start + self.window)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Yield queries and keys of every tile."""
        for first in range(0, self.size, self.tile):
            end = min(first + self.tile, self.size)
            yield slice(first, end), self.keys(first, end)


@dataclass(frozen=True)
class Tile:
    """One tile: images and pixels of its queries, pixels of its keys, and which sees which, (Q, K)."""

    queries: tuple[slice, slice, slice]
    keys: tuple[slice, slice, slice]
    seen: Tensor


def _tiles(q: Tensor, window: int, band: bool, itemsize: int) -> Iterator[Tile]:
    """Cut a picture into tiles, and the batch into as many images as keep the scores small."""
    images, height, width, heads, _ = q.shape
    if band:
        axes = Axis(1, 1, False, 1), Axis(width, window, True, max(SHORTEST_TILE[1], window))
    else:
        tile = max(SHORTEST_TILE[2], window // 2)
        axes = Axis(height, window, False, tile), Axis(width, window, False, tile)
    budget = SCORE_BYTES.get(q.device.type, SCORE_BYTES["other"])
    for rows, key_rows in axes[0].tiles():
        seen_rows = axes[0].seen(rows, key_rows, q.device)
        for columns, key_columns in axes[1].tiles():
            seen_columns = axes[1].seen(columns, key_columns, q.device)
            seen = (seen_rows[:, None, :, None] & seen_columns[None, :, None, :]).flatten(0, 1).flatten(1, 2)
            step = max(1, budget // (heads * seen.numel() * itemsize))
            for first in range(0, images, step):
                part = slice(first, min(first + step, images))
                yield Tile((part, rows, columns), (part, key_rows, key_columns), seen)


def _take(x: Tensor, box: tuple[slice, slice, slice], dtype: torch.dtype) -> Tensor:
    """Copy a box of pixels, (images, h, pixels, d)."""
    return x[box].to(dtype).flatten(1, 2).transpose(1, 2)


def _put(x: Tensor, shape: torch.Size) -> Tensor:
    """Bring (images, h, pixels, d) to the shape of the box it belongs to."""
    return x.transpose(1, 2).reshape(shape)


def _probabilities(scaled: Tensor, key: Tensor, seen: Tensor) -> Tensor:
    """Softmax of the scores of a tile, (images, h, Q, K)."""
    return (scaled @ key.mT).masked_fill_(~seen, float("-inf")).softmax(-1)


def sliding_window_attention_torch(q: Tensor, k: Tensor, v: Tensor, window: int, band: bool) -> Tensor:
    """Compute sliding-window attention tile by tile on (B, H, W, heads, d)."""
    dtype = work_dtype(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for tile in _tiles(q, window, band, dtype.itemsize):
        query, key, value = _take(q, tile.queries, dtype), _take(k, tile.keys, dtype), _take(v, tile.keys, dtype)
        if q.is_cuda and dtype == torch.float32:  # the fused kernel adds its products on tensor cores, which cut off
            part = _probabilities(query * q.shape[-1] ** -0.5, key, tile.seen) @ value
        else:
            part = F.scaled_dot_product_attention(query, key, value, attn_mask=tile.seen)
        target = out[tile.queries]
        target.copy_(_put(part, target.shape))
    return out


def sliding_window_attention_backward_torch(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, band: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v; the scores are made again. Tiles add to shared keys one after the other."""
    dtype = work_dtype(q, k, v)
    wide = torch.promote_types(dtype, torch.float32)
    scale = q.shape[-1] ** -0.5
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
    for tile in _tiles(q, window, band, dtype.itemsize):
        query, key, value = _take(q, tile.queries, dtype), _take(k, tile.keys, dtype), _take(v, tile.keys, dtype)
        out_grad = _take(grad, tile.queries, dtype)
        p = _probabilities(query * scale, key, tile.seen)
        grad_scores = torch.ops.aten._softmax_backward_data(out_grad @ value.mT, p, -1, p.dtype)
        target = grad_q[tile.queries]
        target.copy_(_put((grad_scores @ key).mul_(scale), target.shape))
        for total, part in ((grad_k, (grad_scores.mT @ query).mul_(scale)), (grad_v, p.mT @ out_grad)):
            shared = total[tile.keys]
            shared += _put(part, shared.shape)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)
