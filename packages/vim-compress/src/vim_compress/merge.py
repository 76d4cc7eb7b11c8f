"""Merge similar neighbours among the tokens of a Vim, keeping their order and the class token in the middle.

B batch, L tokens, M patches, C channels.

Source: Bolya et al. 2022, arXiv:2210.09461 (matching); Zhan et al. 2024, arXiv:2412.12496 (order matters to scans).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import refuse
from .vim import VisionMamba


def merge_half(tokens: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge the `count` most similar pairs of neighbours into their means.

    Tokens 0 and 1, 2 and 3, ... are pairs, so that none is merged twice; order is kept.

    Args:
        tokens: (B, M, C).
        sizes: How many patches each token stands for, (B, M).
        count: Pairs, at most M // 2.

    Returns:
        (B, M - count, C) and (B, M - count): means weighted by size, and sums of sizes.
    """
    batch, length, _ = tokens.shape
    pairs = length // 2
    if count == 0:
        return tokens, sizes
    left, right = tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2]
    chosen = F.cosine_similarity(left, right, dim=-1).topk(count, -1).indices  # (B, count)
    gone = torch.zeros(batch, length, dtype=torch.bool, device=tokens.device)
    gone.scatter_(1, 2 * chosen + 1, True)
    weighted = tokens * sizes.unsqueeze(-1)
    moved = torch.zeros_like(weighted)
    index = (2 * chosen).unsqueeze(-1).expand(-1, -1, tokens.shape[2])
    moved.scatter_(1, index, weighted.gather(1, index + 1))
    more = torch.zeros_like(sizes).scatter_(1, 2 * chosen, sizes.gather(1, 2 * chosen + 1))
    total = sizes + more
    mean = (weighted + moved) / total.unsqueeze(-1)
    kept = (~gone).nonzero()[:, 1].view(batch, length - count)
    return mean.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[2])), total.gather(1, kept)


def merged_forward(model: VisionMamba, x: Tensor, *, layers: Sequence[int], share: float) -> Tensor:
    """Classify pictures with fewer tokens after some blocks.

    The tokens before and after the class token lose the same number, so it stays in the middle.

    Args:
        model: Trained, whose convolutions run along the tokens.
        x: (B, channels, H, W).
        layers: After which blocks tokens are merged.
        share: Of the tokens that each of those merges away, in [0, 0.5].

    Returns:
        (B, classes).

    Raises:
        ValueError: A layer that does not exist, a share outside [0, 0.5], or convolutions on a grid.
    """
    if not 0 <= share <= 0.5:
        refuse("merged_forward", "share", "in [0, 0.5]", share, "pairs of neighbours become one token at most")
    if not set(layers) <= set(range(len(model.layers))):
        refuse("merged_forward", "layers", f"some of 0 to {len(model.layers) - 1}", list(layers), "blocks count from 0")
    if model.config.token_conv != "causal":
        refuse("merged_forward", "token_conv", "'causal'", repr(model.config.token_conv), "a grid cannot lose tokens")
    residual, grid = model.tokens(x)
    change = None
    sizes = torch.ones(residual.shape[:2], device=residual.device, dtype=residual.dtype)
    for layer in range(len(model.layers)):
        residual, change = model.run_block(layer, residual, change, grid)
        if layer in layers:
            residual, sizes = merge_around_middle(residual + change, sizes, share)
            change = None
    return model.forward_head(model.finished(residual, change))


def merge_around_middle(tokens: Tensor, sizes: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Merge the same number of tokens on both sides of the class token at (L - 1) // 2."""
    middle = (tokens.shape[1] - 1) // 2
    behind = tokens.shape[1] - 1 - middle
    count = min(round(share * (tokens.shape[1] - 1) / 2), middle // 2, behind // 2)
    left, left_sizes = merge_half(tokens[:, :middle], sizes[:, :middle], count)
    right, right_sizes = merge_half(tokens[:, middle + 1 :], sizes[:, middle + 1 :], count)
    token, size = tokens[:, middle : middle + 1], sizes[:, middle : middle + 1]
    return torch.cat([left, token, right], 1), torch.cat([left_sizes, size, right_sizes], 1)
