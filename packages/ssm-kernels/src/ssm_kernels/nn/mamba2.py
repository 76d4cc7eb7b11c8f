"""The Mamba-2 block's mixer, with the parameter names and shapes of mamba-ssm.

Letters: B batch, L length, C channels, H heads, P channels of a head, N state, G groups, k taps.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse
from ..ops.depthwise_conv1d import depthwise_conv1d
from ..ops.depthwise_conv1d_step import depthwise_conv1d_step
from ..ops.dispatch import Impl
from ..ops.ssd import ssd
from ..ops.ssd_step import ssd_step
from .gated_norm import GatedRMSNorm
from .mamba import DT_FLOOR, check_sequence, wide

State = tuple[Tensor, Tensor]


def initial_dt_bias(heads: int, dt_min: float, dt_max: float) -> Tensor:
    """Draw biases so that the first steps are log-uniform in [dt_min, dt_max], (H,) float32."""
    step = torch.exp(torch.rand(heads) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp_min(DT_FLOOR)
    return step + torch.log(-torch.expm1(-step))  # inverse of softplus


def initial_A_log_of_heads(heads: int, low: float, high: float) -> Tensor:
    """Draw log(-A), A uniform in [-high, -low], (H,) float32."""
    return torch.empty(heads).uniform_(low, high).log()


def check_heads(name: str, d_inner: int, headdim: int, ngroups: int) -> int:
    """Return the number of heads, or refuse sizes that do not divide one another."""
    if headdim < 1 or d_inner % headdim != 0:
        refuse(
            name, "headdim", f"a divisor of expand * d_model = {d_inner}", headdim, "every head has as many channels"
        )
    heads = d_inner // headdim
    if ngroups < 1 or heads % ngroups != 0:
        remedy = "every group serves as many heads"
        refuse(name, "ngroups", f"a divisor of the {heads} heads", ngroups, remedy)
    return heads


class Mamba2(nn.Module):
    """State-space mixer with heads: projection, causal convolution, scan with a rate per head, gated norm, projection.

    Keys of the state dict, with d_inner = expand * d_model and H = d_inner / headdim: in_proj.weight, whose rows are
    z (d_inner), x (d_inner), B (G * N), C (G * N) and dt (H), conv1d.{weight (d_inner + 2 G N, 1, d_conv), bias},
    dt_bias (H), A_log (H), D (H), or (d_inner) with `D_has_hdim`, norm.weight (d_inner), out_proj.weight (C, d_inner):
    checkpoints of mamba-ssm load. Keep A_log, D and dt_bias out of weight decay.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps k of the convolution, 2..8.
        expand: d_inner = expand * d_model.
        headdim: Channels P of a head, a divisor of d_inner.
        ngroups: Groups G of heads that share B and C; the norm has as many.
        A_init_range: First rates -A are uniform in between.
        D_has_hdim: A weight D for every channel and not only for every head.
        rmsnorm: End with a gated norm; False gates the scan's result without one.
        dt_min: Smallest initial step, > 0.
        dt_max: Largest initial step.
        dt_limit: Steps are kept within, after softplus.
        conv_bias: Give the convolution a bias.
        bias: Give in_proj and out_proj a bias.
        impl: Implementation of the scan and the convolution.

    Raises:
        ValueError: Sizes do not divide one another; in `forward`, the input is not (B, L, C), in `step` not (B, C).

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        conv_bias: bool = True,
        bias: bool = False,
        impl: Impl = "auto",
    ):
        super().__init__()
        d_inner = expand * d_model
        heads = check_heads("Mamba2", d_inner, headdim, ngroups)
        self.d_model, self.d_inner, self.d_state, self.headdim, self.ngroups = (
            d_model,
            d_inner,
            d_state,
            headdim,
            ngroups,
        )
        self.dt_limit = dt_limit
        self.impl: Impl = impl
        channels = d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, d_inner + channels + heads, bias=bias)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1, bias=conv_bias)
        self.dt_bias = nn.Parameter(initial_dt_bias(heads, dt_min, dt_max))
        self.A_log = nn.Parameter(initial_A_log_of_heads(heads, *A_init_range))
        self.D = nn.Parameter(torch.ones(d_inner if D_has_hdim else heads))
        self.norm = GatedRMSNorm(d_inner, groups=ngroups) if rmsnorm else None
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    @overload
    def forward(self, x: Tensor, state: State | None = None, *, return_state: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, state: State | None = None, *, return_state: Literal[True]
    ) -> tuple[Tensor, State]: ...

    def forward(
        self, x: Tensor, state: State | None = None, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Mix along the sequence: (B, L, C) to (B, L, C), each step seeing itself and the steps before it.

        Args:
            x: Input.
            state: What came before, from `initial_state`, `step`, or a call with `return_state`. None is nothing.
            return_state: Also return what the next call or `step` starts from: the last k - 1 inputs of the
                convolution (B, channels, k - 1), and the state of the scan (B, H, P, N).
        """
        check_sequence("Mamba2", x, self.d_model)
        z, inner, dt = self._split(self.in_proj(x))
        before, scanned = (None, None) if state is None else state
        mixed = depthwise_conv1d(
            inner,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            initial_state=before,
            impl=self.impl,
        )
        value, B, C = self._heads(mixed)
        dt, bias = self._steps(dt)
        gate = None if self.norm is not None else z.unflatten(-1, (-1, self.headdim))
        y, scanned = ssd(
            value,
            dt,
            -wide(self.A_log).exp(),
            B,
            C,
            self._skip(),
            z=gate,
            dt_bias=bias,
            dt_softplus=bias is not None,
            initial_state=scanned,
            return_final_state=True,
            impl=self.impl,
        )
        y = self._finish(y.flatten(-2), z)
        return (y, (self._last_inputs(inner, before), scanned)) if return_state else y

    def initial_state(self, batch: int) -> State:
        """Return the state in front of the first step, zeros."""
        taps, heads = self.conv1d.kernel_size[0], self.dt_bias.shape[0]
        conv = self.dt_bias.new_zeros(batch, self.conv1d.in_channels, taps - 1)
        return conv, wide(self.dt_bias).new_zeros(batch, heads, self.headdim, self.d_state)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Take one step: x (B, C) and a state to y (B, C) and the next state; steps in a row are `forward`."""
        check_shape("Mamba2", "x", x, [(x.shape[0], self.d_model)], "(B, C)", "x[:, t] is one step of a sequence")
        z, inner, dt = self._split(self.in_proj(x))
        before, scanned = state
        mixed, conv = depthwise_conv1d_step(
            inner, self.conv1d.weight[:, 0], self.conv1d.bias, state=before, activation="silu", impl=self.impl
        )
        value, B, C = self._heads(mixed)
        dt, bias = self._steps(dt)
        y, scanned = ssd_step(
            value,
            dt,
            -wide(self.A_log).exp(),
            B,
            C,
            self._skip(),
            state=scanned,
            z=None if self.norm is not None else z.unflatten(-1, (-1, self.headdim)),
            dt_bias=bias,
            dt_softplus=bias is not None,
            impl=self.impl,
        )
        return self._finish(y.flatten(-2), z), (conv, scanned)

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give z, what is convolved, and dt without its bias."""
        z, inner, dt = projected.split([self.d_inner, self.conv1d.in_channels, self.dt_bias.shape[0]], -1)
        return z, inner, dt

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give x (..., H, P), B and C (..., G, N)."""
        size = self.ngroups * self.d_state
        value, B, C = mixed.split([self.d_inner, size, size], -1)
        B, C = (t.unflatten(-1, (self.ngroups, self.d_state)) for t in (B, C))
        return value.unflatten(-1, (-1, self.headdim)), B, C

    def _steps(self, dt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give dt and its bias for the scan, or finished steps and None where they are limited."""
        bias = wide(self.dt_bias)
        if self.dt_limit == (0.0, math.inf):
            return dt, bias
        return F.softplus(wide(dt) + bias).clamp(*self.dt_limit), None

    def _skip(self) -> Tensor:
        """Give D as the scan takes it."""
        D = wide(self.D)
        return D if D.shape == self.dt_bias.shape else D.unflatten(0, (-1, self.headdim))

    def _finish(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(y if self.norm is None else self.norm(y, z))

    def _last_inputs(self, inner: Tensor, before: Tensor | None) -> Tensor:
        """Give the last k - 1 inputs of the convolution, zeros in front of the first step."""
        reach = self.conv1d.kernel_size[0] - 1
        if before is None:
            before = inner.new_zeros(inner.shape[0], inner.shape[2], reach)
        padded = torch.cat([before.mT.to(inner.dtype), inner], 1)
        return padded[:, padded.shape[1] - reach :].mT
