"""The blocks of MambaVision, with free sizes: convolutions, and scan or attention followed by a feed-forward part.

B batch, C channels of the stage, L tokens of a window, X and Z the two halves of a scan mixer, N states, R rank.
"""

from __future__ import annotations

import math

import torch
from ssm_kernels import depthwise_conv1d, selective_scan
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MambaVisionConfig
from .mixer import draw_steps, first_rates, wide
from .squeeze import SqueezeTokens

Place = tuple[int, int, int, int] | None  # windows down, windows across, height, width of the map before padding


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, GELU (tanh form) between, added to the input."""

    gamma: nn.Parameter | None

    def __init__(self, config: MambaVisionConfig, stage: int, block: int, rate: float) -> None:
        super().__init__()
        dim, inner = config.stage_dim(stage), config.width(stage, block, "inner")
        self.conv1 = make_conv(config, dim, inner)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = make_conv(config, inner, dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.register_parameter("gamma", None)
        self.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, x: Tensor, place: Place = None) -> Tensor:
        """Map (B, C, H, W) to the same."""
        y = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        y = self.norm2(self.conv2(y))
        if self.gamma is not None:
            y = y * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(y)


def make_conv(config: MambaVisionConfig, channels: int, out: int) -> nn.Module:
    """Return a 3 x 3 convolution, full, or one for each channel followed by one of single pixels."""
    if config.conv_blocks == "full":
        return nn.Conv2d(channels, out, 3, padding=1)
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(channels, out, 1))


class ScanMixer(nn.Module):
    """Half of the channels through a selective scan, half beside it, both through a centred convolution and SiLU.

    Parameter names and shapes are those of MambaVision: in_proj.weight (X + Z, C), conv1d_x.weight (X, 1, k),
    conv1d_z.weight (Z, 1, k), x_proj.weight (R + 2 N, X), dt_proj.{weight (X, R), bias}, A_log (X, N), D (X),
    out_proj.weight (C, X + Z).

    Args:
        dim: C.
        x: X.
        z: Z.
        d_state: N.
        d_conv: k.
        rank: R.
        bias_twice: Add the bias of the steps twice, as the published weights were trained.
        gates: Give the channels of both halves a factor before out_proj, `gate_x` and `gate_z`.

    Source: Hatamizadeh and Kautz 2024, arXiv:2407.08083, equation (6).
    """

    gate_x: nn.Parameter | None
    gate_z: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        *,
        x: int,
        z: int,
        d_state: int = 8,
        d_conv: int = 3,
        rank: int,
        bias_twice: bool = True,
        gates: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.bias_twice, self.d_state = (x, z), bias_twice, d_state
        self.in_proj = nn.Linear(dim, x + z, bias=False)
        self.conv1d_x = nn.Conv1d(x, x, d_conv, groups=x, padding="same", bias=False)
        self.conv1d_z = nn.Conv1d(z, z, d_conv, groups=z, padding="same", bias=False)
        self.x_proj = nn.Linear(x, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, x)
        self.dt_proj.keeps_bias = not bias_twice  # pyright: ignore[reportArgumentType]  # published weights started at 0
        draw_steps(self.dt_proj)
        self.A_log = nn.Parameter(first_rates(x, d_state))
        self.D = nn.Parameter(torch.ones(x))
        self.out_proj = nn.Linear(x + z, dim, bias=False)
        self.register_parameter("gate_x", nn.Parameter(torch.ones(x)) if gates else None)
        self.register_parameter("gate_z", nn.Parameter(torch.ones(z)) if gates else None)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L, C) to the same; the scan goes from the first token to the last."""
        x, z = self.in_proj(tokens).split(self.sizes, -1)
        x = depthwise_conv1d(x, self.conv1d_x.weight[:, 0], padding="same", activation="silu")
        z = depthwise_conv1d(z, self.conv1d_z.weight[:, 0], padding="same", activation="silu")
        low, B, C = self.x_proj(x).split([self.dt_proj.in_features, self.d_state, self.d_state], -1)
        dt = F.linear(low, self.dt_proj.weight)
        bias = wide(self.dt_proj.bias) * (2 if self.bias_twice else 1)
        y = selective_scan(x, dt, -wide(self.A_log).exp(), B, C, wide(self.D), dt_bias=bias, dt_softplus=True)
        if self.gate_x is not None and self.gate_z is not None:
            y, z = y * self.gate_x.to(y.dtype), z * self.gate_z.to(z.dtype)
        return self.out_proj(torch.cat([y, z], -1))


