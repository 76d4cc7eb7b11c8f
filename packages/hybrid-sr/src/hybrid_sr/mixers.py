"""Mixers of a block other than SS2D and window attention: the scan of Mamba-2 along four directions, scans in windows.

B batch, H height, W width, C model width, E inner width, h heads, P = E / h, N state, L = H W.
"""

from __future__ import annotations

import math

import torch
from ssm_kernels import ssd
from ssm_kernels.nn.layer_norm import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F

DIRECTIONS = 4  # rows, columns, rows reversed, columns reversed
STEP_RANGE = 1e-3, 1e-1  # of softplus(dt_bias) at the start, Mamba-2's choice
RATE_RANGE = 1.0, 16.0  # of -A at the start, Mamba-2's choice


class SSD2D(nn.Module):
    """SS2D with the recurrence of Mamba-2: one rate per head and direction, a state of (P, N) per head.

    As in SS2D: in_proj, 3 x 3 depthwise convolution, GELU, scans, LayerNorm, out_proj; no gate. The time step comes
    from one product per head instead of a low-rank one per channel.

    Args:
        dim: C.
        d_state: N.
        ssm_ratio: E / C; E is rounded down and must be a multiple of `heads`.
        heads: h, of every direction.

    Cost: 2 C E + 4 E (h + 2 N) + 12 E + 12 h parameters.
    Source: Dao and Gu 2024, arXiv:2405.21060, in the four directions of Liu et al. 2024, arXiv:2401.10166.
    """

    def __init__(self, dim: int, d_state: int, ssm_ratio: float, heads: int) -> None:
        super().__init__()
        inner = int(ssm_ratio * dim)
        self.heads, self.d_state = heads, d_state
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        bound = inner**-0.5  # nn.Linear's
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, heads + 2 * d_state, inner).uniform_(-bound, bound))
        low, high = (math.log(step) for step in STEP_RANGE)
        step = torch.empty(DIRECTIONS, heads).uniform_(low, high).exp_()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS, heads).uniform_(*RATE_RANGE).log_())
        self.D = nn.Parameter(torch.ones(DIRECTIONS, heads))
        self.out_norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        u = self.in_proj(x)
        u = F.gelu(self.conv2d(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        height, width = u.shape[1:3]
        pixels = _by_rows_and_columns(u, u).unflatten(-1, (self.heads, -1)).flatten(2, 3)  # (B, L, 2 h, P)
        projected = F.linear(u, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (DIRECTIONS, -1)).unbind(3)
        y = None
        for reverse in (False, True):
            directions = slice(2, 4) if reverse else slice(0, 2)
            dt, B, C = _by_rows_and_columns(*projected[directions]).split((self.heads, self.d_state, self.d_state), -1)
            part = ssd(
                pixels,
                dt.flatten(2),
                -torch.exp(self.A_log[directions].flatten()),
                B,
                C,
                self.D[directions].flatten(),
                dt_bias=self.dt_bias[directions].flatten(),
                dt_softplus=True,
                reverse=reverse,
            )
            y = part if y is None else y + part
        assert y is not None
        rows, columns = y.unflatten(2, (2, -1)).flatten(3).unbind(2)
        merged = rows.unflatten(1, (height, width)) + columns.unflatten(1, (width, height)).transpose(1, 2)
        return self.out_proj(self.out_norm(merged))


def _by_rows_and_columns(along_rows: Tensor, along_columns: Tensor) -> Tensor:
    """Line two (B, H, W, n) maps up, the first row by row, the second column by column: (B, L, 2, n)."""
    return torch.stack([along_rows.flatten(1, 2), along_columns.transpose(1, 2).flatten(1, 2)], 2)


class Windowed(nn.Module):
    """Apply a mixer to every window of the picture by itself; its convolution sees zeros outside the window.

    Args:
        mixer: Maps (B, H, W, C) to the same shape.
        window: Side of a window; H and W are multiples.
    """

    def __init__(self, mixer: nn.Module, window: int) -> None:
        super().__init__()
        self.mixer, self.window = mixer, window

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        side, rows, columns = self.window, height // self.window, width // self.window
        cut = x.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
        mixed = self.mixer(cut.reshape(-1, side, side, channels))
        mixed = mixed.reshape(batch, rows, columns, side, side, channels).transpose(2, 3)
        return mixed.reshape(batch, height, width, channels)
