"""Order of points along a Hilbert curve through the unit cube, in any number of dimensions. B batch, N points."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BITS = 10  # cells per axis: 1024; finer differences keep the order in which points are given


def hilbert_index(coords: Tensor, bits: int = BITS) -> Tensor:
    """Give every point its place along the curve.

    Args:
        coords: (..., N, d) in [0, 1]; values outside are moved to the edge.
        bits: The curve visits 2^bits cells along each axis; bits * d <= 62.

    Returns:
        (..., N) int64. Neighbours along the curve are neighbours in space.

    Source: Skilling 2004, Programming the Hilbert curve, AIP Conf. Proc. 707, 381.
    """
    cells = (coords.detach() * 2**bits).long().clamp(0, 2**bits - 1)
    x = list(cells.unbind(-1))
    dims = len(x)
    for bit in range(bits - 1, 0, -1):
        low = (1 << bit) - 1
        for axis in range(dims):
            is_set = (x[axis] >> bit & 1).bool()
            swap = (x[0] ^ x[axis]) & low
            first = torch.where(is_set, x[0] ^ low, x[0] ^ swap)
            if axis:
                x[axis] = torch.where(is_set, x[axis], x[axis] ^ swap)
            x[0] = first
    for axis in range(1, dims):  # Gray code
        x[axis] = x[axis] ^ x[axis - 1]
    flips = torch.zeros_like(x[0])
    for bit in range(bits - 1, 0, -1):
        flips = torch.where((x[-1] >> bit & 1).bool(), flips ^ ((1 << bit) - 1), flips)
    index = torch.zeros_like(x[0])
    for bit in range(bits - 1, -1, -1):
        for axis in range(dims):
            index = index << 1 | (x[axis] ^ flips) >> bit & 1
    return index


def hilbert_order(coords: Tensor) -> Tensor:
    """Return the permutation (..., N) that sorts points (..., N, d) along the curve; equal places keep their order."""
    index = look_up(coords) if coords.is_cuda and coords.shape[-1] <= 2 else hilbert_index(coords)
    return index.argsort(dim=-1, stable=True)


def look_up(coords: Tensor, bits: int = BITS) -> Tensor:
    """Return what `hilbert_index` does, from a table of all cells: on a GPU, three operations instead of hundreds."""
    cells = (coords.detach() * 2**bits).long().clamp(0, 2**bits - 1)
    place = cells[..., 0]
    for axis in range(1, cells.shape[-1]):
        place = place << bits | cells[..., axis]
    return _table(cells.shape[-1], bits, coords.device)[place]


@lru_cache(maxsize=4)
def _table(dims: int, bits: int, device: torch.device) -> Tensor:
    """Return the index of every cell, (2^(bits * dims),)."""
    axes = [(torch.arange(2**bits, device=device, dtype=torch.float64) + 0.5) / 2**bits] * dims
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return hilbert_index(cells, bits)


def take(x: Tensor, order: Tensor) -> Tensor:
    """Pick along axis 1: x (B, N, C) and order (B, M) give (B, M, C)."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def inverse(order: Tensor) -> Tensor:
    """Return the permutation that undoes `order` (B, N)."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
