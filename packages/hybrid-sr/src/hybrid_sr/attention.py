"""Window attention in plain PyTorch, and the variants of the overlapping attention that were tried and dropped.

B batch, H height, W width, C channels, h heads, d head dim, n windows, Q queries and K keys of a window. The fused
operator of ssm_kernels has no place for extra keys or another softmax: those scores stand in memory here.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache, partial

import torch
from ssm_kernels import window_attention
from ssm_kernels.nn.layer_norm import LayerNorm
from ssm_kernels.nn.window import OverlappingWindowAttention, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F


def eager_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    key_window: int,
    shift: int = 0,
    bias_table: Tensor | None = None,
    scale: float | None = None,
    clip: float = 0.0,
    registers: Tensor | None = None,
) -> Tensor:
    """Compute `ssm_kernels.window_attention` by matrix products and a softmax on whole score matrices.

    Args:
        q: Queries, (B, H, W, h, d), H and W multiples of `window`.
        k: Keys, (B, H, W, h, d), or (B, H, W, 1, d) that all heads share.
        v: Values, the shape of `k`.
        window: Side of a query window.
        key_window: Side of the square of keys around it.
        shift: Of the windows, cyclic; only with `key_window` equal to `window`.
        bias_table: ((window + key_window - 1)^2, h), rows as in `ssm_kernels.window_attention`.
        scale: Factor of the scores; None means d ** -0.5.
        clip: Weights of less than about this share of the uniform weight 1 / K become zero: with g = clip / K the
            softmax p becomes max(0, (1 + g) p - g).
        registers: Keys and values that every window sees besides its own, (2, R, h or 1, d), without position bias.

    Returns:
        (B, H, W, h, d) in the dtype of `q`, which is also that of the scores.

    Source: clipped softmax: Bondarenko et al. 2023, arXiv:2306.12929; registers: Darcet et al. 2024, arXiv:2309.16588.
    """
    batch, height, width, heads, dim = q.shape
    rows, columns = height // window, width // window
    factor = float(dim) ** -0.5 if scale is None else scale
    missing = -dim % 8 if q.is_cuda else 0  # aligned rows let the products use the tensor cores
    q, k, v = (F.pad(x, (0, missing)) if missing else x for x in (q, k, v))
    if shift:
        q, k, v = (x.roll((-shift, -shift), (1, 2)) for x in (q, k, v))
    border = (key_window - window) // 2
    if border:
        k, v = (F.pad(x, (0, 0, 0, 0) + (border,) * 4) for x in (k, v))
    queries, keys, values = (
        _windows(q, window, window),
        _windows(k, key_window, window),
        _windows(v, key_window, window),
    )
    with nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
        scores = (queries * factor) @ keys.mT  # (n, h, Q, K)
        if bias_table is not None:
            scores = scores + _bias(bias_table, window, key_window).to(scores.dtype)
        if shift:
            mask = _shift_mask(height, width, window, shift, scores.device).to(scores.dtype)
            scores = (scores.unflatten(0, (batch, -1)) + mask[:, None]).flatten(0, 1)
        if registers is not None:
            extra = F.pad(registers.to(scores.dtype), (0, missing)).transpose(1, 2)  # (2, h or 1, R, d)
            scores = torch.cat([(queries * factor) @ extra[0].mT, scores], -1)
            values = torch.cat([extra[1].expand(len(values), -1, -1, -1), values], 2)
        weights = scores.softmax(-1)
        if clip:
            cut = clip / weights.shape[-1]
            weights = ((1 + cut) * weights - cut).clamp(min=0)
        out = weights @ values
    out = out[..., :dim].unflatten(0, (batch, rows, columns)).unflatten(4, (window, window))
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads, dim)
    return out.roll((shift, shift), (1, 2)) if shift else out


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """Copy (B, H, W, h, d) into its windows, (n, h, size^2, d); they overlap where size > step."""
    return x.unfold(1, size, step).unfold(2, size, step).permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)


def _bias(table: Tensor, window: int, key_window: int) -> Tensor:
    """Look up the bias of every pair of query and key, (h, Q, K)."""
    rows = _bias_rows(window, key_window, table.device)
    # index_select's gradient adds in place; that of table[rows] sorts first, which takes longer than the attention
    return table.index_select(0, rows.flatten()).unflatten(0, rows.shape).permute(2, 0, 1)


@lru_cache(maxsize=16)
def _bias_rows(window: int, key_window: int, device: torch.device) -> Tensor:
    """Number the row of the table for every pair of query and key, (Q, K)."""
    with torch.inference_mode(False):  # kept, also for training
        reach, border = (window + key_window) // 2 - 1, (key_window - window) // 2
        queries = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        keys = torch.cartesian_prod(torch.arange(key_window), torch.arange(key_window)) - border
        offset = keys[None] - queries[:, None]
        if key_window == window:
            offset = -offset
        row = (offset[..., 0] + reach) * (window + key_window - 1) + offset[..., 1] + reach
        return row.to(device)


@lru_cache(maxsize=16)
def _shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Give -inf to pairs of pixels that only the wrap-around made neighbours, (windows of a picture, Q, K)."""
    with torch.inference_mode(False):
        parts = []
        for size in (height, width):
            position = torch.arange(size)
            parts.append((position >= size - window).long() + (position >= size - shift).long())
        region = 3 * parts[0][:, None] + parts[1][None, :]
        region = region.unfold(0, window, window).unfold(1, window, window).flatten(2).flatten(0, 1)  # (windows, Q)
        apart = region[:, :, None] != region[:, None, :]
        return torch.zeros(apart.shape).masked_fill(apart, float("-inf")).to(device)


