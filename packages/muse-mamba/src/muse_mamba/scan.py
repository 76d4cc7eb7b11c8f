"""Selective scans that text may change. B batch, L tokens, d width, Di inner width, N states, R rank of the step.

Every change starts at zero, so that a new model is the same as one without text.
"""

from __future__ import annotations

import math

import torch
from ssm_kernels import depthwise_conv1d, rms_norm, selective_scan
from ssm_kernels.ops.ssd import ssd
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig
from .layers import Attention, Text

DT_MIN, DT_MAX = 1e-3, 0.1  # first steps are log-uniform between them
LARGEST_LOG_RATE = 4.0  # change of log(-A) by the text


def step_bias(count: int) -> Tensor:
    """Return biases whose softplus is log-uniform in [DT_MIN, DT_MAX], (count,)."""
    step = torch.exp(torch.rand(count) * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN))
    return step + torch.log(-torch.expm1(-step))


class Convolution(nn.Module):
    """A causal depthwise convolution with SiLU."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        bound = taps**-0.5
        self.weight = nn.Parameter(torch.empty(channels, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, reverse: bool) -> Tensor:
        """(B, L, channels) to the same; `reverse` sees the tokens behind instead of those before."""
        return depthwise_conv1d(x, self.weight, self.bias, activation="silu", reverse=reverse)


class LowRank(nn.Module):
    """A (Di, N) matrix per text: sum over r of q_r(text) P[r], zero at first."""

    def __init__(self, dim: int, rank: int, inner: int, states: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, rank)
        self.basis = nn.Parameter(torch.zeros(rank, inner, states))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, d) to (B, Di, N), float32."""
        return torch.einsum("br,rdn->bdn", self.query(pooled).float(), self.basis.float())


