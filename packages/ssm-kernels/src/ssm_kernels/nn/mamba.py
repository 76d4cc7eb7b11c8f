"""The Mamba block's mixer, with the parameter names and shapes of mamba-ssm. Letters: B batch, L length, C channels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import refuse
from ..ops.depthwise_conv1d import depthwise_conv1d
from ..ops.dispatch import Impl
from ..ops.selective_scan import selective_scan

DT_FLOOR = 1e-4  # smallest initial step


def resolve_dt_rank(dt_rank: int | Literal["auto"], d_model: int) -> int:
    """Give the rank of the step projection; "auto" is d_model / 16, rounded up."""
    return math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank


def initial_A_log(d_inner: int, d_state: int) -> Tensor:
    """Give log(1), ..., log(d_state) for every channel (S4D-Real), (d_inner, d_state) float32."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1)


def init_dt_proj(dt_proj: nn.Linear, dt_min: float, dt_max: float) -> None:
    """Draw the bias so that the first steps are log-uniform in [dt_min, dt_max], weights uniform in +-rank^-0.5."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    with torch.no_grad():
        spread = math.log(dt_max) - math.log(dt_min)
        step = torch.exp(torch.rand_like(dt_proj.bias) * spread + math.log(dt_min)).clamp_min(DT_FLOOR)
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


def wide(parameter: Tensor) -> Tensor:
    """Give a parameter of the recurrence in float32, or float64 if it is that."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def scan_inputs(
    x: Tensor, conv1d: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, *, reverse: bool, impl: Impl
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve and project one direction: x (B, L, d_inner) gives the scan's x, dt, B and C.

    dt has no bias yet: the scan adds it in float32. `impl` is that of both.
    """
    x = depthwise_conv1d(x, conv1d.weight[:, 0], conv1d.bias, activation="silu", reverse=reverse, impl=impl)
    rank, state = dt_proj.in_features, (x_proj.out_features - dt_proj.in_features) // 2
    low, B, C = x_proj(x).split([rank, state, state], -1)
    return x, F.linear(low, dt_proj.weight), B, C


def check_sequence(name: str, x: Tensor, d_model: int) -> None:
    """Refuse anything but (B, L, C)."""
    if x.dim() != 3 or x.shape[-1] != d_model:
        refuse(name, "x", f"(B, L, {d_model})", tuple(x.shape), "channels come last; flatten pictures to tokens first")


class Mamba(nn.Module):
    """Selective state-space mixer: projection, causal convolution, selective scan, gate, projection.

    Keys of the state dict: in_proj.weight (2 * d_inner, C), conv1d.{weight (d_inner, 1, d_conv), bias},
    x_proj.weight (dt_rank + 2 * d_state, d_inner), dt_proj.{weight (d_inner, dt_rank), bias}, A_log (d_inner, d_state),
    D (d_inner), out_proj.weight (C, d_inner): checkpoints of mamba-ssm load. Keep A_log, D and dt_proj.bias out of
    weight decay.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps of the convolution, 2..8.
        expand: d_inner = expand * d_model.
        dt_rank: Rank of the projection that makes the step; "auto" is d_model / 16, rounded up.
        dt_min: Smallest initial step, > 0.
        dt_max: Largest initial step.
        conv_bias: Give the convolution a bias.
        bias: Give in_proj and out_proj a bias.
        impl: Implementation of the scan.

    Raises:
        ValueError: In `forward`, the input is not (B, L, C).

    Source: Gu and Dao 2023, arXiv:2312.00752, section 3.4; initial values section 3.6.
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
        impl: Impl = "auto",
    ):
        super().__init__()
        d_inner = expand * d_model
        rank = resolve_dt_rank(dt_rank, d_model)
        self.d_model, self.dt_min, self.dt_max = d_model, dt_min, dt_max
        self.impl: Impl = impl
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        self.A_log = nn.Parameter(initial_A_log(d_inner, d_state))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        init_dt_proj(self.dt_proj, dt_min, dt_max)

    def forward(self, x: Tensor) -> Tensor:
        """Mix along the sequence: (B, L, C) to (B, L, C), each step seeing itself and the steps before it."""
        check_sequence("Mamba", x, self.d_model)
        inner, z = self.in_proj(x).chunk(2, -1)
        inner, dt, B, C = scan_inputs(inner, self.conv1d, self.x_proj, self.dt_proj, reverse=False, impl=self.impl)
        y = selective_scan(
            inner,
            dt,
            -wide(self.A_log).exp(),
            B,
            C,
            wide(self.D),
            z=z,
            dt_bias=wide(self.dt_proj.bias),
            dt_softplus=True,
            impl=self.impl,
        )
        return self.out_proj(y)
