"""Other state-space models in place of the selective scan: Mamba-2, S4, S4D and S5, in both families.

B batch, L tokens, C channels of the residual stream, E inner channels, H heads of P channels, N states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ssm_kernels import depthwise_conv1d, ssd, ssd_bidirectional
from ssm_kernels.nn import S4, S4D, S5
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MambaVisionConfig, Mixer, VimConfig
from .mixer import LEAST_STEP, wide
from .squeeze import SqueezeTokens

HEAD = 64  # channels of a Mamba-2 head, or fewer in narrow networks
RATES = 1.0, 16.0  # first rates of Mamba-2, uniform
FIRST_STEPS = 1e-3, 0.1


def make_ssm(kind: Mixer, channels: int, states: int, *, bidirectional: bool) -> nn.Module:
    """Build a linear time-invariant model with `step_scale`, or Mamba-2's; without projections of its own.

    Args:
        kind: "s4", "s4d", "s5" or "mamba2".
        channels: E.
        states: N; S5 shares E states among all channels instead.
        bidirectional: Read the tokens from both ends.
    """
    if kind == "mamba2":
        return Mamba2Scan(channels, states, bidirectional=bidirectional)
    if kind == "s5":
        return S5(channels, bidirectional=bidirectional, project=False)
    module = S4 if kind == "s4" else S4D
    return module(channels, d_state=states + states % 2, bidirectional=bidirectional, project=False)


class Mamba2Scan(nn.Module):
    """Mamba-2's recurrence: one rate and step for each head, B and C from the tokens.

    Parameters: proj.weight (2 N + H, E), A_log (H), D (H), dt_bias (H); for the other direction proj_b, ...

    Args:
        channels: E.
        states: N.
        bidirectional: Read the tokens from both ends and average.

    Source: Dao and Gu 2024, arXiv:2405.21060.
    """

    def __init__(self, channels: int, states: int, *, bidirectional: bool) -> None:
        super().__init__()
        head = next(size for size in range(min(HEAD, channels), 0, -1) if channels % size == 0)
        self.heads, self.states, self.bidirectional = channels // head, states, bidirectional
        for suffix in ("", "_b") if bidirectional else ("",):
            self.add_module(f"proj{suffix}", nn.Linear(channels, 2 * states + self.heads, bias=False))
            rates = torch.empty(self.heads).uniform_(*RATES)
            steps = torch.exp(torch.empty(self.heads).uniform_(*(math.log(step) for step in FIRST_STEPS)))
            steps.clamp_(min=LEAST_STEP)
            self.register_parameter(f"A_log{suffix}", nn.Parameter(rates.log()))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(self.heads)))
            inverse = steps + torch.log(-torch.expm1(-steps))
            self.register_parameter(f"dt_bias{suffix}", nn.Parameter(inverse))

    def forward(self, x: Tensor, *, step_scale: float = 1.0, z: Tensor | None = None) -> Tensor:
        """Map (B, L, E) to the same.

        Args:
            x: The tokens.
            step_scale: Multiplies the rates, which is the same as longer steps for A.
            z: Gate, (B, L, E): the output is multiplied by silu(z).
        """
        u = x.unflatten(-1, (self.heads, -1))
        gate = None if z is None else z.unflatten(-1, (self.heads, -1))
        ahead = self._direction(u, x, "", step_scale)
        if self.bidirectional:
            back = self._direction(u, x, "_b", step_scale)
            return ssd_bidirectional(*ahead, *back, z=gate, average=True).flatten(2)
        u, dt, A, B, C, D, bias = ahead
        return ssd(u, dt, A, B, C, D, z=gate, dt_bias=bias, dt_softplus=True).flatten(2)

    def _direction(self, u: Tensor, x: Tensor, suffix: str, scale: float) -> tuple[Tensor, ...]:
        B, C, dt = self.get_submodule(f"proj{suffix}")(x).split([self.states, self.states, self.heads], -1)
        A, D, bias = (wide(self.get_parameter(f"{name}{suffix}")) for name in ("A_log", "D", "dt_bias"))
        return u, dt, -scale * A.exp(), B.unsqueeze(2), C.unsqueeze(2), D, bias


class LinearMixer(nn.Module):
    """A mixer with another state-space model where the selective scan is.

    For Vim, whose convolutions become one that is centred: in_proj to x | z, convolution and SiLU of x, the model from
    both ends, times SiLU(z), out_proj. For MambaVision: in_proj to x | z, convolution and SiLU of both, the model over
    x from the start, x | z through out_proj.

    Parameters: in_proj.weight, conv1d.{weight, bias} or conv1d_x.weight and conv1d_z.weight, ssm.*, out_proj.weight.
    """

    def __init__(
        self,
        dim: int,
        kind: Mixer,
        *,
        sizes: tuple[int, int],
        d_state: int,
        d_conv: int,
        step_scale: float,
        gated: bool,
        squeeze: nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        x, z = sizes
        self.sizes, self.step_scale, self.gated = sizes, step_scale, gated
        self.in_proj = nn.Linear(dim, x + z, bias=False)
        if gated:
            self.conv1d = nn.Conv1d(x, x, d_conv, groups=x, padding="same")
        else:
            self.conv1d_x = nn.Conv1d(x, x, d_conv, groups=x, padding="same", bias=False)
            self.conv1d_z = nn.Conv1d(z, z, d_conv, groups=z, padding="same", bias=False)
        self.ssm = make_ssm(kind, x, d_state, bidirectional=gated)
        self.out_proj = nn.Linear(x if gated else x + z, dim, bias=False)
        self.squeeze = squeeze or nn.ModuleDict()

    @classmethod
    def for_vim(cls, config: VimConfig) -> LinearMixer:
        """Build the mixer of a block of Vim."""
        inner = config.expand * config.dim
        widths = {"inner": inner, "output": config.dim}
        found = {config.se: SqueezeTokens(widths[config.se], config.se_ratio)} if config.se != "none" else {}
        return cls(
            config.dim,
            config.mixer,
            sizes=(inner, inner),
            d_state=config.d_state,
            d_conv=config.d_conv,
            step_scale=config.step_scale,
            gated=True,
            squeeze=nn.ModuleDict(found),
        )

    @classmethod
    def for_mambavision(cls, config: MambaVisionConfig, stage: int, block: int) -> LinearMixer:
        """Build the mixer of a block of MambaVision."""
        sizes = (config.width(stage, block, "x"), config.width(stage, block, "z"))
        return cls(
            config.stage_dim(stage),
            config.mixer,
            sizes=sizes,
            d_state=config.d_state,
            d_conv=config.d_conv,
            step_scale=config.step_scale,
            gated=False,
        )

    def forward(self, tokens: Tensor, grid: Any = None, skip: int | None = None) -> Tensor:
        """Map (B, L, C) to the same; `grid` is for the selective mixer's sake, `skip` as there."""
        x, z = self.in_proj(tokens).split(self.sizes, -1)
        if not self.gated:
            x = depthwise_conv1d(x, self.conv1d_x.weight[:, 0], padding="same", activation="silu")
            z = depthwise_conv1d(z, self.conv1d_z.weight[:, 0], padding="same", activation="silu")
            return self.out_proj(torch.cat([self.ssm(x, step_scale=self.step_scale).to(z.dtype), z], -1))
        x = depthwise_conv1d(x, self.conv1d.weight[:, 0], self.conv1d.bias, padding="same", activation="silu")
        if isinstance(self.ssm, Mamba2Scan):
            y = self.ssm(x, step_scale=self.step_scale, z=z)
        else:
            y = self.ssm(x, step_scale=self.step_scale) * F.silu(z)
        y = self.squeeze["inner"](y, skip) if "inner" in self.squeeze else y
        y = self.out_proj(y)
        return self.squeeze["output"](y, skip) if "output" in self.squeeze else y
