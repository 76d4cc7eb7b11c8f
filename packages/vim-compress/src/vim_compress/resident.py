"""Training pictures made on the device: all of them lie in its memory, and whole batches are changed at once.

For small pictures, which a GPU learns from faster than loader processes can make them. As with the loader, picture
number i of a run is a function of (seed, i) alone; the random choices are distributed alike but not the same ones.

B pictures of a batch, C channels, H, W the network's size, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from .augment import ERASED, ERASED_ASPECT, TRIES
from .config import ModelConfig
from .data import Batch, Numbered, Steps
from .preprocess import prepare, to_float
from .recipes import TrainConfig

CHOICES, TABLES = 5, 6  # names of the random streams beside the seed; data.py has the others
DRAWS = 32  # numbers in [0, 1) that a picture may use, four for each step of the generator's counter
DY, DX, FLIP, ERASE, TOP, LEFT, NOISE, PAIR, SHAPES = 0, 1, 2, 3, 4, 5, 6, 7, 12  # which one is for what
MOST_OF_MEMORY = 0.8  # that pictures may take of what is free
TABLE = 2**16  # values of noise, and of shares of mixed pictures, that are drawn once


@dataclass(frozen=True)
class Boxes:
    """A rectangle in each picture, in pixels: (B,) each. High or wide of 0 is none."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    high: NDArray[np.int64]
    wide: NDArray[np.int64]

    def columns(self) -> list[NDArray[np.int64]]:
        """Return the first row, the row after the last, and columns likewise."""
        return [self.top, self.top + self.high, self.left, self.left + self.wide]


class Resident:
    """All training pictures on a device, and the batches that are made of them there.

    Args:
        source: Pictures in memory, and which of them a number is.
        device: Where they lie.

    Raises:
        ValueError: They do not fit into its memory.
    """

    def __init__(self, source: Numbered, device: torch.device) -> None:
        self.source, self.cfg, self.model, self.device = source, source.cfg, source.model, device
        pictures = source.pictures
        height, width = self.model.image
        shape = len(pictures), self.model.channels, height, width
        check_memory(shape, device)
        ready = np.empty(shape, np.uint8)
        for number in range(len(pictures)):
            ready[number] = prepare(pictures.image(number), self.model)
        self.images = torch.from_numpy(ready).to(device)
        self.labels = torch.from_numpy(pictures.labels).to(device)
        self.axes = [torch.arange(size, device=device) for size in (self.model.channels, height, width)]
        rng = np.random.default_rng((self.cfg.seed, TABLES))
        self.noise = torch.from_numpy(noise_table(self.model, rng)).to(device) if self.cfg.erase else None
        strengths = (self.cfg.mixup, self.cfg.cutmix)
        self.shares = [rng.beta(s, s, TABLE) if s else np.ones(TABLE) for s in strengths]

    def batches(self, start: int, rank: int) -> Iterator[Batch]:
        """Yield the micro-batches of one process from step `start` on, normalised."""
        for numbers in Steps(self.cfg, start, rank):
            yield self.batch(numbers)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return pictures that follow each other: {"image": (B, C, H, W), "target": (B, K)}, float32 on the device."""
        mixed = bool(self.cfg.mixup or self.cfg.cutmix)
        first, last = numbers[0], numbers[-1] + 1
        if mixed:
            first, last = first & ~1, last + last % 2  # with the partners of both ends
        batch = self._made(first, last, mixed)
        chosen = slice(numbers[0] - first, numbers[-1] + 1 - first)
        return {name: x[chosen] for name, x in batch.items()}

    def _made(self, first: int, last: int, mixed: bool) -> Batch:
        cfg, model = self.cfg, self.model
        random = draws(cfg.seed, first, last)
        index = self.source.places(np.arange(first, last))
        shift = [shifts(random[:, of], size, cfg) for of, size in zip((DY, DX), model.image, strict=True)]
        columns = [index, *shift, random[:, FLIP] < cfg.flip]
        if self.noise is not None:
            start = (random[:, NOISE] * TABLE).astype(np.int64)
            columns += [start, *erased_boxes(random, model, cfg.erase).columns()]
        kept = np.ones(last - first)
        if mixed:
            boxes, kept, targets_kept = mixed_boxes(random, model, cfg, self.shares)
            columns += boxes.columns()
            kept = np.stack([kept, targets_kept])
        on_device = self._moved(np.stack(columns).astype(np.int64))
        pixels = self._cropped(*on_device[:4])
        if self.noise is not None:
            pixels = torch.where(self._inside(*on_device[5:9]), self._noise(on_device[4]), pixels)
        x = to_float(pixels, model, self.device)
        target = torch.nn.functional.one_hot(self.labels[on_device[0]], model.classes).float()
        target = target * (1 - cfg.smoothing) + cfg.smoothing / model.classes
        if mixed:
            blend, share = self._moved(kept.astype(np.float32))
            other = partners(x)
            x = torch.where(self._inside(*on_device[-4:]), other, torch.lerp(other, x, blend.view(-1, 1, 1, 1)))
            target = torch.lerp(partners(target), target, share.view(-1, 1))
        return {"image": x, "target": target}

    def _moved(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _cropped(self, index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> Tensor:
        """Read pictures shifted and mirrored: (B, C, H, W), uint8."""
        channel, row, column = self.axes
        rows = (row.view(-1, 1) + dy.view(-1, 1, 1, 1)).clamp(0, len(row) - 1)
        columns = (column + dx.view(-1, 1, 1, 1)).clamp(0, len(column) - 1)
        columns = torch.where(flip.view(-1, 1, 1, 1) > 0, len(column) - 1 - columns, columns)
        return self.images[index.view(-1, 1, 1, 1), channel.view(-1, 1, 1), rows, columns]

    def _inside(self, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return which pixels lie in each picture's rectangle: (B, 1, H, W)."""
        row, column = self.axes[1].view(-1, 1), self.axes[2]
        top, bottom, left, right = (edge.view(-1, 1, 1, 1) for edge in (top, bottom, left, right))
        return (row >= top) & (row < bottom) & (column >= left) & (column < right)

    def _noise(self, start: Tensor) -> Tensor:
        """Return noise for whole pictures, cut from the table: (B, C, H, W), uint8."""
        assert self.noise is not None
        channel, row, column = self.axes
        place = start.view(-1, 1, 1, 1) + row.view(-1, 1) * len(column) + column
        return self.noise[channel.view(-1, 1, 1), place]


