"""What is looked at during a token model's training: the loss per share of hidden tokens, captions, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decoding import DecodeOptions, decode
from .loss import relative
from .model import TokenModel
from .packed import Pictured
from .recipes import TrainConfig
from .text import TextCache
from .tokenizer import VQTokenizer
from .tokens import encode_pictures

SHARES = (0.25, 0.5, 0.75, 1.0)  # of hidden tokens
GAP_SHARE = 0.75  # at which right and wrong captions are compared
MOST, DRAWN, BATCH = 256, 8, 64  # pictures measured, drawn, at a time
SEED = 5


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Pictures that are not trained on, as tokens (n, L), with their first captions as vectors."""

    ids: Tensor
    text: Tensor
    mask: Tensor
    cond: Tensor | None
    captions: list[str]


def make_examples(
    cfg: TrainConfig, tokenizer: VQTokenizer, pictures: Sequence[Pictured], cache: TextCache, size: int
) -> Examples:
    """Encode the first validation pictures, one a concept."""
    chosen = list({p.concept: p for p in pictures}.values())[:MOST]
    device = next(tokenizer.parameters()).device
    ids = encode_pictures(tokenizer, chosen, size, cfg, variants=1)[0]
    cond = None
    if cfg.model.cond_vocab:
        smaller = cfg.model.cond_grid[0] * tokenizer.config.factor
        cond = torch.from_numpy(encode_pictures(tokenizer, chosen, smaller, cfg, variants=1)[0]).long().to(device)
    captions = [p.captions[0] for p in chosen]
    text, mask = cache.batch([cache.place[c] for c in captions], cfg.model.text_length)
    return Examples(
        ids=torch.from_numpy(ids).long().to(device),
        text=torch.from_numpy(text).to(device),
        mask=torch.from_numpy(mask).to(device),
        cond=cond,
        captions=captions,
    )


@torch.no_grad()
def mean_loss(model: TokenModel, shown: Examples, share: float, *, shuffled: bool = False) -> float:
    """Return the mean cross entropy in nats of hidden tokens, the same ones each time.

    Args:
        model: Ready to run.
        shown: The pictures.
        share: Of hidden tokens.
        shuffled: Give every picture the caption of the next one.
    """
    hidden, length = model.config.vocab, model.config.length
    generator = torch.Generator().manual_seed(SEED)
    order = torch.rand(shown.ids.shape, generator=generator).argsort(-1)
    masked = (order < max(1, round(share * length))).to(shown.ids.device)
    text, mask = (x.roll(1, 0) if shuffled else x for x in (shown.text, shown.mask))
    total = 0.0
    for first in range(0, len(shown.ids), BATCH):
        part = slice(first, first + BATCH)
        ids, here = shown.ids[part], masked[part]
        cond = None if shown.cond is None else shown.cond[part]
        seen = torch.where(here, hidden, ids)
        logits = model(seen, text[part], mask[part], cond_ids=cond).logits[here].float()
        total += torch.nn.functional.cross_entropy(logits, ids[here], reduction="sum").item()
    return total / int(masked.sum())


def measure(model: TokenModel, shown: Examples) -> dict[str, float]:
    """Return losses as shares of ln V per share of hidden tokens, and what the right caption is worth in nats."""
    codes = model.config.vocab
    row = {f"loss_at_{share:g}": relative(mean_loss(model, shown, share), codes) for share in SHARES}
    gap = mean_loss(model, shown, GAP_SHARE, shuffled=True) - mean_loss(model, shown, GAP_SHARE)
    row["loss"] = float(np.mean([row[f"loss_at_{share:g}"] for share in SHARES]))
    return {**row, "caption_gap": gap} if all(math.isfinite(v) for v in row.values()) else {"loss": math.inf}


def draw(
    model: TokenModel,
    tokenizer: VQTokenizer,
    text: Tensor,
    mask: Tensor,
    truth: Tensor,
    file: Path,
    cond: Tensor | None = None,
) -> None:
    """Save a picture: originals as the tokenizer has them above, what the model makes of their captions below."""
    from PIL import Image

    count = min(DRAWN, len(text))
    generator = torch.Generator().manual_seed(SEED)
    options = DecodeOptions()
    part = None if cond is None else cond[:count]
    made = decode(model, text[:count], mask[:count], options, cond_ids=part, generator=generator)
    rows = [to_row(tokenizer, ids, model.config.grid) for ids in (truth[:count], made)]
    Image.fromarray(np.concatenate(rows)).save(file)


def to_row(tokenizer: VQTokenizer, ids: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Return pictures of tokens (n, L) side by side, (H, n W, 3) uint8."""
    pictures = tokenizer.decode(ids.unflatten(1, grid))
    pixels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return np.concatenate(list(pixels), axis=1)
