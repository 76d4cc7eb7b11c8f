"""Maps (B, H, W, C) as windows of tokens (B * windows, L, C), and back. Windows go row by row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Extend a map by zeros at the right and bottom to whole windows."""
    bottom, right = -x.shape[1] % window, -x.shape[2] % window
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def split_windows(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C), whose sides are multiples, into (B * windows, window * window, C)."""
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(-1, rows, window, columns, window, x.shape[3])
    return x.transpose(2, 3).reshape(-1, window * window, x.shape[5])


def join_windows(tokens: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """Put windows together again: `split_windows` undone; `grid` counts windows."""
    x = tokens.reshape(-1, grid[0], grid[1], window, window, tokens.shape[2])
    return x.transpose(2, 3).reshape(-1, grid[0] * window, grid[1] * window, tokens.shape[2])


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cut off what was padded."""
    return x[:, :height, :width]
