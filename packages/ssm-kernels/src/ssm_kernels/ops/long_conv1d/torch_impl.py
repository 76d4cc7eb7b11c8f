"""Convolutions with filters as long as the row, by FFT. Letters: B batch, L length, D channels, J lags of a filter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

SLAB = 2**25  # numbers transformed at a time: 128 MB in float32


def convolve(x: Tensor, kernel: Tensor, reverse: bool, back: Tensor | None = None) -> Tensor:
    """Return y[t] = sum over j of kernel[j] x[t-j], plus back[j] x[t+j]; `reverse` exchanges past and future."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    length, size = x.shape[1], _size(x.shape[1], kernel, back)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for rows, channels in _slabs(x, size):
        spectrum = torch.fft.rfft(x[rows, :, channels].mT.to(kind), size)
        response = _response(kernel, channels, kind, size)
        if reverse:
            response = response.conj_physical()
        if back is not None:
            other = _response(back, channels, kind, size)
            response = response + (other if reverse else other.conj_physical())
        y[rows, :, channels] = torch.fft.irfft(spectrum * response, size)[..., :length].mT
    return y


def correlate(grad_y: Tensor, x: Tensor, lags: int, reverse: bool) -> Tensor:
    """Return the sum over rows and t of grad_y[t] x[t-j] for j < lags, (D, lags); `reverse`: of grad_y[t] x[t+j]."""
    return correlate_both(grad_y, x, lags, 0, reverse)[0]


def correlate_both(grad_y: Tensor, x: Tensor, ahead: int, behind: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return the sums of grad_y[t] x[t-j] for j < ahead and of grad_y[t] x[t+j] for j < behind, or exchanged."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    length = x.shape[1]
    size = good_size(2 * length - 1)
    found = torch.zeros(x.shape[2], size, dtype=kind, device=x.device)
    for rows, channels in _slabs(x, size):
        gradient = torch.fft.rfft(grad_y[rows, :, channels].mT.to(kind), size)
        values = torch.fft.rfft(x[rows, :, channels].mT.to(kind), size)
        found[channels] += torch.fft.irfft((gradient * values.conj_physical()).sum(0), size)
    past, future = found[:, :length], torch.cat([found[:, :1], found[:, size - length + 1 :].flip(1)], 1)
    first, second = (future, past) if reverse else (past, future)
    return _lags(first, ahead), _lags(second, behind)


def good_size(n: int) -> int:
    """Return the least 2^i 3^j 5^k from n on, sizes that are fast to transform, even ones only."""
    best = 1 << max(1, (n - 1).bit_length())
    five = 1
    while five < best:
        odd = five
        while odd < best:
            size = odd * (1 << max(1, (-(-n // odd) - 1).bit_length()))
            best = min(best, size)
            odd *= 3
        five *= 5
    return best


def _size(length: int, kernel: Tensor, back: Tensor | None) -> int:
    """Choose the size of the transform; lags from L on never meet anything."""
    lags = kernel.shape[1] if back is None else max(kernel.shape[1], back.shape[1])
    return good_size(length + min(lags, length) - 1)


def _response(kernel: Tensor, channels: slice, kind: torch.dtype, size: int) -> Tensor:
    used = min(kernel.shape[1], (size + 1) // 2)
    return torch.fft.rfft(kernel[channels, :used].to(kind), size)


def _lags(found: Tensor, lags: int) -> Tensor:
    """Cut to `lags`, or fill up with the zeros of lags that never occur."""
    return F.pad(found, (0, lags - found.shape[1])) if lags > found.shape[1] else found[:, :lags].clone()


def _slabs(x: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of rows and channels whose transforms are of moderate size."""
    batch, _, channels = x.shape
    width = max(1, min(channels, SLAB // size))
    rows = max(1, SLAB // (size * width))
    for d in range(0, channels, width):
        for b in range(0, batch, rows):
            yield slice(b, min(b + rows, batch)), slice(d, min(d + width, channels))