class VariedOverlapAttention(OverlappingWindowAttention):
    """The overlapping attention with registers, a clipped softmax, or one key and value head for all.

    Registers and the clipped softmax keep the scores in memory (`eager_window_attention`); shared keys alone run in
    the fused operator.

    Args:
        dim: Channels C.
        heads: Attention heads.
        window: Side of a query window.
        overlap_ratio: Keys' windows are this much larger.
        position_bias: Learn a table.
        registers: Learned keys and values that every window sees besides its own.
        clip: Of the softmax, as in `eager_window_attention`.
        multi_query: One head of keys and values for all heads of queries (Shazeer 2019, arXiv:1911.02150).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        *,
        overlap_ratio: float,
        position_bias: bool,
        registers: int,
        clip: float,
        multi_query: bool,
    ) -> None:
        super().__init__(dim, heads, window, overlap_ratio=overlap_ratio, position_bias=position_bias)
        self.clip, self.key_heads = clip, 1 if multi_query else heads
        each = dim // heads
        if multi_query:
            self.qkv = nn.Linear(dim, dim + 2 * each)
        self.registers = None
        if registers:
            self.registers = nn.Parameter(torch.empty(2, registers, self.key_heads, each))
            nn.init.trunc_normal_(self.registers, std=0.02)
        self.reset_parameters()

    def _attend(self, x: Tensor, bias_table: Tensor | None) -> Tensor:
        each = self.proj.in_features // self.heads
        widths = [self.heads * each, self.key_heads * each, self.key_heads * each]
        q, k, v = (part.unflatten(-1, (-1, each)) for part in self.qkv(x).split(widths, -1))
        if self.clip or self.registers is not None:
            y = eager_window_attention(
                q,
                k,
                v,
                window=self.window,
                key_window=self.key_window,
                bias_table=bias_table,
                scale=self.scale,
                clip=self.clip,
                registers=self.registers,
            )
        else:
            k, v = k.expand(q.shape), v.expand(q.shape)
            y = window_attention(
                q, k, v, window=self.window, key_window=self.key_window, bias_table=bias_table, scale=self.scale
            )
        return self.proj(y.flatten(-2))


def use_eager_attention(model: nn.Module) -> int:
    """Make every window attention of a network compute in plain PyTorch, to compare with; return how many there are."""
    found = [m for m in model.modules() if isinstance(m, WindowAttention | OverlappingWindowAttention)]
    for module in found:
        module._attend = partial(_attend_eagerly, module)
    return len(found)


def use_pytorch_norms(model: nn.Module) -> int:
    """Make every norm of a network PyTorch's own, its sum a pass of its own, to compare with; return how many."""
    found = [m for m in model.modules() if isinstance(m, LayerNorm)]
    for module in found:
        module.forward = partial(_normalise_as_pytorch, module)
    return len(found)


def _normalise_as_pytorch(
    module: LayerNorm, x: Tensor, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    y = F.layer_norm(total, module.normalized_shape, module.weight, module.bias, module.eps)
    return y if residual is None else (y, total)


def _attend_eagerly(
    module: WindowAttention | OverlappingWindowAttention, x: Tensor, bias_table: Tensor | None
) -> Tensor:
    q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).unbind(3)
    y = eager_window_attention(
        q,
        k,
        v,
        window=module.window,
        key_window=module.key_window,
        shift=module.shift,
        bias_table=bias_table,
        scale=module.scale,
    )
    return module.proj(y.flatten(-2))
