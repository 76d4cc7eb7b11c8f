"""The definition of the depthwise convolution: step by step and tap by tap, differentiable by PyTorch itself."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def _one_sequence(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, before: int) -> Tensor:
    """Convolve (B, L, D); the filter starts `before` steps before the one it makes."""
    batch, length, channels = x.shape
    taps = weight.shape[1]
    first = x.new_zeros(batch, before, channels) if state is None else state.mT
    steps = torch.cat([first, x, x.new_zeros(batch, taps - 1 - before, channels)], 1).unbind(1)
    out = []
    for t in range(length):
        y = sum(weight[:, j] * steps[t + j] for j in range(taps))
        out.append(y if bias is None else y + bias)
    return torch.stack(out, 1) if out else x


def depthwise_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    padding: str,
    reverse: bool,
    activation: str | None,
) -> Tensor:
    """Loop over the sequences and their steps, in float32 for half-precision inputs; see `depthwise_conv1d`."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    before = weight.shape[1] - 1 if padding == "causal" else (weight.shape[1] - 1) // 2
    borders = [0, x.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    parts = []
    for s, (start, stop) in enumerate(pairwise(borders)):
        part = x[:, start:stop].to(wide)
        state = None
        if initial_state is not None:
            state = (initial_state if cu_seqlens is None else initial_state[s : s + 1]).to(wide)
        y = _one_sequence(
            part.flip(1) if reverse else part,
            weight.to(wide),
            None if bias is None else bias.to(wide),
            state,
            before,
        )
        parts.append(y.flip(1) if reverse else y)
    y = torch.cat(parts, 1)
    return (y if activation is None else y * torch.sigmoid(y)).to(x.dtype)
