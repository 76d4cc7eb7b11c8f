"""Pictures as tokens, captions as vectors: what the token model is trained on.

A batch holds ids (B, L), masked (B, L), text (B, T, C) with its mask (B, T), drop (B,), again (B,): samples with a
first pass for self-conditioning, cond (B, Lc) for super-resolution, and total: hidden tokens of the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .checks import refuse
from .data import Batch, Collection, Visits, augment, square
from .masking import hide, plan
from .packed import TOKENIZER, Pictured
from .recipes import TrainConfig
from .text import TextCache, TextEncoder
from .tokenizer import VQTokenizer
from .weights import shipped_tokenizer

VARIANT = 3  # name of the random stream of the augmented versions
ENCODED = 64  # pictures at a time


class TokenData(Dataset[Batch]):
    """Samples by number.

    Args:
        pictures: For names and captions.
        ids: Tokens of every version of every picture, (variants, N, L).
        cond: The same of the smaller pictures, (variants, N, Lc); None without super-resolution.
        cache: Encoded captions.
        cfg: The run.
    """

    def __init__(
        self,
        pictures: Sequence[Pictured],
        ids: NDArray[np.int32],
        cond: NDArray[np.int32] | None,
        cache: TextCache,
        cfg: TrainConfig,
    ) -> None:
        self.pictures, self.ids, self.cond, self.cache, self.cfg = list(pictures), ids, cond, cache, cfg
        self.visits = Visits(len(pictures), cfg.repeats, cfg.seed)
        self.captions = [[cache.place[c] for c in p.captions] for p in pictures]

    def __getitem__(self, number: int) -> Batch:
        """Return a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return samples of one step as one batch."""
        cfg, config = self.cfg, self.cfg.model
        ids = np.empty((len(numbers), config.length), np.int32)
        masked = np.empty(ids.shape, bool)
        flags = np.empty((2, len(numbers)), bool)
        captions, cond = [], []
        for row, number in enumerate(numbers):
            rng = self.visits.rng(number)
            masked[row] = hide(rng, config.grid, plan(rng, config.grid, cfg.rectangle))
            place, variant = self.visits.picture(number), int(rng.integers(len(self.ids)))
            own = self.captions[place]
            captions.append(own[int(rng.integers(len(own)))])
            flags[:, row] = rng.random(2) < (cfg.text_drop, cfg.self_condition)
            ids[row] = self.ids[variant, place]
            if self.cond is not None:
                cond.append(self.cond[variant, place])
        text, mask = self.cache.batch(captions, config.text_length)
        batch = {
            "ids": torch.from_numpy(ids),
            "masked": torch.from_numpy(masked),
            "text": torch.from_numpy(text.astype(np.float16)),
            "mask": torch.from_numpy(mask),
            "drop": torch.from_numpy(flags[0]),
            "again": torch.from_numpy(flags[1]),
            "total": torch.tensor(float(self._hidden(numbers[0]))),
        }
        return batch | ({"cond": torch.from_numpy(np.stack(cond))} if cond else {})

    def _hidden(self, number: int) -> int:
        """Return how many tokens are hidden in the whole step that a sample belongs to."""
        cfg = self.cfg
        step = cfg.samples_of(number // cfg.global_batch)
        return sum(plan(self.visits.rng(n), cfg.model.grid, cfg.rectangle).hidden for n in step)

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return which pictures the samples show, each once, in order."""
        return list(dict.fromkeys(self.pictures[self.visits.picture(n)].name for n in numbers))


def open_tokenizer(cfg: TrainConfig, device: torch.device | str) -> VQTokenizer:
    """Return the tokenizer of a run, ready to run.

    Raises:
        ValueError: There is none, or its codes are not the model's.
    """
    folder = Path(cfg.tokenizer) if cfg.tokenizer is not None else None
    if folder is None and cfg.data is not None and (Path(cfg.data) / TOKENIZER).is_dir():
        folder = Path(cfg.data) / TOKENIZER
    tokenizer = VQTokenizer.from_pretrained(folder or shipped_tokenizer(), device=device)
    if tokenizer.config.codes != cfg.model.vocab:
        remedy = f"give --model.vocab {tokenizer.config.codes}, or another --tokenizer"
        refuse("TrainConfig", "model.vocab", f"the tokenizer's {tokenizer.config.codes}", cfg.model.vocab, remedy)
    return tokenizer


def size_of(cfg: TrainConfig, factor: int) -> int:
    """Return the side of the training pictures in pixels.

    Raises:
        ValueError: The grid is no square.
    """
    rows, columns = cfg.model.grid
    if rows != columns:
        refuse("TrainConfig", "model.grid", "a square for training", cfg.model.grid, "train on squares")
    return rows * factor


def open_cache(cfg: TrainConfig, found: Collection, device: torch.device) -> TextCache:
    """Return the captions of a collection as vectors: stored ones, or encoded now.

    Raises:
        ValueError: They have another width than the model expects, or captions are missing in the store.
    """
    pictures = [*found.train, *found.validation]
    cache = found.cache
    stored = None if cfg.data is None else Path(cfg.data) / "text.safetensors"
    if cache is None and stored is not None and stored.is_file():
        cache = TextCache.load(stored)
    if cache is None:
        encoder = TextEncoder(cfg.text_encoder, length=cfg.model.text_length, device=device)
        cache = TextCache.encode(encoder, [c for p in pictures for c in p.captions])
    missing = [c for p in pictures for c in p.captions if c not in cache.place]
    if missing:
        refuse("data", "text.safetensors", "made from these captions", f"no {missing[0]!r}", "encode them again")
    if cache.channels != cfg.model.text_dim:
        remedy = f"give --model.text_dim {cache.channels}, or another --text_encoder"
        refuse("TrainConfig", "model.text_dim", f"the encoder's {cache.channels}", cfg.model.text_dim, remedy)
    return cache


def encode_pictures(
    tokenizer: VQTokenizer, pictures: Sequence[Pictured], size: int, cfg: TrainConfig, *, variants: int
) -> NDArray[np.int32]:
    """Return the tokens of versions of pictures, (variants, N, L). The first version is the picture as it is."""
    parts = [
        encode_part(tokenizer, pictures[first : first + ENCODED], first, size, cfg, variants=variants)
        for first in range(0, len(pictures), ENCODED)
    ]
    return np.concatenate(parts, axis=1)


@torch.inference_mode()
def encode_part(
    tokenizer: VQTokenizer, part: Sequence[Pictured], first: int, size: int, cfg: TrainConfig, *, variants: int
) -> NDArray[np.int32]:
    """Return the tokens of versions of some pictures, (variants, n, L); `first` is the number of the first of them."""
    device = next(tokenizer.parameters()).device
    found = []
    for variant in range(variants):
        pixels = np.stack([_version(p, size, cfg, variant, first + i) for i, p in enumerate(part)])
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device)
        found.append(tokenizer.encode(x.float() / 255).flatten(1).cpu().numpy().astype(np.int32))
    return np.stack(found)


def _version(picture: Pictured, size: int, cfg: TrainConfig, variant: int, number: int) -> NDArray[np.uint8]:
    if variant == 0:
        return square(picture.pixels, size)
    rng = np.random.default_rng((cfg.seed, VARIANT, variant, number))
    pixels = augment(picture.pixels, size, rng, flip=False, shift=cfg.shift)
    return pixels[:, ::-1] if cfg.flip and variant % 2 else pixels
