"""Powers of the modes, and sums over them, without a loop over time. Letters: D channels, M modes, J powers.

Conjugates are computed, never marked: a compiled graph that calls an operator loses the mark on views of its tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def complexes(planes: Tensor, kind: torch.dtype) -> Tensor:
    """Return (2, M, D) as complex (D, M)."""
    planes = planes.to(kind)
    return torch.complex(planes[0].mT.contiguous(), planes[1].mT.contiguous())


def planes(x: Tensor) -> Tensor:
    """Return complex (..., D, M) as (..., 2, M, D)."""
    return torch.stack([x.real.mT, x.imag.mT], -3)


def powers(a: Tensor, count: int) -> Tensor:
    """Return a^0 ... a^(count - 1), (D, count, M), by doubling: as many roundings as k has bits."""
    table = torch.ones_like(a)[:, None]
    square = a[:, None]
    while table.shape[1] < count:
        table = torch.cat([table, table * square], 1)
        square = square * square
    return table[:, :count]


def slopes(table: Tensor) -> Tensor:
    """Return k a^(k - 1) for the powers a^k of a table, k from 0."""
    number = torch.arange(table.shape[1], device=table.device, dtype=table.real.dtype)
    shifted = torch.cat([torch.zeros_like(table[:, :1]), table[:, :-1]], 1)
    return number[:, None] * shifted


def stacked(table: Tensor) -> Tensor:
    """Lay real and imaginary parts side by side, (D, J, 2 M). The product with that of a conjugate is the real part."""
    return torch.cat([table.real, table.imag], -1)


def split(length: int) -> tuple[int, int]:
    """Cut `length` powers into rows of 2^k: their number and length, about the root of `length` each."""
    width = 1 << max(0, math.ceil(math.log2(length) / 2))
    return -(-length // width), width


def response(a: Tensor, w: Tensor, length: int) -> Tensor:
    """Return K[j] = Re sum over the modes of w a^j, (D, length).

    Writes j = h * width + l, so that the powers of h and of l are enough: a product of matrices, no table of all j.
    """
    rows, width = split(length)
    low = powers(a, width)
    high = powers(low[:, -1] * a, rows) * w[:, None]
    return (stacked(high) @ stacked(low.conj_physical()).mT).flatten(1)[:, :length]


def moments(a: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over j of weights[j] a^j and of weights[j] j a^(j-1), (D, M) each; weights are real (D, J)."""
    rows, width = split(weights.shape[1])
    weights = torch.nn.functional.pad(weights, (0, rows * width - weights.shape[1])).unflatten(1, (rows, width))
    low = powers(a, width)
    block = low[:, -1] * a
    high = powers(block, rows)
    inner = _times(weights, low)  # (D, rows, M)
    steep = _times(weights, slopes(low))
    # d a^(h * width) / da = h block^(h-1) width a^(width-1)
    change = slopes(high) * (width * low[:, -1:])
    return (high * inner).sum(1), (high * steep + change * inner).sum(1)


def _times(weights: Tensor, table: Tensor) -> Tensor:
    """Multiply real (D, h, l) by complex (D, l, M)."""
    real, imag = (weights @ stacked(table)).chunk(2, -1)
    return torch.complex(real, imag)
