"""MobileNetV2's inverted residuals as the stem of a Vim.

B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

EXPANSION = 4


class InvertedResidual(nn.Module):
    """Expand the channels, convolve each by itself, project; added to the input where the shapes are the same.

    No activation follows the projection.

    Args:
        channels: Of the input.
        out: Of the output.
        stride: Of the depthwise convolution.
        expansion: Inner channels over `channels`.

    Source: Sandler et al. 2018, arXiv:1801.04381, section 3.
    """

    def __init__(self, channels: int, out: int, stride: int, expansion: int = EXPANSION) -> None:
        super().__init__()
        inner = expansion * channels
        self.residual = stride == 1 and channels == out
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H / stride, W / stride), rounded up."""
        y = self.layers(x)
        return x + y if self.residual else y


class MobileStem(nn.Module):
    """Tokens by a convolution and inverted residuals that halve the picture until a token is a patch.

    Args:
        channels: Of the picture.
        dim: Of the tokens.
        patch: Pixels of a token's side, a power of two.
        width: Of the last convolutions before the one that makes the tokens; every earlier step has half as many
            channels, 16 at least.
    """

    def __init__(self, channels: int, dim: int, patch: int, width: int) -> None:
        super().__init__()
        steps = round(math.log2(patch))
        widths = [max(16, width >> (steps - step)) for step in range(1, steps + 1)]
        first = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU6()
        )
        pairs = pairwise(widths)
        self.blocks = nn.Sequential(first, *(InvertedResidual(a, b, 2) for a, b in pairs))
        self.proj = nn.Conv2d(widths[-1], dim, 1)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, M, C); pixels beyond whole patches are left out, as a patch's stride does."""
        height, width = x.shape[2] // self.patch * self.patch, x.shape[3] // self.patch * self.patch
        return self.proj(self.blocks(x[:, :, :height, :width])).flatten(2).mT
