"""What a batch is, and which pictures are in it.

Sample number i of a run is a function of (seed, i) alone, and a step owns the numbers of `RunConfig.samples_of`. So
nothing has to be stored to resume, and neither workers, nor processes, nor accumulation change what is learned from.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .packed import CAPTIONED, Pictured, is_packed, load_packed, read_all
from .rows import is_rows, read_rows
from .runconfig import RunConfig
from .sources import find_pictures
from .text import TextCache

Batch = dict[str, Tensor]

CHOICE, SHUFFLE = 1, 2  # names of the random streams beside the seed
AHEAD = 4  # batches that every worker prepares in advance


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The pictures of a run: what is learned from, what is looked at, and encoded captions if the source has them."""

    train: list[Pictured]
    validation: list[Pictured]
    other: list[Pictured]  # held out
    cache: TextCache | None = None


def check_source(data: str | None) -> None:
    """Refuse a source without pictures before anything is built; nothing is opened.

    Raises:
        ValueError: It says what was looked for.
    """
    if not is_packed(data) and not is_streamed(data):
        find_pictures(data)


def is_streamed(data: str | None) -> bool:
    """Whether `data` is read row by row: shards, or the name of a data set."""
    return data is not None and not is_packed(data) and is_rows(data)


def open_collection(data: str | None, *, size: int | None, captioned: bool, verbose: bool) -> Collection:
    """Read all pictures of a source into memory; training streams those of shards instead (stream.py).

    Args:
        data: As `RunConfig.data`.
        size: Side of drawings in pixels, where they are not packed.
        captioned: Leave out pictures without a caption (they are counted and named).
        verbose: Say on stderr what is used and what was skipped.

    Raises:
        ValueError: Nothing can be used, or it does not fit into memory.
    """
    cache = None
    if is_packed(data):
        assert data is not None
        pictures, cache = load_packed(Path(data))
    elif data is not None and is_streamed(data):
        pictures = read_rows(data, verbose=verbose)
    else:
        sources = find_pictures(data)
        if captioned:
            bare = [p for p in sources if not p.captions]
            sources = [p for p in sources if p.captions]
            if bare and verbose:
                lines = [f"skipped {p.path}: no caption in metadata.jsonl or metadata.csv" for p in bare]
                print(
                    "\n".join([*lines[:8], f"{len(bare)} of {len(bare) + len(sources)} images skipped"]),
                    file=sys.stderr,
                )
            if not sources:
                raise ValueError(f"data: none of {len(bare)} images has a caption; {CAPTIONED}")
        pictures = read_all(sources, size, verbose=verbose)
    if captioned:
        pictures = [p for p in pictures if p.captions]
    train = [p for p in pictures if p.split == "train"]
    if not train:
        raise ValueError(f"data: {data} has no training pictures; all belong to other splits")
    validation = [p for p in pictures if p.split == "validation"]
    other = [p for p in pictures if p.split == "held-out"]
    if verbose:
        print(f"{len(train)} training, {len(validation)} validation, {len(other)} held-out pictures", file=sys.stderr)
    return Collection(train=train, validation=validation, other=other, cache=cache)


class Visits:
    """Which picture a sample shows: every epoch visits each picture `repeats` times in a random order."""

    def __init__(self, pictures: int, repeats: int, seed: int) -> None:
        self.pictures, self.length, self.seed = pictures, pictures * repeats, seed

    def picture(self, number: int) -> int:
        """Return the place of the picture of sample `number`."""
        epoch, position = divmod(number, self.length)
        return int(_order(self.seed, epoch, self.length)[position]) % self.pictures

    def rng(self, number: int) -> np.random.Generator:
        """Return the source of all other choices of sample `number`."""
        return np.random.default_rng((self.seed, CHOICE, number))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, SHUFFLE, epoch)).permutation(length)


