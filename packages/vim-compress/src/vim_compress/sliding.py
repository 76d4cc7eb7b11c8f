"""Attention that crosses the borders of MambaVision's windows: shifted windows, a band, or a neighbourhood.

B batch, H, W the map's height and width before padding, L tokens of a window.
"""

from __future__ import annotations

from typing import Literal

from ssm_kernels import sliding_window_attention, window_attention
from torch import Tensor
from torch.nn import functional as F

from .hybrid import Attention, Place
from .windows import crop, join_windows, pad_to_windows, split_windows

Kind = Literal["window", "shifted", "band", "neighbourhood"]


class SlidingAttention(Attention):
    """Attention of MambaVision's blocks beyond their windows, with the same parameters and names.

    "shifted" moves the windows by half in every other block, as Swin does, with the padding of the last windows among
    the keys as in the published network. "band" is |i - j| <= reach over the rows of the map one after the other, and
    "neighbourhood" a square of side `reach` around each token, moved inwards at the edges: both see the map without
    its padding. Where the reach covers the map, they are attention to all of it.

    Args:
        dim: Channels of the stage.
        heads: Attention heads.
        head_dim: Channels of a head.
        gates: Give the heads a factor.
        kind: Which of the three.
        window: Side of the windows that the tokens arrive in.
        shift: Tokens that "shifted" moves the windows by.
        reach: Of "band" and "neighbourhood".

    Source: Liu et al. 2021, arXiv:2103.14030; Beltagy et al. 2020, arXiv:2004.05150; Hassani et al. 2023,
    arXiv:2204.07143.
    """

    def __init__(
        self, dim: int, *, heads: int, head_dim: int, gates: bool, kind: Kind, window: int, shift: int, reach: int
    ) -> None:
        super().__init__(dim, heads=heads, head_dim=head_dim, gates=gates)
        self.kind, self.window, self.shift, self.reach = kind, window, shift, reach

    def forward(self, tokens: Tensor, place: Place = None) -> Tensor:
        """Map (B * windows, L, C) to the same.

        Args:
            tokens: As they are in their windows.
            place: Windows down and across, height and width of the map.
        """
        assert place is not None
        down, across, height, width = place
        joined = join_windows(tokens, self.window, (down, across))
        if self.kind == "shifted":
            shift = self.shift if down * across > 1 else 0
            q, k, v = self.heads_of(joined)
            y = window_attention(q, k, v, window=self.window, shift=shift)
            return split_windows(self.merge(y), self.window)
        y = self.merge(self.attend(crop(joined, height, width)))
        return split_windows(pad_to_windows(y, self.window), self.window)

    def attend(self, x: Tensor) -> Tensor:
        """Let the tokens of a map see those within reach: (B, H, W, C) to (B, H, W, heads, head_dim)."""
        height, width = x.shape[1], x.shape[2]
        q, k, v = self.heads_of(x)
        covered = self.reach >= height * width - 1 if self.kind == "band" else self.reach >= max(height, width)
        if covered:
            rows = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
            y = F.scaled_dot_product_attention(rows[0], rows[1], rows[2])
            return y.transpose(1, 2).unflatten(1, (height, width))
        if self.kind == "band":
            flat = [t.flatten(1, 2) for t in (q, k, v)]
            y = sliding_window_attention(flat[0], flat[1], flat[2], window=self.reach, ndim=1)
            return y.unflatten(1, (height, width))
        return sliding_window_attention(q, k, v, window=min(self.reach, height, width), ndim=2)
