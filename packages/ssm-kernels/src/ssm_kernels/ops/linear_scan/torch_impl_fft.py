"""The linear scan from a zero state as a convolution with the response of the modes, by FFT.

Letters: B batch, L length, D channels, M modes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..long_conv1d.torch_impl import convolve, correlate
from ..powers import complexes, moments, planes, response


def forward(x: Tensor, a: Tensor, c: Tensor, reverse: bool) -> Tensor:
    """Return y (B, L, D)."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return convolve(x, response(complexes(a, kind), complexes(c, kind), x.shape[1]), reverse)


def backward(x: Tensor, a: Tensor, c: Tensor, grad_y: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, a and c."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    modes, weights = complexes(a, kind), complexes(c, kind)
    grad_x = convolve(grad_y.to(x.dtype), response(modes, weights, x.shape[1]), not reverse)
    sums, steep = moments(modes, correlate(grad_y, x, x.shape[1], reverse))
    return grad_x, planes((weights * steep).conj_physical()), planes(sums.conj_physical())
