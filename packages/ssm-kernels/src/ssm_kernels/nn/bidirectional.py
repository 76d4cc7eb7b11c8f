"""The bidirectional mixer of Vision Mamba (Vim v2), with its parameter names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..ops.checks import refuse
from ..ops.dispatch import Impl
from ..ops.selective_scan_bidirectional import selective_scan_bidirectional
from .mamba import check_sequence, init_dt_proj, initial_A_log, resolve_dt_rank, scan_inputs, wide


class BidirectionalMamba(nn.Module):
    """Two selective scans over one sequence, one from each end, with their own convolution, projections, A and D.

    Both directions share in_proj, the gate z and out_proj. Keys of the state dict: those of `Mamba`, and with the
    same shapes conv1d_b.{weight,bias}, x_proj_b.weight, dt_proj_b.{weight,bias}, A_b_log, D_b for the scan from the
    end: checkpoints of Vim load. Keep A_log, A_b_log, D, D_b and the biases of dt_proj and dt_proj_b out of weight
    decay.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps of the convolutions, 2..8.
        expand: d_inner = expand * d_model.
        dt_rank: Rank of the projections that make the steps; "auto" is d_model / 16, rounded up.
        dt_min: Smallest initial step, > 0.
        dt_max: Largest initial step.
        conv_bias: Give the convolutions a bias.
        bias: Give in_proj and out_proj a bias.
        average: Halve the sum of the two directions (`if_divide_out` of Vim, on in all its released models).
        init: "fixed" starts both directions alike; "official" repeats Vim's model-wide initialisation, which sets the
            bias of dt_proj_b to zero and leaves its weight at PyTorch's default: first backward steps of 0.69
            instead of dt_min..dt_max.
        impl: Implementation of the scan.

    Raises:
        ValueError: `init` is unknown or, in `forward`, the input is not (B, L, C).

    Source: Zhu et al. 2024, arXiv:2401.09417, algorithm 1.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
        average: bool = True,
        init: Literal["fixed", "official"] = "fixed",
        impl: Impl = "auto",
    ):
        super().__init__()
        if init not in ("fixed", "official"):
            refuse("BidirectionalMamba", "init", "'fixed' or 'official'", repr(init), "'fixed' suits new training")
        d_inner = expand * d_model
        rank = resolve_dt_rank(dt_rank, d_model)
        self.d_model, self.average = d_model, average
        self.impl: Impl = impl
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        self.A_log = nn.Parameter(initial_A_log(d_inner, d_state))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.conv1d_b = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj_b = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj_b = nn.Linear(rank, d_inner)
        self.A_b_log = nn.Parameter(initial_A_log(d_inner, d_state))
        self.D_b = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        init_dt_proj(self.dt_proj, dt_min, dt_max)
        if init == "fixed":
            init_dt_proj(self.dt_proj_b, dt_min, dt_max)
        else:
            nn.init.zeros_(self.dt_proj_b.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix along the sequence: (B, L, C) to (B, L, C), each step seeing all steps."""
        check_sequence("BidirectionalMamba", x, self.d_model)
        inner, z = self.in_proj(x).chunk(2, -1)
        ahead = scan_inputs(inner, self.conv1d, self.x_proj, self.dt_proj, reverse=False, impl=self.impl)
        back = scan_inputs(inner, self.conv1d_b, self.x_proj_b, self.dt_proj_b, reverse=True, impl=self.impl)
        y = selective_scan_bidirectional(
            *_with_parameters(ahead, self.A_log, self.D, self.dt_proj),
            *_with_parameters(back, self.A_b_log, self.D_b, self.dt_proj_b),
            z=z,
            dt_softplus=True,
            average=self.average,
            impl=self.impl,
        )
        return self.out_proj(y)


def _with_parameters(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], A_log: Tensor, D: Tensor, dt_proj: nn.Linear
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Put one direction's arguments in the order of the operator: x, dt, A, B, C, D, dt_bias."""
    x, dt, B, C = inputs
    return x, dt, -wide(A_log).exp(), B, C, wide(D), wide(dt_proj.bias)
