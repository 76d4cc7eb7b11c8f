"""Iterative parallel decoding: from hidden tokens to a picture's tokens in a few passes. No diffusers here.

B batch, L tokens, V codes. Random numbers come from one generator, in a fixed order: first the tokens, then the noise
that decides which of them stay hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .checks import check, check_choice, check_whole, refuse

Order = Literal["confidence", "halton", "random"]
Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How pictures are decoded.

    Attributes:
        steps: Passes of the model.
        guidance: s of l_u + s (l_c - l_u), of logits with and without the text; 1 asks no second opinion.
        guidance_ramp: Let the guidance rise linearly from 1 to its value over the steps.
        sample_temperature: Of the distribution that tokens are drawn from; 0 takes the likeliest.
        mask_temperature: Of the noise on the confidence, first and last step.
        top_k: Draw from the k likeliest codes only; 0 from all.
        order: Which tokens are settled first: the most "confident" ones, in "halton" order over the grid, or "random".
        schedule: Share of hidden tokens over the steps.
        revise: Let tokens that were settled be hidden again.
    """

    steps: int = 16
    guidance: float = 4.0
    guidance_ramp: bool = False
    sample_temperature: float = 1.0
    mask_temperature: tuple[float, float] = (2.0, 0.0)
    top_k: int = 0
    order: Order = "confidence"
    schedule: Schedule = "cosine"
    revise: bool = False

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        object.__setattr__(self, "mask_temperature", tuple(self.mask_temperature))
        check_whole(self, "steps")
        check_whole(self, "top_k", least=0)
        check(self, "guidance", "at least 0", self.guidance >= 0)
        check(self, "sample_temperature", "at least 0", self.sample_temperature >= 0)
        good = len(self.mask_temperature) == 2 and min(self.mask_temperature) >= 0
        check(self, "mask_temperature", "two numbers of at least 0: first and last step", good)
        check_choice(self, "order", get_args(Order))
        check_choice(self, "schedule", get_args(Schedule))

    def guidance_at(self, step: int) -> float:
        """Return s of a step, counted from 0."""
        if not self.guidance_ramp or self.steps == 1:
            return self.guidance
        return 1 + (self.guidance - 1) * step / (self.steps - 1)

    def mask_temperature_at(self, step: int) -> float:
        """Return the temperature of the noise at a step, counted from 0."""
        first, last = self.mask_temperature
        return first + (last - first) * step / max(1, self.steps - 1)


def hidden_share(step: int, steps: int, schedule: Schedule) -> float:
    """Return the share of tokens that stay hidden after a step, counted from 0; float32, as diffusers computes it."""
    done = torch.tensor(step + 1) / steps
    return float(torch.cos(done * math.pi / 2) if schedule == "cosine" else 1 - done)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return uniform numbers in [0, 1) of the shape of `like`, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)


def gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return Gumbel noise of the shape of `like`."""
    return -(-uniform(like, generator).clamp_min(1e-20).log()).clamp_min(1e-20).log()


def draw_tokens(logits: Tensor, options: DecodeOptions, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw a code for every token.

    Args:
        logits: (B, L, V).
        options: Temperature and top-k.
        generator: Where random numbers come from; on any device.

    Returns:
        Codes (B, L) int64, and the probabilities (B, L, V) without temperature, float32.
    """
    odds = logits.float().softmax(-1)
    if options.sample_temperature == 0:
        return odds.argmax(-1), odds
    drawn = odds
    if options.sample_temperature != 1 or options.top_k:
        scaled = logits.float() / options.sample_temperature
        if 0 < options.top_k < scaled.shape[-1]:
            least = scaled.topk(options.top_k, -1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -math.inf)
        drawn = scaled.softmax(-1)
    flat = drawn.reshape(-1, drawn.shape[-1])
    flat = flat if generator is None else flat.to(generator.device)
    return torch.multinomial(flat, 1, generator=generator).to(logits.device).view(odds.shape[:-1]), odds


