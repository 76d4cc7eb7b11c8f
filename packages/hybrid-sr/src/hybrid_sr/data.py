"""What a batch is, and which crops are in it.

A batch is {"lr": (B, 3, p, p), "hr": (B, 3, s * p, s * p)}, RGB; uint8 0..255 from the loader, float32 in [0, 1] on the
device (`to_float`). B crops, p side of a crop in low-resolution pixels, s scale.

Crop number i of a run is a function of (seed, i) alone, and a step owns the numbers from step * global_batch on. So
nothing has to be stored to resume, and neither the number of workers, nor of processes, nor the accumulation changes
what is learned from.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .photos import Pair, check_memory, read_pairs
from .recipes import TrainConfig
from .sources import find_photos, is_stream
from .validation import validation_pairs

if TYPE_CHECKING:
    from .stream import Stream

Batch = dict[str, Tensor]

Source: TypeAlias = "Crops | Stream"

PLACE, SHUFFLE = 1, 2  # names of the random streams beside the seed
AHEAD = 4  # batches that every worker prepares in advance


class Crops(Dataset[Batch]):
    """Crops of photos in memory, by number.

    Every photo is divided into cells of p x p low-resolution pixels. An epoch visits every cell once in a random order,
    each time moved by up to half a cell and turned or mirrored (three flips with probability 1/2 each: all eight
    positions of a square). Cells without contrast are left out.

    Args:
        pairs: The photos.
        scale: s.
        patch: p.
        seed: Of every choice.
        min_contrast: Least standard deviation of a cell's low-resolution luma, in grey levels.

    Raises:
        ValueError: No cell has that contrast.
    """

    def __init__(self, pairs: Sequence[Pair], *, scale: int, patch: int, seed: int, min_contrast: float) -> None:
        self.pairs = list(pairs)
        self.scale, self.patch, self.seed = scale, patch, seed
        found = [
            np.insert(contrasting_cells(pair.lr, patch, min_contrast), 0, number, axis=1)
            for number, pair in enumerate(self.pairs)
        ]
        self.cells = np.concatenate(found)  # (cells, 3): photo, top, left
        if not len(self.cells):
            raise ValueError(f"data: no part of the images has contrast {min_contrast}; lower --min_contrast")

    def __len__(self) -> int:
        """Cells, that is crops per epoch."""
        return len(self.cells)

    def place(self, number: int) -> tuple[int, int, int, NDArray[np.bool_]]:
        """Return photo, top, left (low-resolution pixels) and the three flips (rows, columns, transpose) of a crop."""
        epoch, position = divmod(number, len(self.cells))
        photo, top, left = self.cells[_order(self.seed, epoch, len(self.cells))[position]]
        rng = np.random.default_rng((self.seed, PLACE, number))
        height, width = self.pairs[photo].lr.shape[:2]
        half = self.patch // 2
        top = np.clip(top + rng.integers(-half, half + 1), 0, height - self.patch)
        left = np.clip(left + rng.integers(-half, half + 1), 0, width - self.patch)
        return int(photo), int(top), int(left), rng.random(3) < 0.5

    def __getitem__(self, number: int) -> Batch:
        """Return crop `number` of the run as a batch of one, uint8."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return the crops `numbers` of the run as one batch, uint8."""
        s, p = self.scale, self.patch
        lr = np.empty((len(numbers), 3, p, p), np.uint8)
        hr = np.empty((len(numbers), 3, s * p, s * p), np.uint8)
        for row, number in enumerate(numbers):
            photo, top, left, flips = self.place(number)
            pair = self.pairs[photo]
            lr[row] = flip(pair.lr[top : top + p, left : left + p], flips)
            hr[row] = flip(pair.hr[s * top : s * (top + p), s * left : s * (left + p)], flips)
        return {"lr": torch.from_numpy(lr), "hr": torch.from_numpy(hr)}

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return which photos the crops come from, each once, in order."""
        return list(dict.fromkeys(self.pairs[self.place(number)[0]].name for number in numbers))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, SHUFFLE, epoch)).permutation(length)


def flip(image: NDArray[np.uint8], flips: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mirror rows, columns, and transpose as told, then put channels first: (p, p, 3) -> (3, p, p), a view."""
    if flips[0]:
        image = image[::-1]
    if flips[1]:
        image = image[:, ::-1]
    return image.transpose(2, 1, 0) if flips[2] else image.transpose(2, 0, 1)


