"""The case of sliding-window attention and its peers: dense attention under a mask, FlexAttention with a block mask."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.sliding_window_attention import sliding_window_attention
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker
from .operators import bound
from .peers import Peers
from .roofline import Rates

OP = "sliding_window_attention"


def sliding_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `sliding_window_attention`: a height of 1 is a sequence, for which the window is a band.

    The peers get queries, keys and values with the heads in front, as they need them. What they derive from the sizes
    alone, a mask of all pairs or a list of blocks, is made before anything is timed.
    """
    batch, heads, height, width, window, dim = sizes
    make = Maker(device, DTYPES[dtype])
    shape = (batch, width, heads, dim) if height == 1 else (batch, height, width, heads, dim)
    inputs = {name: make.normal(*shape) for name in "qkv"}

    def call(x: Tensors, impl: Any) -> Tensor:
        return sliding_window_attention(**x, window=window, ndim=1 if height == 1 else 2, impl=impl)

    def prepare(x: Tensors) -> Tensors:
        return {name: t.flatten(1, -3).transpose(1, 2) for name, t in x.items()}

    def restore(y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(shape)

    @cache
    def mask() -> Tensor:
        place = torch.arange(height * width, device=device)
        return sees(place[:, None], place, height, width, window)

    def dense(x: Tensors) -> Tensor:
        return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], attn_mask=mask())

    others = {"torch_sdpa": Peer(dense, prepare, restore)}
    if device.type == "cuda":
        others["torch_flex"] = Peer(_flex(height, width, window, device), prepare, restore)
    return Case(OP, sizes, dtype, inputs, call, bound(OP, sizes, dtype, rates), peers=others)


def sees(query: Tensor, key: Tensor, height: int, width: int, window: int) -> Tensor:
    """Say which token sees which, by their numbers."""
    if height == 1:
        return (query - key).abs() <= window
    top = (query // width - window // 2).clamp(0, height - window)
    left = (query % width - window // 2).clamp(0, width - window)
    row, column = key // width, key % width
    return (row >= top) & (row < top + window) & (column >= left) & (column < left + window)


def _flex(height: int, width: int, window: int, device: torch.device) -> Any:
    @cache
    def blocks() -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(query, key, height, width, window)

        tokens = height * width
        return create_block_mask(near, None, None, tokens, tokens, device=str(device))

    @cache
    def compiled() -> Any:
        """Compile it anew: every size is a compilation, of which PyTorch makes eight before it gives up quietly."""
        from torch._functorch import config
        from torch.nn.attention.flex_attention import flex_attention

        config.donated_buffer = False  # or else its backward runs once per forward
        torch.compiler.reset()
        return torch.compile(flex_attention, dynamic=False)

    def call(x: Tensors) -> Tensor:
        return compiled()(x["q"], x["k"], x["v"], block_mask=blocks())

    return call