def _zero_linear(before: int, after: int) -> nn.Linear:
    layer = nn.Linear(before, after, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class DirectedScan(nn.Module):
    """Convolution, projections and scan of one direction, with the place where text may act.

    Args:
        config: Sizes.
        inject: "text-a", "text-b", "text-c", "text-d", "text-state", or "" for a scan without text.
    """

    def __init__(self, config: ModelConfig, inject: str) -> None:
        super().__init__()
        dim, inner, states = config.dim, config.inner, config.d_state
        self.rank, self.states, self.inject = math.ceil(dim / 16), states, inject
        self.conv = Convolution(inner, config.d_conv)
        self.x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(step_bias(inner))
        self.A_log = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.change: nn.Module | None = None
        if inject in ("text-a", "text-state"):
            self.change = LowRank(dim, config.text_rank, inner, states)
        elif inject in ("text-b", "text-c"):
            self.change = _zero_linear(dim, states)
        elif inject == "text-d":
            self.change = _zero_linear(dim, inner)

    def forward(self, x: Tensor, z: Tensor, reverse: bool, mask: Tensor | None, summary: Tensor | None) -> Tensor:
        """Scan.

        Args:
            x: Content half, (B, L, Di).
            z: Gate half, (B, L, Di).
            reverse: Read from the last token to the first.
            mask: (B, L) bool; False for pads, which are neither convolved nor scanned.
            summary: The text as this scan sees it: (B, d) or per token (B, L, d).

        Returns:
            (B, L, Di), gated.
        """
        if mask is not None:
            x = x * mask[..., None]
        u = self.conv(x, reverse)
        if mask is not None:
            u = u * mask[..., None]
        low, B, C = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        dt = F.linear(low, self.dt_proj.weight)
        log_rate, D, start = self.A_log.float(), self.D.float(), None
        extra: Tensor | None = None
        if self.change is not None and summary is not None:
            change: Tensor = self.change(summary)
            if self.inject == "text-a":
                log_rate = log_rate + change.clamp(-LARGEST_LOG_RATE, LARGEST_LOG_RATE)
            elif self.inject == "text-state":
                start = change
            elif self.inject == "text-b":
                B = B + (change if change.ndim == 3 else change[:, None])
            elif self.inject == "text-c":
                C = C + (change if change.ndim == 3 else change[:, None])
            elif change.ndim == 2:
                D = D + change.float()
            else:  # per token: outside the scan, before the gate
                extra = change * u * F.silu(z)
        y = selective_scan(
            u,
            dt,
            -log_rate.exp(),
            B.contiguous(),
            C.contiguous(),
            D,
            z=z,
            dt_bias=self.dt_proj.bias.float(),
            dt_softplus=True,
            initial_state=start,
            reverse=reverse,
        )
        return y if extra is None else y + extra.to(y.dtype)


class TextMamba(nn.Module):
    """A Mamba mixer into which text may be mixed.

    Args:
        config: Sizes and method.
        inject: The method's name where this block sees the text, else "".
        both: Scan from both ends.
    """

    def __init__(self, config: ModelConfig, inject: str = "", *, both: bool | None = None) -> None:
        super().__init__()
        self.config, self.inject = config, inject
        dim, inner = config.dim, config.inner
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        both = config.direction == "bidirectional" if both is None else both
        self.scans = nn.ModuleList(DirectedScan(config, inject) for _ in range(1 + both))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        attends = inject == "attn-xz" or (inject in ("text-b", "text-c", "text-d") and config.summary == "attn")
        self.attend = (
            Attention(dim, config.heads, config.dim_head, zero=inject == "attn-xz", normalise=False)
            if attends
            else None
        )

    def forward(
        self, h: Tensor, text: Text | None = None, *, reverse: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Mix along the sequence: (B, L, d), normalised, to (B, L, d)."""
        xz = self.in_proj(h)
        summary: Tensor | None = None
        if self.inject and text is not None:
            summary = text.pooled if self.attend is None else self.attend(h, text.states, text.keys)
        if self.inject == "attn-xz" and summary is not None:
            times = xz.shape[-1] // summary.shape[-1]
            tiled = self.config.attn_repeat == "tile"
            xz = xz + (summary.repeat(1, 1, times) if tiled else summary.repeat_interleave(times, -1))
        x, z = xz.chunk(2, -1)
        if len(self.scans) == 1:
            return self.out_proj(self.scans[0](x, z, reverse, mask, summary))
        ahead, back = self.scans[0](x, z, False, mask, summary), self.scans[1](x, z, True, mask, summary)
        return self.out_proj((ahead + back) / 2)


class Mamba2(nn.Module):
    """The mixer of Mamba-2: one rate per head, B and C beside x, a normalised gate.

    Args:
        config: Sizes; `head_dim` channels per head.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, states = config.inner, config.d_state
        heads = inner // config.head_dim
        self.sizes, self.heads = [inner, inner + 2 * states, heads], heads
        self.parts = [inner, states, states]
        self.in_proj = nn.Linear(config.dim, sum(self.sizes), bias=False)
        count = 2 if config.direction == "bidirectional" else 1
        self.convs = nn.ModuleList(Convolution(inner + 2 * states, config.d_conv) for _ in range(count))
        self.A_log = nn.Parameter(torch.empty(count, heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(count, heads))
        self.dt_bias = nn.Parameter(step_bias(count * heads).view(count, heads))
        self.norm = nn.RMSNorm(inner)
        self.out_proj = nn.Linear(inner, config.dim, bias=False)

    def forward(self, h: Tensor, *, reverse: bool = False) -> Tensor:
        """Mix along the sequence: (B, L, d), normalised, to (B, L, d)."""
        z, xBC, dt = self.in_proj(h).split(self.sizes, -1)
        ways = [reverse] if len(self.convs) == 1 else [False, True]
        y = torch.stack([self._scan(number, xBC, dt, way) for number, way in enumerate(ways)]).mean(0)
        gated = y.float() * F.silu(z.float())
        eps = torch.finfo(torch.float32).eps
        return self.out_proj(rms_norm(gated, self.norm.weight, eps=eps, dtype=h.dtype))

    def _scan(self, number: int, xBC: Tensor, dt: Tensor, reverse: bool) -> Tensor:
        x, B, C = self.convs[number](xBC, reverse).split(self.parts, -1)
        y = ssd(
            x.unflatten(-1, (self.heads, -1)).contiguous(),
            dt.contiguous(),
            -self.A_log[number].float().exp(),
            B[:, :, None].contiguous(),
            C[:, :, None].contiguous(),
            self.D[number].float(),
            dt_bias=self.dt_bias[number].float(),
            dt_softplus=True,
            reverse=reverse,
        )
        return y.flatten(2)
