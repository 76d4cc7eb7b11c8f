"""Attention of every token to its neighbours as a module: projections and the call of the operator."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..ops.checks import refuse
from ..ops.dispatch import Impl
from ..ops.sliding_window_attention import sliding_window_attention


class SlidingWindowAttention(nn.Module):
    """Multi-head attention to a band of a sequence or a square of a picture, without norm, residual or MLP.

    Keys of the state dict: qkv.{weight,bias}, proj.{weight,bias}; the outputs of qkv are queries, keys and values,
    each with one head after the other.

    Args:
        dim: Channels C of the input, a multiple of `heads`.
        heads: Attention heads.
        window: With `ndim` 1 how far a token sees to either side, with `ndim` 2 the side of the square that it sees.
        ndim: 1 for sequences (B, L, C), 2 for pictures (B, H, W, C).
        qkv_bias: Give the projection to queries, keys and values a bias.
        impl: Implementation of `ssm_kernels.sliding_window_attention`.

    Raises:
        ValueError: `dim` is no multiple of `heads`, `ndim` is neither, or in `forward` a shape is wrong.

    Source: Beltagy et al. 2020, arXiv:2004.05150 (band); Hassani et al. 2023, arXiv:2204.07143 (neighbourhood).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        *,
        ndim: Literal[1, 2] = 2,
        qkv_bias: bool = True,
        impl: Impl = "auto",
    ):
        super().__init__()
        if heads < 1 or dim % heads:
            wanted = f"a multiple of heads = {heads}"
            refuse("SlidingWindowAttention", "dim", wanted, dim, "every head has dim / heads channels")
        if ndim not in (1, 2):
            refuse("SlidingWindowAttention", "ndim", "1 or 2", ndim, "1 is for sequences, 2 for pictures")
        self.heads, self.window = heads, window
        self.ndim: Literal[1, 2] = ndim
        self.impl: Impl = impl
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from a normal of deviation 0.02 cut at +-2, and set biases to zero."""
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def extra_repr(self) -> str:
        """Show the geometry when the module is printed."""
        return f"heads={self.heads}, window={self.window}, ndim={self.ndim}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, C), or (B, H, W, C) with `ndim` 2, to the same shape."""
        if x.dim() != self.ndim + 2 or x.shape[-1] != self.qkv.in_features:
            wanted = f"({'B, L' if self.ndim == 1 else 'B, H, W'}, {self.qkv.in_features})"
            refuse("SlidingWindowAttention", "x", wanted, tuple(x.shape), "channels come last")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        y = sliding_window_attention(q, k, v, window=self.window, ndim=self.ndim, impl=self.impl)
        return self.proj(y.flatten(-2))
