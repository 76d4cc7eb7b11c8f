"""SS2D, the two-dimensional state-space mixer of VMamba and Contrast, with its published parameter names and shapes.

B batch, H height, W width, C model width, E inner width, R rank of dt, N state, K = 4 directions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import refuse
from ..ops.dispatch import Impl
from ..ops.selective_scan_2d import DIRECTIONS, selective_scan_2d
from .layer_norm import LayerNorm

K = len(DIRECTIONS)
STEP_RANGE = 1e-3, 1e-1  # of softplus(dt_bias) at the start, Mamba's choice
SMALLEST_STEP = 1e-4
ALIGNED = 8  # a GPU's convolutions and products want channels in multiples: a width of 54 runs as 56, padded with zeros
WIDE_PRODUCT = 256  # inner width E up to which a GPU multiplies by the product of dt's two weights


class SS2D(nn.Module):
    """Mix the pixels of a feature map by a selective scan along rows and columns, forwards and backwards.

    in_proj, 3x3 depthwise convolution, activation, selective scan in 4 directions, LayerNorm, out_proj; no gate. The
    state dict is that of VMamba's SS2D with forward type "v05_noz": in_proj.weight (E, C), conv2d.weight (E, 1, 3, 3)
    and conv2d.bias (E,), x_proj_weight (4, R + 2 N, E), dt_projs_weight (4, E, R), dt_projs_bias (4, E), A_logs
    (4 E, N), Ds (4 E,), out_norm.weight and .bias (E,), out_proj.weight (C, E). The direction axis is in the order
    row, column, row_reversed, column_reversed.

    Args:
        d_model: C, channels in and out.
        d_state: N, states for each channel and direction.
        ssm_ratio: E / C; E is rounded down.
        dt_rank: R. ceil(d_model / 16) if None.
        conv_bias: Whether the depthwise convolution has a bias.
        activation: After the convolution: "gelu" (the exact one) or "silu".
        init: "v2" starts with A = -1, D = 1 and dt weights and biases in [0, 0.1); "v0" is Mamba's: A = -1 .. -N,
            D = 1 and softplus(dt_bias) log-uniform in [0.001, 0.1].
        impl: Passed on to `selective_scan_2d`.

    Raises:
        ValueError: A size is below 1, or `activation` or `init` is unknown.

    Cost: with E = C and N = 1, 2 C^2 + C (8 R + 32) parameters.
    Source: Liu et al. 2024 (VMamba), arXiv:2401.10166, section 4; Contrast, arXiv:2501.13353.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | None = None,
        *,
        conv_bias: bool = True,
        activation: Literal["gelu", "silu"] = "gelu",
        init: Literal["v2", "v0"] = "v2",
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        inner = int(ssm_ratio * d_model)
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        sizes = {"d_model": d_model, "d_state": d_state, "ssm_ratio * d_model": inner, "dt_rank": rank}
        for name, size in sizes.items():
            if size < 1:
                refuse("SS2D", name, "at least 1", size, "the usual d_state and ssm_ratio are 1")
        for name, value, known in (("activation", activation, ("gelu", "silu")), ("init", init, ("v2", "v0"))):
            if value not in known:
                refuse("SS2D", name, "one of " + ", ".join(known), repr(value), "the docstring says what they do")
        self.d_state, self.dt_rank = d_state, rank
        self.impl: Impl = impl
        self.activation, self.init = activation, init
        self.in_proj = nn.Linear(d_model, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.x_proj_weight = nn.Parameter(torch.empty(K, rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(K, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(K, inner))
        self.A_logs = nn.Parameter(torch.empty(K * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(K * inner))
        self.out_norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew, as `init` says."""
        for layer in (self.in_proj, self.conv2d, self.out_norm, self.out_proj):
            layer.reset_parameters()
        bound = self.x_proj_weight.shape[-1] ** -0.5  # nn.Linear's
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1)
        if self.init == "v2":
            self.A_logs.zero_()
            self.dt_projs_weight.uniform_(0, 0.1)
            self.dt_projs_bias.uniform_(0, 0.1)
            return
        self.A_logs.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.A_logs))
        self.dt_projs_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = (math.log(step) for step in STEP_RANGE)
        step = torch.empty_like(self.dt_projs_bias).uniform_(low, high).exp_().clamp_(min=SMALLEST_STEP)
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C), in the dtype of `x` or of autocast; ValueError for another shape."""
        if x.dim() != 4 or x.shape[-1] != self.in_proj.in_features:
            wanted = f"of shape (B, H, W, {self.in_proj.in_features})"
            refuse("SS2D", "x", wanted, tuple(x.shape), "channels come last: x.permute(0, 2, 3, 1)")
        return self._mix(x, -len(self.in_proj.weight) % ALIGNED if x.device.type == "cuda" else 0)

    def _mix(self, x: Tensor, missing: int) -> Tensor:
        """Give what `forward` does, computed with `missing` more inner channels that stay zero."""
        inner = len(self.in_proj.weight)
        in_proj, conv = _padded(self.in_proj.weight, 0, missing), _padded(self.conv2d.weight, 0, missing)
        conv_bias = None if self.conv2d.bias is None else _padded(self.conv2d.bias, 0, missing)
        u = F.linear(x, in_proj).permute(0, 3, 1, 2)  # a channels_last view: no copy
        u = F.conv2d(u, conv, conv_bias, padding=1, groups=inner + missing).permute(0, 2, 3, 1)
        u = F.gelu(u) if self.activation == "gelu" else F.silu(u)
        dt, B, C = self._project(u, missing)
        wide = torch.promote_types(self.A_logs.dtype, torch.float32)
        A = _padded(-torch.exp(self.A_logs.to(wide)).unflatten(0, (K, inner)), 1, missing)
        D = _padded(self.Ds.unflatten(0, (K, inner)), 1, missing)
        y = selective_scan_2d(u, dt, A, B, C, D, _padded(self.dt_projs_bias, 1, missing), impl=self.impl)
        return self.out_proj(self.out_norm(y[..., :inner] if missing else y))

    def _project(self, u: Tensor, missing: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return dt (B, H, W, K, E), and B and C (B, H, W, K, N), of `u` (B, H, W, E), with E padded by `missing`."""
        down, up = _padded(self.x_proj_weight, 2, missing), _padded(self.dt_projs_weight, 1, missing)
        if u.device.type == "cuda" and u.shape[-1] <= WIDE_PRODUCT:
            return self._project_at_once(u, down, up)
        height, width = u.shape[1:3]
        projected = F.linear(u, down.flatten(0, 1)).unflatten(-1, (K, -1))
        low_rank, B, C = projected.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        low_rank = low_rank.flatten(1, 2).transpose(1, 2)  # (B, K, L, R)
        # one product an image: the weight's gradient is summed in B * K parts side by side, not in K long sums
        dt = torch.matmul(low_rank, up.transpose(1, 2))
        return dt.unflatten(2, (height, width)).permute(0, 2, 3, 1, 4), B, C  # each direction contiguous

    def _project_at_once(self, u: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the same from the product of both weights of dt: rows of R = 3 numbers are slow to read on a GPU.

        R is so small that multiplying by (K E, E) instead costs less than writing and reading the low-rank tensor.
        """
        to_low_rank, to_states = down.split((self.dt_rank, 2 * self.d_state), dim=1)
        with torch.autocast(u.device.type, enabled=False):  # rounded once, as the product
            to_dt = up @ to_low_rank.to(up.dtype)
        dt = F.linear(u, to_dt.flatten(0, 1)).unflatten(-1, (K, -1))
        B, C = F.linear(u, to_states.flatten(0, 1)).unflatten(-1, (K, -1)).chunk(2, dim=-1)
        return dt, B, C

    def extra_repr(self) -> str:
        """Name what the sub-modules do not show."""
        return f"d_state={self.d_state}, dt_rank={self.dt_rank}, activation={self.activation!r}, impl={self.impl!r}"


def _padded(x: Tensor, axis: int, missing: int) -> Tensor:
    """Append zeros along an axis: channels that stay zero from `in_proj` to the scan's output."""
    return F.pad(x, (0, 0) * (x.dim() - 1 - axis) + (0, missing)) if missing else x
