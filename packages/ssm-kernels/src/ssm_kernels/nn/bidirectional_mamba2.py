"""A Mamba-2 mixer that scans from both ends of the sequence.

Letters: B batch, L length, C channels, H heads, P channels of a head, N state, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.depthwise_conv1d import depthwise_conv1d
from ..ops.dispatch import Impl
from ..ops.ssd import ssd_bidirectional
from .gated_norm import GatedRMSNorm
from .mamba import check_sequence, wide
from .mamba2 import check_heads, initial_A_log_of_heads, initial_dt_bias


class BidirectionalMamba2(nn.Module):
    """Two Mamba-2 scans over one sequence, one from each end, with their own convolution, steps, A and D.

    Both directions share in_proj but for the rows of the steps, the gated norm and out_proj. Keys of the state dict:
    those of `Mamba2`, with H more rows of in_proj.weight at its end for the steps of the scan from the end, and for
    that scan conv1d_b.{weight, bias}, dt_bias_b (H), A_b_log (H) and D_b (H). No published checkpoint has this form.
    Keep A_log, A_b_log, D, D_b, dt_bias and dt_bias_b out of weight decay.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps of the convolutions, 2..8.
        expand: d_inner = expand * d_model.
        headdim: Channels P of a head, a divisor of d_inner.
        ngroups: Groups G of heads that share B and C; the norm has as many.
        A_init_range: First rates -A are uniform in between.
        dt_min: Smallest initial step, > 0.
        dt_max: Largest initial step.
        conv_bias: Give the convolutions a bias.
        bias: Give in_proj and out_proj a bias.
        average: Halve the sum of the two directions; the norm takes it out again but for its eps.
        impl: Implementation of the scans and the convolutions.

    Raises:
        ValueError: Sizes do not divide one another; in `forward`, the input is not (B, L, C).

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7; both ends as in Zhu et al. 2024, arXiv:2401.09417.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
        average: bool = True,
        impl: Impl = "auto",
    ):
        super().__init__()
        d_inner = expand * d_model
        heads = check_heads("BidirectionalMamba2", d_inner, headdim, ngroups)
        self.d_model, self.d_inner, self.d_state, self.headdim, self.ngroups = (
            d_model,
            d_inner,
            d_state,
            headdim,
            ngroups,
        )
        self.average = average
        self.impl: Impl = impl
        channels = d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, d_inner + channels + 2 * heads, bias=bias)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1, bias=conv_bias)
        self.conv1d_b = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1, bias=conv_bias)
        self.dt_bias = nn.Parameter(initial_dt_bias(heads, dt_min, dt_max))
        self.dt_bias_b = nn.Parameter(initial_dt_bias(heads, dt_min, dt_max))
        self.A_log = nn.Parameter(initial_A_log_of_heads(heads, *A_init_range))
        self.A_b_log = nn.Parameter(initial_A_log_of_heads(heads, *A_init_range))
        self.D = nn.Parameter(torch.ones(heads))
        self.D_b = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(d_inner, groups=ngroups)
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix along the sequence: (B, L, C) to (B, L, C), each step seeing all steps."""
        check_sequence("BidirectionalMamba2", x, self.d_model)
        heads = self.dt_bias.shape[0]
        z, inner, dt, dt_b = self.in_proj(x).split([self.d_inner, self.conv1d.in_channels, heads, heads], -1)
        value, B, C = self._convolve(inner, self.conv1d, reverse=False)
        value_b, B_b, C_b = self._convolve(inner, self.conv1d_b, reverse=True)
        y = ssd_bidirectional(
            *(value, dt, -wide(self.A_log).exp(), B, C, wide(self.D), wide(self.dt_bias)),
            *(value_b, dt_b, -wide(self.A_b_log).exp(), B_b, C_b, wide(self.D_b), wide(self.dt_bias_b)),
            average=self.average,
            impl=self.impl,
        )
        return self.out_proj(self.norm(y.flatten(-2), z))

    def _convolve(self, inner: Tensor, conv1d: nn.Conv1d, *, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Give one direction's x (B, L, H, P), B and C (B, L, G, N)."""
        mixed = depthwise_conv1d(
            inner, conv1d.weight[:, 0], conv1d.bias, activation="silu", reverse=reverse, impl=self.impl
        )
        size = self.ngroups * self.d_state
        value, B, C = mixed.split([self.d_inner, size, size], -1)
        B, C = (t.unflatten(-1, (self.ngroups, self.d_state)) for t in (B, C))
        return value.unflatten(-1, (-1, self.headdim)), B, C
