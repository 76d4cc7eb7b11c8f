"""From encoder outputs to entries of a codebook. N vectors, K entries, D channels of an entry."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TokenizerConfig

INVERSE_TEMPERATURE = 100.0  # of the soft assignment in the entropy loss of LFQ
LARGEST_REVIVAL = 4096  # vectors kept as candidates for entries that nobody uses


class Quantized(NamedTuple):
    """What quantizing gives.

    Attributes:
        values: The entries, (..., D), with the gradient of the encoder's outputs.
        ids: Their numbers, (...), int64.
        loss: Commitment and entropy, a scalar.
        statistics: For `update`: assignments (K,), sums of what was assigned (K, D), some of the vectors (n, D).
    """

    values: Tensor
    ids: Tensor
    loss: Tensor
    statistics: tuple[Tensor, Tensor, Tensor]


class EmaQuantizer(nn.Module):
    """Entries on the unit sphere that follow the moving average of the normalised vectors assigned to them.

    The trainer calls `update` once a step with statistics summed over micro-batches and processes, after it has seen
    that the step is finite; so accumulation and processes do not change the codebook.

    Source: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; unit vectors as in arXiv:2110.04627.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        entries = F.normalize(torch.randn(config.codes, config.code_dim), dim=-1)
        self.register_buffer("codebook", entries)
        self.register_buffer("counts", torch.ones(config.codes))
        self.register_buffer("sums", entries.clone())

    def forward(self, x: Tensor) -> Quantized:
        """Quantize vectors (..., D); arithmetic is float32."""
        z = F.normalize(x.float(), dim=-1)
        flat = z.flatten(0, -2)
        codebook = F.normalize(self.codebook, dim=-1)  # an average of unit vectors is a little shorter
        ids = (flat.detach() @ codebook.t()).argmax(-1)
        entries = codebook[ids].view_as(z)
        loss = self.config.commitment * (z - entries).square().sum(-1).mean()
        statistics = self._statistics(flat.detach(), ids) if self.training else self._statistics(flat[:0], ids[:0])
        return Quantized(z + (entries - z).detach(), ids.view(z.shape[:-1]), loss, statistics)

    def entries(self, ids: Tensor) -> Tensor:
        """Return the entries of ids (...): (..., D)."""
        return F.normalize(self.codebook, dim=-1)[ids]

    def _statistics(self, flat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counts = torch.zeros_like(self.counts).index_add_(0, ids, torch.ones_like(ids, dtype=self.counts.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, ids, flat)
        return counts, sums, flat[: min(LARGEST_REVIVAL, len(flat))]

    @torch.no_grad()
    def update(self, counts: Tensor, sums: Tensor, apply: Tensor) -> None:
        """Move the entries.

        Args:
            counts: Assignments of a whole step, (K,).
            sums: Sums of the vectors assigned, (K, D).
            apply: Scalar of 0 or 1 on the device: 0 leaves everything as it is.
        """
        keep = 1 - apply * (1 - self.config.decay)
        counts, sums = torch.nan_to_num(counts), torch.nan_to_num(sums)
        self.counts.mul_(keep).add_(counts * (1 - keep))
        self.sums.mul_(keep).add_(sums * (1 - keep))
        moved = F.normalize(self.sums, dim=-1)
        used = self.sums.norm(dim=-1, keepdim=True) > 1e-6
        self.codebook.copy_(torch.where((apply > 0) & used, moved, self.codebook))

    @torch.no_grad()
    def revive(self, candidates: Tensor, generator: torch.Generator, apply: Tensor) -> None:
        """Replace entries that are hardly used by vectors of the data.

        Args:
            candidates: Vectors to choose from, (n, D), the same on every process.
            generator: On the CPU, the same on every process.
            apply: Scalar of 0 or 1 on the device.
        """
        choice = torch.randint(len(candidates), (self.config.codes,), generator=generator).to(candidates.device)
        new = candidates[choice].to(self.codebook.dtype)
        dead = ((self.counts < self.config.revive_below) & (apply > 0))[:, None]
        self.codebook.copy_(torch.where(dead, new, self.codebook))
        self.sums.copy_(torch.where(dead, new, self.sums))
        self.counts.copy_(torch.where(dead[:, 0], 1.0, self.counts))


class LookupFreeQuantizer(nn.Module):
    """One bit per channel: the entry is the vector of signs, its number has these bits. There is no codebook to learn.

    Source: Yu et al. 2023, arXiv:2310.05737, section 3.1 (the entropy loss over the whole codebook).
    """

    codebook: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        numbers = torch.arange(config.codes)[:, None] >> torch.arange(config.code_dim) & 1
        self.register_buffer("codebook", (2.0 * numbers - 1) / math.sqrt(config.code_dim), persistent=False)

    def forward(self, x: Tensor) -> Quantized:
        """Quantize vectors (..., D); arithmetic is float32."""
        z = F.normalize(x.float(), dim=-1)
        bits = z.detach() > 0
        ids = (bits.long() << torch.arange(self.config.code_dim, device=z.device)).sum(-1)
        entries = self.codebook[ids]
        loss = self.config.commitment * (z - entries).square().sum(-1).mean()
        if self.training and self.config.entropy:
            loss = loss + self.config.entropy * self._entropy(z.flatten(0, -2))
        nothing = z.new_zeros(self.config.codes), torch.zeros_like(self.codebook), z.detach().flatten(0, -2)[:1]
        return Quantized(z + (entries - z).detach(), ids, loss, nothing)

    def _entropy(self, flat: Tensor) -> Tensor:
        """Entropy of each assignment minus that of their mean: certain vectors, an evenly used codebook."""
        odds = (flat @ self.codebook.t() * INVERSE_TEMPERATURE).softmax(-1)
        each = -(odds * odds.clamp_min(1e-12).log()).sum(-1).mean()
        mean = odds.mean(0)
        return each + (mean * mean.clamp_min(1e-12).log()).sum()

    def entries(self, ids: Tensor) -> Tensor:
        """Return the entries of ids (...): (..., D)."""
        return self.codebook[ids]

    def update(self, counts: Tensor, sums: Tensor, apply: Tensor) -> None:
        """Nothing moves."""

    def revive(self, candidates: Tensor, generator: torch.Generator, apply: Tensor) -> None:
        """Nothing dies."""


def usage(counts: Tensor) -> tuple[float, float]:
    """Return the share of entries in use and the perplexity exp(entropy) of assignment counts (K,)."""
    total = counts.sum().clamp_min(1)
    share = counts / total
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return (counts > 0).float().mean().item(), entropy.exp().item()
