"""Vim's mixer with free sizes: any inner width, any number of states in either direction, or one direction only.

B batch, L tokens, C channels of the residual stream, E inner channels, N states, R rank of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from ssm_kernels import depthwise_conv1d, selective_scan, selective_scan_bidirectional
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Gate, Init, TokenConv
from .squeeze import SqueezeTokens

FIRST_STEPS = 1e-3, 0.1  # log-uniform
LEAST_STEP = 1e-4
ALIGNED = 8  # half-precision numbers in 16 bytes


@dataclass(frozen=True)
class Derived:
    """What one direction derives from its weights: x_proj's and dt_proj's with the rank padded, and A."""

    x_weight: Tensor
    dt_weight: Tensor
    A: Tensor


class VimMixer(nn.Module):
    """Two selective scans over the tokens, one from each end, between a projection in and a projection out.

    Parameter names and shapes are those of Vim: in_proj.weight (2 E, C); conv1d.{weight (E, 1, k), bias}, x_proj.weight
    (R + 2 N, E), dt_proj.{weight (E, R), bias}, A_log (E, N), D (E) for the forward direction and conv1d_b, x_proj_b,
    dt_proj_b, A_b_log, D_b for the other; out_proj.weight (C, E). A direction without states has none of its names.

    Args:
        dim: C.
        inner: E.
        states: N of the forward and of the backward direction; 0 leaves a direction out.
        d_conv: k, taps of the convolutions.
        rank: R.
        average: Halve the sum of the directions (also when only one is left).
        bias: Give in_proj and out_proj a bias.
        layer_scale: Give the output a factor for each channel, `gamma`.
        gates: Give each inner channel a factor before out_proj, `gate`, 1 at first.
        se: Squeeze-and-excitation of the output, of the inner channels before out_proj, or none.
        se_ratio: Channels over the squeezed width.
        token_conv: "causal" is Vim's; "depthwise2d" convolves the grid of tokens 3 x 3 (conv2d, conv2d_b), past the
            class token.
        init: First values of the backward steps, see `VimConfig.init`.

    Source: Zhu et al. 2024, arXiv:2401.09417, algorithm 1.
    """

    gate: nn.Parameter | None
    gamma: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        *,
        inner: int,
        states: tuple[int, int] = (16, 16),
        d_conv: int = 4,
        rank: int,
        average: bool = True,
        bias: bool = False,
        layer_scale: bool = False,
        gates: bool = False,
        se: Gate = "none",
        se_ratio: int = 4,
        token_conv: TokenConv = "causal",
        init: Init = "fixed",
    ) -> None:
        super().__init__()
        self.inner, self.states, self.average, self.token_conv = inner, states, average, token_conv
        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        for suffix, log_name, state in (("", "A_log", states[0]), ("_b", "A_b_log", states[1])):
            if not state:
                continue
            if token_conv == "causal":
                conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
                self.add_module(f"conv1d{suffix}", conv)
            else:
                self.add_module(f"conv2d{suffix}", nn.Conv2d(inner, inner, 3, groups=inner, padding=1))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * state, bias=False))
            dt_proj = nn.Linear(rank, inner)
            self.add_module(f"dt_proj{suffix}", dt_proj)
            self.register_parameter(log_name, nn.Parameter(first_rates(inner, state)))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))
            if suffix == "" or init == "fixed":
                draw_steps(dt_proj)
            else:
                nn.init.zeros_(dt_proj.bias)
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        self.register_parameter("gamma", nn.Parameter(torch.ones(dim)) if layer_scale else None)
        self.register_parameter("gate", nn.Parameter(torch.ones(inner)) if gates else None)
        self._frozen: dict[str, Derived] = {}
        self.se_inner = SqueezeTokens(inner, se_ratio) if se == "inner" else None
        self.se_output = SqueezeTokens(dim, se_ratio) if se == "output" else None

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, skip: int | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, L, C).
            grid: Rows and columns of the tokens beside the class token; only token_conv="depthwise2d" asks.
            skip: Index of the class token; None if there is none, or if it shall take part in every squeeze.

        Returns:
            (B, L, C), each token having seen all tokens.
        """
        inner, z = self.in_proj(x).chunk(2, -1)
        y = self.scan(inner, z, grid)
        if self.gate is not None:
            y = y * self.gate.to(y.dtype)
        if self.se_inner is not None:
            y = self.se_inner(y, skip)
        y = self.out_proj(y)
        if self.gamma is not None:
            y = y * self.gamma.to(y.dtype)
        return y if self.se_output is None else self.se_output(y, skip)

    def scan(self, inner: Tensor, z: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Run what is between the projections: (B, L, E) twice to (B, L, E)."""
        ahead = self._direction(inner, "", grid) if self.states[0] else None
        back = self._direction(inner, "_b", grid) if self.states[1] else None
        if ahead is not None and back is not None:
            return selective_scan_bidirectional(*ahead, *back, z=z, dt_softplus=True, average=self.average)
        x, dt, A, B, C, D, bias = cast("tuple[Tensor, ...]", ahead if ahead is not None else back)
        y = selective_scan(x, dt, A, B, C, D, z=z, dt_bias=bias, dt_softplus=True, reverse=ahead is None)
        return 0.5 * y if self.average else y

    def _direction(self, inner: Tensor, suffix: str, grid: tuple[int, int] | None) -> tuple[Tensor, ...]:
        """Return one direction's x, dt, A, B, C, D, dt_bias; dt has no bias yet, the scan adds it in float32."""
        if self.token_conv == "causal":
            conv = self.get_submodule(f"conv1d{suffix}")
            weight, bias = cast(Tensor, conv.weight), cast(Tensor, conv.bias)
            x = depthwise_conv1d(inner, weight[:, 0], bias, activation="silu", reverse=suffix == "_b")
        else:
            assert grid is not None
            x = F.silu(convolve_grid(self.get_submodule(f"conv2d{suffix}"), inner, grid))
        state = self.states[1 if suffix else 0]
        D, bias = self.get_parameter(f"D{suffix}"), self.get_submodule(f"dt_proj{suffix}").bias
        frozen = None if torch.is_grad_enabled() else self._frozen.get(suffix)
        if frozen is not None:
            made, dt_weight, A = F.linear(x, frozen.x_weight), frozen.dt_weight, frozen.A
        else:
            dt_weight = cast(Tensor, self.get_submodule(f"dt_proj{suffix}").weight)
            made, A = self.get_submodule(f"x_proj{suffix}")(x), self._rates(suffix)
        low, B, C = made.split([dt_weight.shape[1], state, state], -1)
        return x, F.linear(low, dt_weight), A, B, C, wide(D), wide(cast(Tensor, bias))

    def _rates(self, suffix: str) -> Tensor:
        return -wide(self.get_parameter("A_b_log" if suffix else "A_log")).exp()

    @torch.no_grad()
    def freeze(self) -> None:
        """Derive once what every call derives from the weights, for inference with weights that stay as they are.

        The rank is padded with zeros, so that rows of x_proj's output, and B and C in them, begin where loads of 16
        bytes can; the numbers are the same. Calls that record gradients do not use it; training mode, moving or casting
        the network, and loading weights undo it.
        """
        for suffix, state in zip(("", "_b"), self.states, strict=True):
            if state:
                x_weight = self.get_submodule(f"x_proj{suffix}").weight
                dt_weight = cast(Tensor, self.get_submodule(f"dt_proj{suffix}").weight)
                more = -dt_weight.shape[1] % ALIGNED
                low, rest = cast(Tensor, x_weight).tensor_split([dt_weight.shape[1]])
                x_weight = torch.cat([F.pad(low, (0, 0, 0, more)), rest])
                A = self._rates(suffix).mT.contiguous().mT  # as the scan reads it
                self._frozen[suffix] = Derived(x_weight, F.pad(dt_weight, (0, more)), A)

    def melt(self) -> None:
        """Undo `freeze`."""
        self._frozen.clear()

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch; training undoes `freeze`."""
        if mode:
            self.melt()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.melt()  # the network is moved or cast
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.melt()
        super()._load_from_state_dict(*args, **kwargs)


def convolve_grid(conv: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Convolve (B, L, E) on the grid of its tokens; a class token in the middle is passed by unchanged."""
    patches = grid[0] * grid[1]
    if tokens.shape[1] == patches:
        return conv(tokens.mT.unflatten(2, grid)).flatten(2).mT
    middle = patches // 2
    others = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
    y = conv(others.mT.unflatten(2, grid)).flatten(2).mT
    return torch.cat([y[:, :middle], tokens[:, middle : middle + 1], y[:, middle:]], 1)


def first_rates(channels: int, states: int) -> Tensor:
    """Return log(1), ..., log(N) for every channel, (E, N): S4D's real spectrum."""
    return torch.arange(1, states + 1, dtype=torch.float32).log().repeat(channels, 1)


def draw_steps(dt_proj: nn.Linear) -> None:
    """Draw the bias so that the first steps are log-uniform in [0.001, 0.1], weights uniform in +-rank^-0.5."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    low, high = (math.log(step) for step in FIRST_STEPS)
    with torch.no_grad():
        step = torch.empty_like(dt_proj.bias).uniform_(low, high).exp_().clamp_(min=LEAST_STEP)
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


def wide(parameter: Tensor) -> Tensor:
    """Return a parameter of the recurrence in float32, or float64 if it is that."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))
