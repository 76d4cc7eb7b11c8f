"""Root mean square norm with a gate in front, as the Mamba-2 block ends with. C is the number of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse
from .mamba import wide


class GatedRMSNorm(nn.Module):
    """Multiply by silu(z), then divide every group of channels by its root mean square and scale by `weight`.

    Keys of the state dict: weight (C).

    Args:
        channels: C.
        groups: Groups of channels, side by side, that have a mean square each; a divisor of C.
        eps: Added to the mean square.

    Raises:
        ValueError: `groups` does not divide C; in `forward`, z is not of the shape of y.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7.1.
    """

    def __init__(self, channels: int, *, groups: int = 1, eps: float = 1e-5):
        super().__init__()
        if groups < 1 or channels % groups != 0:
            refuse("GatedRMSNorm", "groups", f"a divisor of {channels}", groups, "every group has C / groups channels")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and normalise (..., C); computed in float32 (float64 for that), the result has the dtype of y."""
        check_shape("GatedRMSNorm", "z", z, [y.shape], "the shape of y", "one gate per element")
        with torch.autocast(y.device.type, enabled=False):
            value = (wide(y) * F.silu(wide(z))).unflatten(-1, (self.groups, -1))
            value = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + self.eps)
            return (value.flatten(-2) * self.weight).to(y.dtype)
