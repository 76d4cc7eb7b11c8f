"""Attention in the windows of a picture, as modules with the parameter names of the published checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.checks import refuse
from ..ops.dispatch import Impl
from ..ops.window_attention import window_attention


class _WindowAttention(nn.Module):
    """Projections, position bias and the call of the operator: what both kinds of window attention share."""

    relative_position_bias_table: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        key_window: int,
        shift: int,
        qkv_bias: bool,
        position_bias: bool,
        scale: float | None,
        impl: Impl,
    ):
        super().__init__()
        if heads < 1 or dim % heads:
            wanted = f"a multiple of heads = {heads}"
            refuse(type(self).__name__, "dim", wanted, dim, "every head has dim / heads channels")
        self.heads, self.window, self.key_window, self.shift = heads, window, key_window, shift
        self.scale = scale
        self.impl: Impl = impl
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        table = nn.Parameter(torch.empty((window + key_window - 1) ** 2, heads)) if position_bias else None
        self.register_parameter("relative_position_bias_table", table)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and table from a normal of deviation 0.02 cut at +-2, and set biases to zero (Swin)."""
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def extra_repr(self) -> str:
        """Show the geometry when the module is printed."""
        return f"heads={self.heads}, window={self.window}, key_window={self.key_window}, shift={self.shift}"

    def _attend(self, x: Tensor, bias_table: Tensor | None) -> Tensor:
        if x.dim() != 4 or x.shape[-1] != self.qkv.in_features:
            wanted = f"(B, H, W, {self.qkv.in_features})"
            refuse(type(self).__name__, "x", wanted, tuple(x.shape), "channels come last")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        y = window_attention(
            q,
            k,
            v,
            window=self.window,
            key_window=self.key_window,
            shift=self.shift,
            bias_table=bias_table,
            scale=self.scale,
            impl=self.impl,
        )
        return self.proj(y.flatten(-2))


class WindowAttention(_WindowAttention):
    """Multi-head attention inside (shifted) windows, without norm, residual or MLP.

    Keys of the state dict: qkv.{weight,bias}, proj.{weight,bias}, relative_position_bias_table
    ((2 * window - 1)^2, heads), as in Swin, SwinIR and HAT; rows of the table in their order (query minus key).

    Args:
        dim: Channels C of the input, a multiple of `heads`.
        heads: Attention heads.
        window: Side of a window in pixels.
        shift: Move the windows by this many pixels, 0 <= shift < window; pixels of opposite borders stay apart.
        qkv_bias: Give the projection to queries, keys and values a bias.
        position_bias: Learn a relative position bias per head.
        scale: Factor of the scores; None means (dim / heads) ** -0.5.
        impl: Implementation of `ssm_kernels.window_attention`.

    Raises:
        ValueError: `dim` is no multiple of `heads`, or in `forward` a shape is wrong.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        *,
        shift: int = 0,
        qkv_bias: bool = True,
        position_bias: bool = True,
        scale: float | None = None,
        impl: Impl = "auto",
    ):
        super().__init__(dim, heads, window, window, shift, qkv_bias, position_bias, scale, impl)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C); H and W are multiples of the window."""
        return self._attend(x, self.relative_position_bias_table)


class OverlappingWindowAttention(_WindowAttention):
    """Attention of window queries to the keys of a larger window around them (HAT's OCAB), without norm or MLP.

    The frame outside the picture is zeros that take part in the softmax. Keys of the state dict: qkv.{weight,bias},
    proj.{weight,bias}, relative_position_bias_table ((window + key_window - 1)^2, heads). A row of the table is the
    true offset, key minus query: side * (dy + r) + dx + r, with side = window + key_window - 1 and
    r = (window + key_window) / 2 - 1. HAT's published tables are rotated against it: load
    `table.roll((key_window - 2) * (side + 1), 0)`.

    Args:
        dim: Channels C of the input, a multiple of `heads`.
        heads: Attention heads.
        window: Side of a query window in pixels.
        overlap_ratio: The keys' window is this much larger: key_window = window + int(window * overlap_ratio), which
            must exceed `window` by an even number.
        qkv_bias: Give the projection to queries, keys and values a bias.
        position_bias: Learn a relative position bias per head.
        scale: Factor of the scores; None means (dim / heads) ** -0.5.
        impl: Implementation of `ssm_kernels.window_attention`.

    Raises:
        ValueError: `dim` is no multiple of `heads`, the two windows do not fit, or in `forward` a shape is wrong.

    Source: Chen et al. 2023, arXiv:2205.04437, section 3.1.3.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        *,
        overlap_ratio: float = 0.5,
        qkv_bias: bool = True,
        position_bias: bool = True,
        scale: float | None = None,
        impl: Impl = "auto",
    ):
        key_window = window + int(window * overlap_ratio)
        if key_window <= window or (key_window - window) % 2:
            remedy = f"window {window} would see keys of {key_window} pixels; the overlap on both sides is the same"
            refuse("OverlappingWindowAttention", "window * overlap_ratio", "even and positive", overlap_ratio, remedy)
        super().__init__(dim, heads, window, key_window, 0, qkv_bias, position_bias, scale, impl)

    def forward(self, x: Tensor, bias_table: Tensor | None = None) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C).

        Args:
            x: Input, (B, H, W, C); H and W are multiples of the window.
            bias_table: Position bias to use in place of the module's own, ((window + key_window - 1)^2, heads), for
                example one that a small network generates from the offsets.
        """
        return self._attend(x, self.relative_position_bias_table if bias_table is None else bias_table)
