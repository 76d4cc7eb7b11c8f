"""The Mamba-2 mixer with the parameter names of mamba-ssm, on the selective scan. B batch, L length, N state.

Mamba-2 is a selective scan whose rate and step are shared by the channels of a head, so the scan operator computes it
as it is: rate and step are expanded over the channels.
"""

from __future__ import annotations

import math

import torch
from ssm_kernels import depthwise_conv1d, selective_scan
from torch import Tensor, nn
from torch.nn import functional as F

from .frontend import RMSNorm


class Mamba2(nn.Module):
    """Projection, causal convolution of x, B and C, selective scan with one rate a head, gated norm, projection.

    Args:
        width: Channels of input and output.
        d_state: N.
        d_conv: Taps of the convolution.
        expand: Inner channels over `width`.
        head: Channels of a head.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7.
    """

    def __init__(self, width: int, *, d_state: int = 64, d_conv: int = 4, expand: int = 2, head: int = 64) -> None:
        super().__init__()
        inner = expand * width
        self.head = min(head, inner)
        heads = inner // self.head
        self.inner, self.d_state = inner, d_state
        self.in_proj = nn.Linear(width, 2 * inner + 2 * d_state + heads, bias=False)
        mixed = inner + 2 * d_state
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed, padding=d_conv - 1)
        step = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp_min(1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to (B, L, width), each step seeing itself and the steps before it."""
        gate, mixed, step = self.in_proj(x).split([self.inner, self.inner + 2 * self.d_state, len(self.D)], -1)
        mixed = depthwise_conv1d(mixed, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu")
        inner, b, c = mixed.split([self.inner, self.d_state, self.d_state], -1)
        y = selective_scan(
            inner,
            self._over_channels(step),
            -self._over_channels(self.A_log.float().exp())[:, None].expand(-1, self.d_state),
            b,
            c,
            self._over_channels(self.D.float()),
            dt_bias=self._over_channels(self.dt_bias.float()),
            dt_softplus=True,
        )
        return self.out_proj(self.norm(y * F.silu(gate)))

    def _over_channels(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.head, -1)