def check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse uint8 pictures (n, C, H, W) that would fill the memory of a device.

    Raises:
        ValueError: They would.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if math.prod(shape) > MOST_OF_MEMORY * free:
        most, needed = MOST_OF_MEMORY * free / 1e9, math.prod(shape) / 1e9
        raise ValueError(
            f"data: {shape[0]} pictures must take at most {most:.1f} GB, {MOST_OF_MEMORY:.0%} of what is free on "
            f"{device.type}, got {needed:.1f} GB; give --resident false"
        )


def draws(seed: int, first: int, last: int) -> NDArray[np.float64]:
    """Return the random numbers of pictures `first` to `last` - 1: (B, DRAWS), each row a function of its number."""
    counted = np.random.Philox(key=np.array([seed, CHOICES], np.uint64), counter=first * DRAWS // 4)
    return np.random.Generator(counted).random((last - first, DRAWS))


def shifts(random: NDArray[np.float64], size: int, cfg: TrainConfig) -> NDArray[np.int64]:
    """Return by how many pixels pictures are moved along an axis of `size`, (B,): up to an eighth, or not at all."""
    most = size // 8 if cfg.crop == "padded" else 0
    return (random * (2 * most + 1)).astype(np.int64) - most


def erased_boxes(random: NDArray[np.float64], model: ModelConfig, share: float) -> Boxes:
    """Return the rectangles that are erased, in a share of the pictures; the rules are those of `augment.erased`."""
    height, width = model.image
    area, aspect = random[:, SHAPES : SHAPES + TRIES], random[:, SHAPES + TRIES : SHAPES + 2 * TRIES]
    area = height * width * (ERASED[0] + (ERASED[1] - ERASED[0]) * area)
    low, high = (math.log(edge) for edge in ERASED_ASPECT)
    aspect = np.exp(low + (high - low) * aspect)
    highs, wides = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (highs > 0) & (highs < height) & (wides > 0) & (wides < width)
    chosen = np.arange(len(random)), fits.argmax(1)
    erased = (random[:, ERASE] < share) & fits.any(1)
    return placed(random, model, highs[chosen] * erased, wides[chosen] * erased, (TOP, LEFT))


def mixed_boxes(
    random: NDArray[np.float64], model: ModelConfig, cfg: TrainConfig, shares: Sequence[NDArray[np.float64]]
) -> tuple[Boxes, NDArray[np.float64], NDArray[np.float64]]:
    """Return how neighbours are mixed; the rules are those of `augment.mix_pair`.

    Args:
        random: (B, DRAWS) of whole pairs; the first of a pair decides for both.
        model: The network.
        cfg: The run.
        shares: What is kept of a picture, drawn many times: when blending, and when pasting.

    Returns:
        The rectangles that come from the partner; the share that is kept of each picture outside them, (B,); and of
        each target, (B,).
    """
    random = random[::2].repeat(2, 0)
    mixed, paste, place = (random[:, PAIR + i] for i in range(3))
    pasted = (paste < 0.5) if cfg.mixup and cfg.cutmix else np.full(len(random), bool(cfg.cutmix))
    index = (place * TABLE).astype(np.int64)
    kept = np.where(pasted, shares[1][index], shares[0][index])
    kept = np.where(mixed < cfg.mix, kept, 1.0)
    height, width = model.image
    cut = np.sqrt(1 - kept) * pasted
    boxes = placed(random, model, np.rint(height * cut), np.rint(width * cut), (PAIR + 3, PAIR + 4))
    return boxes, np.where(pasted, 1.0, kept), np.where(pasted, 1 - boxes.high * boxes.wide / (height * width), kept)


def placed(
    random: NDArray[np.float64],
    model: ModelConfig,
    high: NDArray[np.float64],
    wide: NDArray[np.float64],
    which: tuple[int, int],
) -> Boxes:
    """Put rectangles of given sizes anywhere into the pictures."""
    (height, width), (row, column) = model.image, which
    top, left = random[:, row] * (height - high + 1), random[:, column] * (width - wide + 1)
    return Boxes(*(edge.astype(np.int64) for edge in (top, left, high, wide)))


def noise_table(model: ModelConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return noise of the data's mean and deviation, (C, TABLE + H W)."""
    height, width = model.image
    noise = rng.standard_normal((model.channels, TABLE + height * width), np.float32)
    mean, std = (np.array(v, np.float32)[:, None] for v in (model.mean, model.std))
    return np.clip(255 * (noise * std + mean), 0, 255).astype(np.uint8)


def partners(x: Tensor) -> Tensor:
    """Exchange the rows of every pair: (B, ...)."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
