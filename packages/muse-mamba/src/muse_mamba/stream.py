"""Pictures from sets that do not fit into memory or onto the disk: shards, or a data set's name.

For the tokenizer, sample number n of a run is row n of an endless stream (shuffled with the seed, again in every
epoch), whatever the number of processes; to resume, the rows that were used are passed over without being decoded. For
the token model the rows are read once, and only their tokens and captions are kept, a few hundred bytes a picture.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from .data import CHOICE, Batch, Steps, augment
from .packed import Pictured
from .rows import decode, each_row, open_rows, shards
from .runconfig import RunConfig

SHUFFLE_BUFFER = 1_000  # rows
FIRST_ROWS = 100  # one of them must be a picture
EMPTY = np.zeros((0, 0, 3), np.uint8)


class PictureStream(IterableDataset[Batch]):
    """Micro-batches of one process, in order: {"pictures": (B, 3, size, size) uint8}.

    A row that is no picture is named on stderr and counted; the first good picture of the stream takes its place.

    Args:
        cfg: The run; its `data` is a folder of .parquet or .tar files, one such file, or a data set's name.
        rank: Of the process.
        flip: Mirror pictures with probability 1/2.
        shift: Largest random shift, as a share of the side.

    Attributes:
        start: Step to begin with.

    Raises:
        ValueError: There is no such thing, it holds no pictures, or `datasets` is not installed.
    """

    def __init__(self, cfg: RunConfig, rank: int, *, flip: bool, shift: float) -> None:
        assert cfg.data is not None
        self.cfg, self.rank, self.flip, self.shift = cfg, rank, flip, shift
        self.start = self.skipped = 0
        column, _, rows = open_rows(cfg.data)
        self.column: str = column
        self.rows: Any = rows.select_columns(column).shuffle(seed=cfg.seed, buffer_size=SHUFFLE_BUFFER)
        self._spare: NDArray[np.uint8] | None = None

    @property
    def pictures(self) -> Sequence[Pictured]:
        """The first good picture, for a look at what is learned from."""
        return [Pictured(name="row", captions=(), split="train", concept="", package="", pixels=self.spare())]

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return what the samples come from."""
        return [f"row {number} of {self.cfg.data}" for number in numbers]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the micro-batches of the process from step `start` on."""
        values, position = self._values(), 0
        for keys in Steps(self.cfg, self.start, self.rank):
            size = keys[0][1]
            batch = np.empty((len(keys), 3, size, size), np.uint8)
            for row, (number, _) in enumerate(keys):
                value = next(islice(values, number - position, None))
                position = number + 1
                rng = np.random.default_rng((self.cfg.seed, CHOICE, number))
                pixels = augment(self._pixels(value, number), size, rng, flip=self.flip, shift=self.shift)
                batch[row] = pixels.transpose(2, 0, 1)
            yield {"pictures": torch.from_numpy(batch)}

    def _pixels(self, value: dict[str, Any], number: int) -> NDArray[np.uint8]:
        try:
            return decode(value)
        except (OSError, TypeError) as error:
            self.skipped += 1
            print(f"skipped row {number} of {self.cfg.data}: {error} ({self.skipped} so far)", file=sys.stderr)
            return self.spare()

    def spare(self) -> NDArray[np.uint8]:
        """Return the first good picture of the stream.

        Raises:
            ValueError: None of the first hundred rows is one.
        """
        if self._spare is None:
            for value in islice(self._values(), FIRST_ROWS):
                try:
                    self._spare = decode(value)
                    break
                except (OSError, TypeError):  # named and counted when its own turn comes
                    continue
        if self._spare is None:
            raise ValueError(f"data: none of the first {FIRST_ROWS} rows of {self.cfg.data} can be used")
        return self._spare

    def _values(self) -> Iterator[dict[str, Any]]:
        """Yield undecoded pictures without end."""
        for epoch in count():
            self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                yield row[self.column]
            if empty:
                raise ValueError(f"data: {self.cfg.data} has no rows; give a data set with pictures")


def described_rows(data: str, size: int, *, verbose: bool) -> Iterator[tuple[Pictured, ...]]:
    """Yield rows that have captions, `size` at a time.

    Raises:
        ValueError: As `each_row`.
    """
    captioned = (picture for picture in each_row(data, verbose=verbose) if picture.captions)
    while part := tuple(islice(captioned, size)):
        yield part


def without_pixels(picture: Pictured) -> Pictured:
    """Return what is known about a picture, but not the picture."""
    return replace(picture, pixels=EMPTY)


def identity(data: str) -> list[Any]:
    """Return what tells one state of a set from another: its shards with size and time, or its name."""
    files = [Path(file) for file in shards(data)]
    return [data, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
