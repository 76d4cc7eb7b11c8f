"""The definition of the long convolution: a sum of shifted rows, which PyTorch differentiates itself."""

from __future__ import annotations

import torch
from torch import Tensor


def long_conv1d_reference(x: Tensor, kernel: Tensor, kernel_back: Tensor | None, reverse: bool) -> Tensor:
    """Return y (B, L, D) in x.dtype, lag by lag."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    length, wide = x.shape[1], x.to(kind)
    y = torch.zeros_like(wide)
    sides = [(kernel, reverse)] + ([] if kernel_back is None else [(kernel_back, not reverse)])
    for taps, future in sides:
        for j in range(min(length, taps.shape[1])):
            shifted = torch.zeros_like(wide)
            if future:
                shifted[:, : length - j] = wide[:, j:]
            else:
                shifted[:, j:] = wide[:, : length - j]
            y = y + shifted * taps[:, j].to(kind)
    return y.to(x.dtype)