class PictureData(Dataset[Batch]):
    """Augmented pictures by number; a key is (number, size). A batch is {"pictures": (B, 3, size, size) uint8}."""

    def __init__(self, pictures: Sequence[Pictured], cfg: RunConfig, *, flip: bool, shift: float) -> None:
        self.pictures, self.flip, self.shift = list(pictures), flip, shift
        self.visits = Visits(len(pictures), cfg.repeats, cfg.seed)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Return a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """Return samples as one batch."""
        size = keys[0][1]
        batch = np.empty((len(keys), 3, size, size), np.uint8)
        for row, (number, _) in enumerate(keys):
            rng = self.visits.rng(number)
            pixels = self.pictures[self.visits.picture(number)].pixels
            batch[row] = augment(pixels, size, rng, flip=self.flip, shift=self.shift).transpose(2, 0, 1)
        return {"pictures": torch.from_numpy(batch)}

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return which pictures the samples show, each once, in order."""
        return list(dict.fromkeys(self.pictures[self.visits.picture(n)].name for n in numbers))


def augment(
    pixels: NDArray[np.uint8], size: int, rng: np.random.Generator, *, flip: bool, shift: float
) -> NDArray[np.uint8]:
    """Return a (size, size, 3) view of a picture: resized to its shorter side, cropped, mirrored, moved."""
    crop = rng.random(2)
    mirrored = flip and rng.random() < 0.5
    moved = np.rint(rng.uniform(-shift, shift, 2) * size).astype(int)
    pixels = square(pixels, size, crop[0], crop[1])
    if mirrored:
        pixels = pixels[:, ::-1]
    if moved.any():
        pad = int(np.abs(moved).max())
        wide = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
        top, left = pad + moved[0], pad + moved[1]
        pixels = wide[top : top + size, left : left + size]
    return pixels


def square(pixels: NDArray[np.uint8], size: int, down: float = 0.5, right: float = 0.5) -> NDArray[np.uint8]:
    """Resize to `size` on the shorter side and cut the longer one; `down` and `right` in [0, 1] say where."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if min(height, width) != size:
        scale = size / min(height, width)
        target = (max(size, round(width * scale)), max(size, round(height * scale)))
        pixels = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.LANCZOS))
        height, width = pixels.shape[:2]
    top, left = round(down * (height - size)), round(right * (width - size))
    return pixels[top : top + size, left : left + size]


class Steps(Sampler[list[Any]]):
    """The keys of every micro-batch of one process, from step `start` to the last.

    Args:
        cfg: The run.
        start: First step.
        rank: Of the process.
    """

    def __init__(self, cfg: RunConfig, start: int, rank: int) -> None:
        self.cfg, self.start, self.rank = cfg, start, rank

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield keys; over the processes and micro-steps they make up the numbers of a step."""
        for step in range(self.start, self.cfg.steps):
            yield from self.cfg.keys_of(step, self.rank)

    def __len__(self) -> int:
        """Micro-batches of one process that are left."""
        return sum(len(self.cfg.keys_of(step, self.rank)) for step in range(self.start, self.cfg.steps))


def loader(cfg: RunConfig, data: Dataset[Batch], start: int, rank: int, *, pin: bool) -> DataLoader[Batch]:
    """Return the micro-batches of one process from step `start` on.

    Args:
        cfg: The run.
        data: By key.
        start: First step.
        rank: Of this process.
        pin: Put batches into page-locked memory, which makes copies to a GPU asynchronous.
    """
    if isinstance(data, IterableDataset):
        data.start = start  # pyright: ignore[reportAttributeAccessIssue]  # stream.py's
        # always one reader: `datasets` orders rows by another rule in the main process, and several would mix them
        return DataLoader(
            data,
            batch_size=None,
            num_workers=1,
            pin_memory=pin,
            generator=torch.Generator(),
            prefetch_factor=AHEAD,
            worker_init_fn=_leave_signals_to_main,
        )
    return DataLoader(
        data,
        batch_sampler=Steps(cfg, start, rank),
        collate_fn=_already_a_batch,
        num_workers=cfg.workers,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the global one belongs to the network and is restored on resume
        prefetch_factor=AHEAD if cfg.workers else None,
        worker_init_fn=_leave_signals_to_main,
    )


def _leave_signals_to_main(worker: int) -> None:
    """Let a loader process live through Ctrl-C and a SIGTERM to the whole group: it goes when the main one does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _already_a_batch(batch: Any) -> Any:  # the loader's type wants a list here, __getitems__ made the batch
    return batch


def to_pictures(batch: Tensor, device: torch.device) -> Tensor:
    """Copy uint8 pictures to the device and make them float32 in [0, 1] there."""
    return batch.to(device, non_blocking=True).float().div_(255)


def as_tensor(pictures: Sequence[Pictured], size: int) -> Tensor:
    """Return pictures as they are, (n, 3, size, size) uint8, the middle of what is not square."""
    stacked = np.stack([square(p.pixels, size) for p in pictures])
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))
