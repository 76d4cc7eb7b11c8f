"""Parts that the networks share: coordinate features, time, decoder, norms, attention. B batch, N points, d axes."""

from __future__ import annotations

import math

import torch
from ssm_kernels.nn import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F


class Fourier(nn.Module):
    """Random Fourier features of coordinates: [sin, cos] of 2 pi f . x. The frequencies are a buffer, not trained.

    Args:
        count: Frequencies.
        dims: d.
        std: Standard deviation of every component, cycles per domain.
        cap: Longer frequency vectors are shortened to this, which keeps features below the grid's Nyquist; None for
            no limit.
        wraps: Which axes are periodic: their components are whole numbers.
    """

    B: Tensor

    def __init__(self, count: int, dims: int, std: float, cap: float | None, wraps: tuple[bool, ...]) -> None:
        super().__init__()
        frequencies = torch.randn(count, dims) * std
        if cap is not None:
            norm = frequencies.norm(dim=-1, keepdim=True)
            frequencies = frequencies * (cap / norm).clamp_max(1)
        wrap = torch.tensor(wraps)
        self.register_buffer("B", torch.where(wrap, frequencies.round(), frequencies))

    def forward(self, coords: Tensor) -> Tensor:
        """(B, N, d) to (B, N, 2 * count), in the dtype of the coordinates."""
        # products and a sum, not a matrix product, which autocast would round: a phase needs all its digits
        turns = sum(coords[..., axis, None] * self.B[:, axis].to(coords.dtype) for axis in range(self.B.shape[1]))
        phase = 2 * math.pi * torch.as_tensor(turns)
        return torch.cat([phase.sin(), phase.cos()], -1)


def time_features(t: Tensor, width: int, scale: float = 1.0) -> Tensor:
    """Sinusoids of time: `width` / 2 frequencies from 1 down to 1e-4, sines then cosines.

    Args:
        t: (B,) in [0, 1].
        width: Even.
        scale: Multiplies t; the origin has 1, which moves few of the features.

    Returns:
        (B, width), in the dtype of t.
    """
    half = width // 2
    exponents = torch.arange(half, device=t.device, dtype=t.dtype) / max(1, half - 1)
    angles = scale * t[:, None] * torch.exp(-math.log(1e4) * exponents)
    return torch.cat([angles.sin(), angles.cos()], -1)


def time_mlp(width: int) -> nn.Sequential:
    """Two affine maps with SiLU between."""
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


def decoder(width: int, channels: int, dropout: float) -> nn.Sequential:
    """Norm and three affine maps: tokens to velocities."""
    return nn.Sequential(
        LayerNorm(width),
        nn.Linear(width, 2 * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, channels),
    )


def feed_forward(width: int, ratio: int, dropout: float) -> nn.Sequential:
    """Pre-norm feed-forward part, without its residual."""
    return nn.Sequential(
        LayerNorm(width),
        nn.Linear(width, ratio * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(ratio * width, width),
        nn.Dropout(dropout),
    )


class RMSNorm(nn.RMSNorm):
    """torch's, with the weight in the dtype of the input, so that autocast takes the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class Attention(nn.Module):
    """Multi-head attention with the parameter names of torch's `nn.MultiheadAttention`, through fused kernels.

    Args:
        width: Of queries, keys and values.
        heads: A divisor of it.
        dropout: Of the attention weights, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, N, width) to (B, M, width); returns (B, N, width)."""
        width = queries.shape[-1]
        q = F.linear(queries, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(context, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(-2))
