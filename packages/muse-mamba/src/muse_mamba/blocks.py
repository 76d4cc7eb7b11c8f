"""The blocks of the token models. B batch, L image tokens, T text tokens, d width, S tokens of a joined sequence."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import CROSS, INJECTED, ModelConfig
from .layers import Attention, EinFFT, FeedForward, Text, norm
from .scan import Mamba2, TextMamba

CRITIC_BIAS = 4.0  # of a new layer critic: a probability of 0.98


class TransformerBlock(nn.Module):
    """Self attention, cross attention to the text if the block sees it, feed-forward part."""

    def __init__(self, config: ModelConfig, *, textual: bool) -> None:
        super().__init__()
        sizes = config.dim, config.heads, config.dim_head
        self.attend = Attention(*sizes)
        self.cross = Attention(*sizes) if textual else None
        self.feed = FeedForward(config.dim, config.ff_mult)

    def forward(self, h: Tensor, text: Text) -> Tensor:
        """(B, L, d) to (B, L, d)."""
        h = h + self.attend(h)
        if self.cross is not None:
            h = h + self.cross(h, text.states, text.keys)
        return h + self.feed(h)


class ScanBlock(nn.Module):
    """A scan (or, in hybrid, now and then an attention), and what its method adds.

    Args:
        config: Sizes and method.
        number: Of the block, from 0.
        textual: Whether it sees the text.
    """

    def __init__(self, config: ModelConfig, number: int, *, textual: bool) -> None:
        super().__init__()
        method, dim = config.method, config.dim
        sizes = dim, config.heads, config.dim_head
        self.reversed = config.direction == "alternate" and number % 2 == 1
        attends = method == "hybrid" and (number + 1) % config.attention_every == 0
        self.norm = nn.Identity() if attends else norm(dim)
        self.mixer: nn.Module
        if attends:
            self.mixer = Attention(*sizes)
        elif method == "mamba2-xattn":
            self.mixer = Mamba2(config)
        else:
            injected = textual and method in INJECTED and method != "text-skip"
            self.mixer = TextMamba(config, method if injected else "")
        self.cross = Attention(*sizes) if textual and method in CROSS else None
        self.skip: nn.Module | None = None
        self.skip_gate: nn.Module | None = None
        if textual and method == "text-skip":
            self.skip = nn.Linear(dim, dim, bias=False)
            nn.init.zeros_(self.skip.weight)
            self.skip_gate = nn.Linear(dim, dim, bias=False) if config.skip_gate else None
        self.feed: nn.Module | None = None
        if config.channel_mixer != "none":
            self.feed = EinFFT(dim) if config.channel_mixer == "einfft" else FeedForward(dim, config.ff_mult)

    def forward(self, h: Tensor, text: Text, mask: Tensor | None = None, prefix: int = 0) -> Tensor:
        """Run the block.

        Args:
            h: (B, S, d), text first where it is joined.
            text: For the parts that see it.
            mask: (B, S) bool for a joined sequence; None means no pads.
            prefix: Text tokens at the start of a joined sequence: only what follows is read backwards.
        """
        y = self.norm(h)
        if isinstance(self.mixer, TextMamba):
            if prefix and self.reversed:
                y = self.mixer(flip_after(y, prefix), text, mask=mask)
                y = flip_after(y, prefix)
            elif prefix and len(self.mixer.scans) == 2:
                y = self._both_after(y, text, mask, prefix)
            else:
                y = self.mixer(y, text, reverse=self.reversed, mask=mask)
        elif isinstance(self.mixer, Mamba2):
            y = self.mixer(y, reverse=self.reversed)
        else:
            y = self.mixer(y)
        if self.skip is not None:
            extra: Tensor = self.skip(text.pooled)[:, None]
            y = y + (extra if self.skip_gate is None else cast(Tensor, self.skip_gate(self.norm(h))) * extra)
        h = h + y
        if self.cross is not None:
            h = h + self.cross(h, text.states, text.keys)
        return h if self.feed is None else h + self.feed(h)

    def _both_after(self, y: Tensor, text: Text, mask: Tensor | None, prefix: int) -> Tensor:
        """Scan a joined sequence twice, the text first both times, the picture from either end."""
        mixer = self.mixer
        assert isinstance(mixer, TextMamba)
        x, z = mixer.in_proj(y).chunk(2, -1)
        ahead = mixer.scans[0](x, z, False, mask, None)
        back = mixer.scans[1](flip_after(x, prefix), flip_after(z, prefix), False, mask, None)
        return mixer.out_proj((ahead + flip_after(back, prefix)) / 2)


def flip_after(x: Tensor, prefix: int) -> Tensor:
    """Reverse the tokens of (B, S, d) that follow the first `prefix` ones."""
    return torch.cat([x[:, :prefix], x[:, prefix:].flip(1)], 1)


class ParallelBlock(nn.Module):
    """A scan over the picture and one over the text, joined by a linear layer.

    Args:
        config: Sizes, merge, align.
        number: Of the block, from 0.
        scans: Whether it has a text scan of its own, or uses what the first block made.
    """

    def __init__(self, config: ModelConfig, number: int, *, scans: bool) -> None:
        super().__init__()
        dim, self.config = config.dim, config
        self.reversed = config.direction == "alternate" and number % 2 == 1
        self.norm, self.image = norm(dim), TextMamba(config)
        self.text_norm, self.text = (norm(dim), TextMamba(config, both=False)) if scans else (None, None)
        self.align = nn.Linear(config.text_length, config.length) if config.align == "linear" else None
        if self.align is not None:
            with torch.no_grad():
                self.align.bias.zero_()
        self.join = nn.Linear(dim, dim, bias=False)
        self.join_text = nn.Linear(dim, dim, bias=False) if config.merge == "weighted" else None

    def forward(self, h: Tensor, stream: Tensor, mask: Tensor, made: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Run both branches.

        Args:
            h: Image stream, (B, L, d).
            stream: Text stream, (B, T, d), left-padded.
            mask: (B, T) bool.
            made: Output of the text branch of the first block, for blocks without one.

        Returns:
            Both streams, and the output of the text branch, (B, T, d).
        """
        a = self.image(self.norm(h), reverse=self.reversed)
        if self.text is not None and self.text_norm is not None:
            own: Tensor = self.text(self.text_norm(stream), mask=mask) * mask[..., None]
            made, stream = own, stream + own
        assert made is not None
        b = self._aligned(made, h.shape[1])
        if self.config.merge == "sum":
            h = h + self.join(a + b)
        elif self.config.merge == "mul":
            h = h + self.join(a * (1 + b))  # around 1, or the branch would start dead
        else:
            assert self.join_text is not None
            h = h + self.join(a) + self.join_text(b)
        return h, stream, made

    def _aligned(self, b: Tensor, length: int) -> Tensor:
        if self.align is not None:
            return self.align(b.mT).mT
        if self.config.align == "last":
            return b[:, -1:].expand(-1, length, -1)
        return F.pad(b, (0, 0, 0, length - b.shape[1]))