def contrasting_cells(lr: NDArray[np.uint8], patch: int, least: float) -> NDArray[np.int64]:
    """Return (top, left) of the cells of a low-resolution image whose luma deviates by at least `least`: (n, 2)."""
    rows, columns = lr.shape[0] // patch, lr.shape[1] // patch
    luma = lr[: rows * patch, : columns * patch] @ np.array([0.299, 0.587, 0.114], np.float32)
    deviation = luma.reshape(rows, patch, columns, patch).std(axis=(1, 3))
    return np.argwhere(deviation >= least) * patch


class Steps(Sampler[list[int]]):
    """The crop numbers of every micro-batch of one process, from step `start` to the last."""

    def __init__(self, cfg: TrainConfig, start: int, rank: int) -> None:
        self.cfg, self.start, self.rank = cfg, start, rank

    def __iter__(self) -> Iterator[list[int]]:
        """Yield `micro_batch` numbers at a time; over the processes and micro-steps they make up the global batch."""
        cfg = self.cfg
        for step in range(self.start, cfg.steps):
            for micro in range(cfg.micro_steps):
                first = step * cfg.global_batch + (micro * cfg.processes + self.rank) * cfg.micro_batch
                yield list(range(first, first + cfg.micro_batch))

    def __len__(self) -> int:
        """Micro-batches of one process that are left."""
        return (self.cfg.steps - self.start) * self.cfg.micro_steps


def open_source(cfg: TrainConfig, *, rank: int, verbose: bool) -> tuple[Source, list[Pair]]:
    """Return the crops of a run and its validation photos.

    Args:
        cfg: The run.
        rank: Of this process.
        verbose: Say on stderr what is used and what was skipped.

    Raises:
        ValueError: There is nothing to train on; the message says what was looked for.
    """
    if cfg.data is not None and is_stream(cfg.data):
        from .stream import Stream

        return Stream(cfg, rank), validation_pairs(cfg, [])
    photos = find_photos(cfg.data, data_lr=cfg.data_lr, scale=cfg.scale, halve=cfg.halve)
    shown = validation_pairs(cfg, photos)
    chosen = [photo for photo in photos if photo.split == "train"]
    check_memory(chosen)
    pairs = read_pairs(chosen, cfg.scale, cfg.patch, verbose=verbose)
    crops = Crops(pairs, scale=cfg.scale, patch=cfg.patch, seed=cfg.seed, min_contrast=cfg.min_contrast)
    if verbose:
        print(f"{len(pairs)} photos, {len(crops)} crops per epoch, {len(shown)} validation photos", file=sys.stderr)
    return crops, shown


def loader(cfg: TrainConfig, crops: Source, start: int, rank: int, *, pin: bool) -> DataLoader[Batch]:
    """Return the micro-batches of one process from step `start` on, uint8.

    Args:
        cfg: The run.
        crops: Where they come from.
        start: First step.
        rank: Of this process.
        pin: Put batches into page-locked memory, which makes copies to a GPU asynchronous.
    """
    generator = torch.Generator()  # its own: the global one belongs to the network and is restored on resume
    if isinstance(crops, Crops):
        return DataLoader(
            crops,
            batch_sampler=Steps(cfg, start, rank),
            collate_fn=_already_a_batch,
            num_workers=cfg.workers,
            pin_memory=pin,
            generator=generator,
            prefetch_factor=AHEAD if cfg.workers else None,
            worker_init_fn=_leave_signals_to_main,
        )
    crops.start = start
    # always one reader: `datasets` orders rows by another rule in the main process, and several would mix them
    return DataLoader(
        crops,
        batch_size=None,
        num_workers=1,
        pin_memory=pin,
        generator=generator,
        prefetch_factor=AHEAD,
        worker_init_fn=_leave_signals_to_main,
    )


def _leave_signals_to_main(worker: int) -> None:
    """Let a loader process live through Ctrl-C and a SIGTERM to the whole group: it goes when the main one does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _already_a_batch(batch: Any) -> Any:  # the loader's type wants a list here, __getitems__ made the batch
    return batch


def to_float(batch: Batch, device: torch.device) -> Batch:
    """Copy uint8 crops to the device, a quarter of the bytes, and make them float32 in [0, 1] there."""
    return {name: crop.to(device, non_blocking=True).float().div_(255) for name, crop in batch.items()}
