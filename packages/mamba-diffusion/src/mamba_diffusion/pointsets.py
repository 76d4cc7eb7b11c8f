"""Training from scattered measurements: every file is a field, known only at its points.

The points of a step are drawn from those of a file: some are the sensors, some the queries. Fields, points, times and
noise are functions of the seed and the number, as with grids. N points, C channels, d axes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .data import PLACE, Batch, in_order, shape_at, time_at
from .points import FEWEST, Points, read_points
from .process import Moments, noise_numbers
from .recipes import TrainConfig


class PointSets(Dataset[Batch]):
    """Fields that are known at scattered points only, by number.

    Args:
        files: One field each, as `read_points` reads them.
        cfg: The run; its `sensors` are shares of the smallest file's points, its `sides` are not used.
        verbose: Name on stderr what could not be read.

    Attributes:
        unit: Of the values.
        moments: Mean and deviation of every channel.

    Raises:
        ValueError: No file can be read, or they differ in axes, channels or unit from each other or from the model.
    """

    def __init__(self, files: Sequence[Path], cfg: TrainConfig, *, verbose: bool) -> None:
        self.cfg = cfg
        self.files, sets = read_sets(files, verbose=verbose)
        first = sets[0]
        for file, points in zip(self.files, sets, strict=True):
            _check(file, points, first, cfg)
        stretch = any(cfg.model.wraps)
        self.coords = [points.to_domain(points.places, stretch=stretch) for points in sets]
        self.values = [points.values for points in sets]
        self.unit = first.unit
        self.fewest = min(len(values) for values in self.values)
        self.moments = _moments(np.concatenate(self.values))

    def __len__(self) -> int:
        """Fields per epoch."""
        return len(self.values)

    def _place(self, number: int) -> int:
        epoch, position = divmod(number, len(self))
        return int(in_order(self.cfg.seed, epoch, len(self))[position])

    def __getitem__(self, number: int) -> Batch:
        """Return field `number` of the run as a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return the fields `numbers` of the run, all of one step, as one batch."""
        cfg = self.cfg
        shape = shape_at(numbers[0] // cfg.global_batch, cfg)
        share = shape.sensors / cfg.sides[0] ** cfg.model.dims
        sensors = min(self.fewest, max(FEWEST, round(share * self.fewest)))
        queries = min(self.fewest, shape.queries)
        rows = [self._row(number, sensors, queries) for number in numbers]
        batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        return batch | {"anchors": torch.tensor([min(shape.anchors, queries)])}

    def _row(self, number: int, sensors: int, queries: int) -> dict[str, NDArray]:
        which, rng = self._place(number), np.random.default_rng((self.cfg.seed, PLACE, number))
        coords, values = self.coords[which], self.values[which]
        seen = rng.permutation(len(values))[:sensors]
        asked = rng.permutation(len(values))[:queries]
        row = {"input_coords": coords[seen], "input_values": values[seen]}
        row |= {"query_coords": coords[asked], "query_values": values[asked]}
        return row | {"t": time_at(number, self.cfg), **noise_numbers(rng, self.cfg.model, queries)}

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return which files the fields come from, each once, in order."""
        return list(dict.fromkeys(str(self.files[self._place(number)]) for number in numbers))


def read_sets(files: Sequence[Path], *, verbose: bool) -> tuple[list[Path], list[Points]]:
    """Read what can be read; the rest is named on stderr, skipped and counted.

    Raises:
        ValueError: Not one file can be read.
    """
    good, sets, skipped = [], [], []
    for file in files:
        try:
            sets.append(read_points(file))
            good.append(file)
        except (OSError, ValueError) as error:
            skipped.append(f"skipped {file}: {' '.join(str(error).split())}")
    if skipped and verbose:
        print("\n".join([*skipped, f"{len(skipped)} of {len(files)} files skipped"]), file=sys.stderr)
    if not sets:
        raise ValueError(f"data: none of {len(files)} point files can be read; the first: {skipped[0]}")
    return good, sets


def _check(file: Path, points: Points, first: Points, cfg: TrainConfig) -> None:
    dims, channels = len(points.axes), points.values.shape[1]
    if dims != cfg.model.dims or channels != cfg.model.channels:
        raise ValueError(
            f"data: {file} has {dims} axes and {channels} channels, the model {cfg.model.dims} and "
            f"{cfg.model.channels}; give --model.dims {dims} --model.channels {channels}, or another preset"
        )
    if points.unit != first.unit:
        raise ValueError(f"data: {file} is in {points.unit or 'no unit'}, others in {first.unit or 'no unit'}; convert")


def _moments(values: NDArray[np.float32]) -> Moments:
    std = values.std(0, dtype=np.float64)
    return Moments(values.mean(0, dtype=np.float64).astype(np.float32), np.where(std > 0, std, 1).astype(np.float32))