def stay_hidden(confidence: Tensor, count: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Choose the tokens that are hidden again: those of least log confidence plus noise.

    Args:
        confidence: Of every token, (B, L), positive.
        count: How many are hidden, (B, 1), int64, below L.
        temperature: Of the Gumbel noise.
        generator: Where the noise comes from.

    Returns:
        (B, L) bool.
    """
    score = confidence.clamp_min(1e-20).log() + temperature * gumbel(confidence, generator)
    limit = score.sort(-1).values.gather(1, count)
    return score < limit


def halton_ranks(rows: int, columns: int) -> Tensor:
    """Return the place of every token in an order that covers the grid evenly from the start, (rows * columns,).

    Source: Halton scheduler for masked generative transformers (arXiv:2503.17076): bases 2 and 3.
    """
    ranks = torch.full((rows * columns,), -1, dtype=torch.long)
    found, number = 0, 0
    while found < len(ranks):
        number += 1
        place = int(_radical_inverse(number, 2) * rows) * columns + int(_radical_inverse(number, 3) * columns)
        if ranks[place] < 0:
            ranks[place] = found
            found += 1
    return ranks


def _radical_inverse(number: int, base: int) -> float:
    value, share = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value += digit * share
        share /= base
    return value


def decode_step(
    logits: Tensor,
    ids: Tensor,
    step: int,
    options: DecodeOptions,
    *,
    hidden: int,
    start: float = 1.0,
    grid: tuple[int, int] | None = None,
    scores: Tensor | None = None,
    fixed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw tokens and hide the least certain of them again.

    Args:
        logits: (B, L, V).
        ids: Tokens before the step, (B, L).
        step: Number of the step, from 0.
        options: How to decode.
        hidden: Id of a hidden token.
        start: Share of tokens that was hidden at the start.
        grid: Rows and columns, for order="halton".
        scores: A critic's probability that each token is wrong, (B, L), instead of 1 - probability; kept tokens may
            then be hidden again.
        fixed: (B, L) bool: tokens that belong to the given picture and are never hidden again.
        generator: Where random numbers come from.

    Returns:
        Tokens after the step, hidden ones included, and without hidden ones, (B, L) each.
    """
    unknown = ids == hidden
    drawn, odds = draw_tokens(logits, options, generator)
    whole = torch.where(unknown, drawn, ids)
    if step + 1 >= options.steps:
        return whole, whole
    free = unknown
    if options.revise or scores is not None:
        free = torch.ones_like(unknown) if fixed is None else ~fixed
    share = start * hidden_share(step, options.steps, options.schedule)
    count = torch.full((ids.shape[0], 1), math.floor(ids.shape[1] * share), device=ids.device)
    count = torch.minimum(unknown.sum(-1, keepdim=True) - 1, count).clamp_min(1)
    count = torch.minimum(count, free.sum(-1, keepdim=True).clamp(max=ids.shape[1] - 1)).long()
    confidence = _confidence(odds, whole, options, grid, scores, generator)
    confidence = torch.where(free, confidence, torch.finfo(confidence.dtype).max)
    noise = 0.0 if options.order != "confidence" else options.mask_temperature_at(step)
    again = stay_hidden(confidence, count, noise, generator) & free
    return torch.where(again, hidden, whole), whole


def _confidence(
    odds: Tensor,
    whole: Tensor,
    options: DecodeOptions,
    grid: tuple[int, int] | None,
    scores: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    if scores is not None:
        return 1 - scores.float()
    if options.order == "random":
        return uniform(odds[..., 0], generator) + 1e-3
    if options.order == "halton":
        if grid is None:
            refuse("decode_step", "grid", "given for order='halton'", None, "give rows and columns")
        ranks = halton_ranks(*grid).to(odds.device)
        return (1 - ranks / len(ranks)).expand_as(whole)
    return odds.gather(-1, whole[..., None])[..., 0]


def guided_logits(
    model: Any,
    ids: Tensor,
    text: Tensor,
    mask: Tensor,
    guidance: float,
    *,
    negative: tuple[Tensor, Tensor] | None = None,
    cond_ids: Tensor | None = None,
    previous: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return logits moved away from those without the text (or with the negative one), and the final states.

    Args:
        model: A `TokenModel`.
        ids: (B, L).
        text: (B, T, Ct).
        mask: (B, T).
        guidance: s; 1 runs the model once.
        negative: States and mask of what is not wanted, (B, T', Ct); None is no text at all.
        cond_ids: As for the model.
        previous: States of the step before, for self-conditioning: (B or 2 B, L, d).
    """
    if guidance == 1:
        previous = None if previous is None else previous[: len(ids)]
        found = model(ids, text, mask, cond_ids=cond_ids, previous=previous)
        return found.logits, found.states
    rows = len(ids)
    drop = torch.arange(2 * rows, device=ids.device) >= rows
    other, other_mask = (text, mask) if negative is None else negative
    length = max(text.shape[1], other.shape[1])
    both = torch.cat([_padded(text, length), _padded(other, length)])
    masks = torch.cat([_padded(mask[..., None], length)[..., 0], _padded(other_mask[..., None], length)[..., 0]])
    if previous is not None and len(previous) == rows:
        previous = torch.cat([previous, previous])
    found = model(
        torch.cat([ids, ids]),
        both,
        masks,
        drop=None if negative is not None else drop,
        cond_ids=None if cond_ids is None else torch.cat([cond_ids, cond_ids]),
        previous=previous,
    )
    with_text, without = found.logits.float().chunk(2)
    return without + guidance * (with_text - without), found.states


def _padded(x: Tensor, length: int) -> Tensor:
    missing = length - x.shape[1]
    return x if missing == 0 else torch.nn.functional.pad(x, (0, 0, 0, missing))


Callback = Callable[[int, Tensor], None]  # step from 0, tokens without hidden ones (B, L)


@torch.no_grad()
def decode(
    model: Any,
    text: Tensor,
    mask: Tensor,
    options: DecodeOptions,
    *,
    ids: Tensor | None = None,
    negative: tuple[Tensor, Tensor] | None = None,
    cond_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return the tokens of pictures for texts, (B, L).

    Args:
        model: A `TokenModel`, ready to run.
        text: (B, T, Ct).
        mask: (B, T) bool.
        options: How to decode.
        ids: Tokens to begin with, (B, L); hidden ones are filled, the others stay. None hides all.
        negative: As for `guided_logits`.
        cond_ids: As for the model.
        generator: Where random numbers come from.
        callback: Is told every step and its tokens.

    Raises:
        ValueError: The model's logits are not finite.
    """
    config, device = model.config, text.device
    hidden = config.vocab
    if ids is None:
        ids = torch.full((len(text), config.length), hidden, device=device)
    fixed = ids != hidden
    start = float((~fixed).float().mean(1).max())
    whole, previous = ids, None
    for step in range(options.steps):
        if not (ids == hidden).any():
            break
        s = options.guidance_at(step)
        logits, states = guided_logits(
            model, ids, text, mask, s, negative=negative, cond_ids=cond_ids, previous=previous
        )
        if not torch.isfinite(logits).all():
            remedy = "run the model in float32, or load other weights"
            refuse("decode", "logits", "finite", f"NaN or infinity, states in {getattr(states, 'dtype', None)}", remedy)
        previous = states if config.self_conditioning else None
        scores = None
        if model.critic is not None and step + 1 < options.steps:
            drawn, _ = draw_tokens(logits, options, generator)
            filled = torch.where(ids == hidden, drawn, ids)
            scores = critic_scores(model, filled, text, mask, cond_ids)
            noise = uniform(scores, generator) * (1 - (step + 1) / options.steps)
            scores = ((scores + noise) / 2).clamp(0, 1 - 1e-6)
            logits = torch.zeros_like(logits).scatter_(-1, filled[..., None], 1e4)  # the tokens that were judged
        ids, whole = decode_step(
            logits,
            ids,
            step,
            options,
            hidden=hidden,
            start=start,
            grid=config.grid,
            scores=scores,
            fixed=fixed,
            generator=generator,
        )
        if callback is not None:
            callback(step, whole)
    return whole


def critic_scores(model: Any, filled: Tensor, text: Tensor, mask: Tensor, cond_ids: Tensor | None = None) -> Tensor:
    """Return the critic's probability that each token is wrong, (B, L)."""
    return critic_logits(model, filled, text, mask, cond_ids).sigmoid()


def critic_logits(
    model: Any,
    filled: Tensor,
    text: Tensor,
    mask: Tensor,
    cond_ids: Tensor | None = None,
    drop: Tensor | None = None,
) -> Tensor:
    """Return the critic's logits that each token is wrong, (B, L)."""
    if isinstance(model.critic, torch.nn.Linear):
        states = model(filled, text, mask, drop=drop, cond_ids=cond_ids).states
        return model.critic(states)[..., 0]
    return model.critic(filled, text, mask, drop=drop, cond_ids=cond_ids).logits[..., 0]
