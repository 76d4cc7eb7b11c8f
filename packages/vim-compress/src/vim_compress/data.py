"""What a batch is, and which pictures are in it.

A batch is {"image": (B, C, H, W) uint8, "target": (B, K) float32, which sums to 1}; `preprocess.to_float` normalises on
the device. B pictures, C channels, K classes.

Picture number i of a run is a function of (seed, i) alone, and a step owns the numbers from step * global_batch on. So
nothing has to be stored to resume, and neither the number of workers, nor of processes, nor the accumulation changes
what is learned from. Numbers 2 i and 2 i + 1 are mixed with each other, if pictures are mixed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .ahead import find_ahead
from .augment import Augment, kept_generators, mix_pair, soft_targets
from .config import ModelConfig
from .pictures import Pictures
from .preprocess import as_mode
from .recipes import TrainConfig
from .sources import is_stream, open_pictures

if TYPE_CHECKING:
    from PIL import Image

    from .stream import Stream

Batch = dict[str, Tensor]

Source: TypeAlias = "Numbered | Stream"

PLACE, SHUFFLE, MIX = 1, 2, 3  # names of the random streams beside the seed
AHEAD = 4  # batches that every worker prepares in advance


class Numbered(Dataset[Batch]):
    """Augmented pictures by number. An epoch shows every picture `repeats` times, in a random order.

    Args:
        pictures: What is shown.
        cfg: The run.
        model: Its network, with the classes of the data.
    """

    def __init__(self, pictures: Pictures, cfg: TrainConfig, model: ModelConfig) -> None:
        self.pictures, self.cfg, self.model = pictures, cfg, model
        self.augment = Augment(cfg, model)
        self.ahead = find_ahead(cfg, model)
        self.skipped = 0
        self._spare: Image.Image | None = None

    def __len__(self) -> int:
        """Pictures per epoch, repeats counted."""
        return len(self.pictures) * self.cfg.repeats

    def places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which pictures numbers are."""
        epochs, positions = np.divmod(numbers, len(self))
        count, repeats = len(self.pictures), self.cfg.repeats
        chunk = max(2, self.cfg.global_batch // repeats)  # so many pictures are repeated within about one step
        blocks, inside = np.divmod(positions, chunk * repeats)
        sizes = np.minimum(chunk, count - blocks * chunk)
        found = blocks * chunk + inside % sizes
        for epoch in np.unique(epochs):
            now = epochs == epoch
            found[now] = _order(self.cfg.seed, int(epoch), count)[found[now]]
        return found

    def place(self, number: int) -> int:
        """Return which picture a number is."""
        return int(self.places(np.array([number]))[0])

    def one(self, number: int) -> tuple[NDArray[np.uint8], int]:
        """Return picture `number` of the run, (C, H, W), and its class."""
        index = self.place(number)
        rng = np.random.default_rng((self.cfg.seed, PLACE, number))
        return self.augment(self._read(index), rng), int(self.pictures.labels[index])

    def __getitem__(self, number: int) -> Batch:
        """Return picture `number` of the run as a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return the pictures `numbers` of the run as one batch."""
        made = None if self.ahead is None else self.ahead.batch(numbers)
        if made is not None:
            return made
        with kept_generators():
            found = {n: self.one(n) for n in _with_partners(numbers, self.cfg)}
        return assemble(numbers, found, self.cfg, self.model)

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return what the pictures are called, each once, in order."""
        return list(dict.fromkeys(self.pictures.names[self.place(number)] for number in numbers))

    def _read(self, index: int) -> Image.Image:
        """Read a picture; for one that cannot be read, which is named and counted, the last good one."""
        try:
            self._spare = self.pictures.image(index)
        except OSError as error:
            self.skipped += 1
            print(f"skipped {self.pictures.names[index]}: {error} ({self.skipped} so far)", file=sys.stderr)
            if self._spare is None:
                self._spare = self._first_good()
        return self._spare

    def _first_good(self) -> Image.Image:
        for index in range(min(100, len(self.pictures))):
            try:
                return self.pictures.image(index)
            except OSError:  # named and counted when its own turn comes
                continue
        raise ValueError(f"data: none of the first 100 of {len(self.pictures)} pictures can be read; check the files")


def _with_partners(numbers: Sequence[int], cfg: TrainConfig) -> list[int]:
    if not (cfg.mixup or cfg.cutmix):
        return list(numbers)
    return sorted({n for number in numbers for n in (number & ~1, number | 1)})


def assemble(
    numbers: Sequence[int], found: dict[int, tuple[NDArray[np.uint8], int]], cfg: TrainConfig, model: ModelConfig
) -> Batch:
    """Put pictures by number together to a batch, mixing neighbours.

    Args:
        numbers: What the batch holds, in order.
        found: Each number's picture (C, H, W) and class; where pictures are mixed, their partners' too.
        cfg: The run.
        model: Its network.
    """
    order = sorted(found)
    pixels = np.stack([found[n][0] for n in order])
    target = soft_targets(np.array([found[n][1] for n in order], np.int64), model.classes, cfg.smoothing)
    if cfg.mixup or cfg.cutmix:
        for row in range(0, len(order), 2):
            rng = np.random.default_rng((cfg.seed, MIX, order[row]))
            pixels[row : row + 2], target[row : row + 2] = mix_pair(
                pixels[row : row + 2], target[row : row + 2], cfg, rng
            )
    rows = [order.index(n) for n in numbers] if len(order) != len(numbers) else slice(None)
    return {"image": torch.from_numpy(pixels[rows]), "target": torch.from_numpy(target[rows])}


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, SHUFFLE, epoch)).permutation(length)


class Steps(Sampler[list[int]]):
    """The picture numbers of every micro-batch of one process, from step `start` to the last."""

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


def open_source(cfg: TrainConfig, *, rank: int, verbose: bool) -> tuple[Source, Pictures | None, ModelConfig]:
    """Return the pictures of a run, those to validate on, and the network's configuration with the data's classes.

    Args:
        cfg: The run.
        rank: Of this process.
        verbose: Say on stderr what is used and what was skipped.

    Raises:
        ValueError: There is nothing to train on, or its classes are not the network's; the message says what was
            looked for.
    """
    side = max(cfg.model.image)
    if cfg.data is not None and is_stream(cfg.data):
        if cfg.resident:
            raise ValueError(f"data: {cfg.data} is a stream, not pictures in memory; give --resident false")
        from .stream import Stream

        stream = Stream(cfg, rank)
        held = stream.held_out() if cfg.validation == "auto" else _given(cfg, side, stream.model.labels, verbose)
        return stream, held, stream.model
    train, held = open_pictures(cfg.data, side, verbose=verbose)
    if cfg.validation != "auto":
        held = _given(cfg, side, train.classes, verbose)
    if cfg.resident and not all(isinstance(image, np.ndarray) for image in train.images):
        raise ValueError(f"data: {len(train)} files are not kept in memory; give --resident false")
    model = named(cfg.model, train.classes, train.domain)
    as_mode(train.image(0), model.channels)  # refuses a number of channels that pictures cannot have
    if verbose:
        count = 0 if held is None else len(held)
        print(f"{len(train)} pictures of {len(train.classes)} classes, {count} to validate on", file=sys.stderr)
    return Numbered(train, cfg, model), held, model


def named(model: ModelConfig, classes: tuple[str, ...], domain: str) -> ModelConfig:
    """Return the configuration with the classes of the data.

    Raises:
        ValueError: The configuration asks for another number, or other names.
    """
    if model.classes not in (0, len(classes)):
        raise ValueError(
            f"data: has {len(classes)} classes, the model {model.classes} outputs; "
            "set --model.classes 0 to take them from the data, or give other data"
        )
    if model.labels and model.labels != classes:
        raise ValueError(
            f"data: its classes ({', '.join(classes[:3])}, ...) are not those of the model "
            f"({', '.join(model.labels[:3])}, ...); give the data that the model was trained on"
        )
    return replace(model, classes=len(classes), labels=classes, domain=model.domain or domain)


def _given(cfg: TrainConfig, side: int, classes: tuple[str, ...], verbose: bool) -> Pictures | None:
    if cfg.validation == "none":
        return None
    train, held = open_pictures(cfg.validation, side, verbose=verbose)
    found = train if held is None else held
    if found.classes != classes:
        raise ValueError(f"validation: {cfg.validation} has other classes than the training data; give the same ones")
    return found


def loader(cfg: TrainConfig, source: Source, start: int, rank: int, *, pin: bool) -> DataLoader[Batch]:
    """Return the micro-batches of one process from step `start` on.

    Args:
        cfg: The run.
        source: Where they come from.
        start: First step.
        rank: Of this process.
        pin: Put batches into page-locked memory, which makes copies to a GPU asynchronous.
    """
    generator = torch.Generator()  # its own: the global one belongs to the network and is restored on resume
    if isinstance(source, Numbered):
        workers = cfg.workers if source.ahead is None else 0  # what only has to be read needs no other process
        return DataLoader(
            source,
            batch_sampler=Steps(cfg, start, rank),
            collate_fn=_already_a_batch,
            num_workers=workers,
            pin_memory=pin,
            generator=generator,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=_leave_signals_to_main,
        )
    source.start = start
    # always one reader: `datasets` orders rows by another rule in the main process, and several would mix them
    return DataLoader(
        source,
        batch_size=None,
        num_workers=1,
        pin_memory=pin,
        generator=generator,
        prefetch_factor=AHEAD,
        worker_init_fn=_leave_signals_to_main,
    )


def _leave_signals_to_main(worker: int) -> None:
    """Let a loader process live through Ctrl-C and a SIGTERM to the whole group: it goes when the main one does."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _already_a_batch(batch: Any) -> Any:  # the loader's type wants a list here, __getitems__ made the batch
    return batch