class Judged(NamedTuple):
    """What a layer with a critic gives: states times probabilities, the states, the logits of the probabilities."""

    h: Tensor
    states: Tensor
    logits: Tensor


class CriticBlock(nn.Module):
    """A scan, and a critic that weighs every token by the probability that the scan is right about it.

    Args:
        config: Sizes; `layer_critic_dim` is the critic's width.
        number: Of the block, from 0.
        textual: Whether the critic sees the text.
    """

    def __init__(self, config: ModelConfig, number: int, *, textual: bool) -> None:
        super().__init__()
        from dataclasses import replace

        dim, width = config.dim, config.layer_critic_dim or config.dim
        self.scan = ScanBlock(config, number, textual=False)
        same = width == dim
        self.narrow = nn.Identity() if same else nn.Linear(dim, width, bias=False)
        self.narrow_text = nn.Identity() if same or not textual else nn.Linear(dim, width, bias=False)
        self.critic = TransformerBlock(replace(config, dim=width, method="transformer"), textual=textual)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, CRITIC_BIAS)

    def forward(self, h: Tensor, text: Text) -> Judged:
        """(B, L, d) to the next states (B, L, d), these before the critic, and logits (B, L)."""
        states = self.scan(h, text)
        seen = Text(self.narrow_text(text.states), text.mask, text.keys, text.pooled)
        logits = self.head(self.critic(self.narrow(states), seen))
        return Judged(states * logits.sigmoid(), states, logits[..., 0])