class Attention(nn.Module):
    """Attention among all tokens of a window.

    Parameter names as published: qkv.{weight (3 * heads * head_dim, C), bias}, proj.{weight (C, heads * head_dim),
    bias}; rows of qkv are ordered q, k, v, with the heads inside each.
    """

    gate: nn.Parameter | None

    def __init__(self, dim: int, *, heads: int, head_dim: int, gates: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.register_parameter("gate", nn.Parameter(torch.ones(heads)) if gates else None)

    def heads_of(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, (B, L, heads, head_dim) each."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Project what the heads found: (..., heads, head_dim) to (..., C)."""
        if self.gate is not None:
            y = y * self.gate.to(y.dtype).unsqueeze(-1)
        return self.proj(y.flatten(-2))

    def forward(self, tokens: Tensor, place: Place = None) -> Tensor:
        """Map (B, L, C) to the same."""
        q, k, v = (x.transpose(1, 2) for x in self.heads_of(tokens))
        return self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


class Mlp(nn.Module):
    """Two linear layers with exact GELU between."""

    gate: nn.Parameter | None

    def __init__(self, dim: int, hidden: int, *, gates: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.register_parameter("gate", nn.Parameter(torch.ones(hidden)) if gates else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same."""
        y = F.gelu(self.fc1(x))
        return self.fc2(y if self.gate is None else y * self.gate.to(y.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm of any input type with weights of another: a GPU takes both in one type only."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., C) to the same; the mean and deviation are taken in float32."""
        if input.dtype == self.weight.dtype or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class HybridBlock(nn.Module):
    """Normalise, mix the tokens of a window, add; normalise, feed forward, add."""

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(self, config: MambaVisionConfig, stage: int, block: int, rate: float) -> None:
        super().__init__()
        dim = config.stage_dim(stage)
        self.norm1 = LayerNorm(dim)
        self.attends = config.is_attention(stage, block)
        self.mixer = make_attention(config, stage, block) if self.attends else make_scan(config, stage, block)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, config.width(stage, block, "hidden"), gates=config.gates)
        self.se = SqueezeTokens(dim, config.se_ratio) if config.se == "output" and not self.attends else None
        for name in ("gamma_1", "gamma_2"):
            first = nn.Parameter(torch.full((dim,), config.layer_scale)) if config.layer_scale else None
            self.register_parameter(name, first)
        self.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, x: Tensor, place: Place = None) -> Tensor:
        """Map (B * windows, L, C) to the same."""
        normed = self.norm1(x).to(x.dtype)
        y = self.mixer(normed, place) if self.attends else self.mixer(normed)
        if self.se is not None:
            y = self.se(y)
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y).to(x.dtype)
        y = self.mlp(self.norm2(x).to(x.dtype))
        return x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y).to(x.dtype)


def make_attention(config: MambaVisionConfig, stage: int, block: int) -> Attention:
    """Build the attention of one block."""
    dim = config.stage_dim(stage)
    heads, head_dim = config.width(stage, block, "heads"), dim // config.heads[stage]
    if config.attention == "window":
        return Attention(dim, heads=heads, head_dim=head_dim, gates=config.gates)
    from .sliding import SlidingAttention

    first = math.ceil(config.depths[stage] / 2)
    shift = config.windows[stage] // 2 if config.attention == "shifted" and (block - first) % 2 else 0
    return SlidingAttention(
        dim,
        heads=heads,
        head_dim=head_dim,
        gates=config.gates,
        kind=config.attention,
        window=config.windows[stage],
        shift=shift,
        reach=config.reach,
    )


def make_scan(config: MambaVisionConfig, stage: int, block: int) -> nn.Module:
    """Build the scan mixer of one block."""
    dim = config.stage_dim(stage)
    if config.mixer != "mamba":
        from .linear import LinearMixer

        return LinearMixer.for_mambavision(config, stage, block)
    return ScanMixer(
        dim,
        x=config.width(stage, block, "x"),
        z=config.width(stage, block, "z"),
        d_state=config.d_state,
        d_conv=config.d_conv,
        rank=math.ceil(dim / 16),
        bias_twice=config.dt_bias_twice,
        gates=config.gates,
    )


def make_rates(config: MambaVisionConfig) -> list[float]:
    """Return the rate of stochastic depth of every block: from 0 up in equal steps."""
    depth = sum(config.depths)
    return [config.drop_path * i / max(1, depth - 1) for i in range(depth)]
