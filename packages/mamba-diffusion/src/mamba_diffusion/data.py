"""What a batch is, and which fields, points, times and noises are in it.

A batch is a dict of B fields, float32: input_coords (B, Ni, d) and query_coords (B, Nq, d) in [0, 1], input_values
(B, Ni, C) and query_values (B, Nq, C) in the data's unit, t (B,), the noise (see `process`), and anchors (1,), how many
of the queries the others see. Coordinates are those of cell centres: point i of n is at (i + 0.5) / n, x first.

Field number i of a run is a function of (seed, i) alone; how many points it has, and its side, of (seed, step). A step
owns the numbers from step * global_batch on. So nothing has to be stored to resume, and neither the number of workers,
nor of processes, nor the accumulation changes what is learned from.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .embedded import halve
from .process import Moments, noise_numbers
from .recipes import TrainConfig
from .sources import Field, find_fields, is_stream, point_files

if TYPE_CHECKING:
    from .pointsets import PointSets
    from .stream import Stream

Batch = dict[str, Tensor]
Source: TypeAlias = "Crops | PointSets | Stream"

PLACE, SHUFFLE, SHAPE, TIME = 1, 2, 3, 4  # names of the random streams beside the seed
AHEAD = 4  # batches that every worker prepares in advance
SHARES = 8  # numbers of sensors between the least and the most


class Shape(NamedTuple):
    """How large the fields of a step are.

    Attributes:
        side: Points along each axis.
        sensors: Ni.
        queries: Nq.
        anchors: How many of the queries are seen by the others.
    """

    side: int
    sensors: int
    queries: int
    anchors: int


def shape_at(step: int, cfg: TrainConfig) -> Shape:
    """Return the sizes of a step: side, share of sensors (of eight, evenly spaced in logarithm), queries, anchors."""
    rng = np.random.default_rng((cfg.seed, SHAPE, step))
    side, queries = (int(rng.choice(choices)) for choices in (cfg.sides, cfg.queries))
    low, high = cfg.sensors
    share = low * (high / low) ** (rng.integers(SHARES) / (SHARES - 1))
    part = 1.0 if rng.random() < 0.5 else rng.choice([0.25, 0.5, 0.75])
    anchors = max(1, min(int(part * queries), cfg.model.anchors))
    return Shape(side, round(share * cfg.sides[0] ** cfg.model.dims), queries, anchors)


def time_at(number: int, cfg: TrainConfig) -> np.float32:
    """Return t of field `number`: the times of a step are evenly spread over [0, 1), from a random one on."""
    step, place = divmod(number, cfg.global_batch)
    first = np.random.default_rng((cfg.seed, TIME, step)).random()
    return np.float32((first + place / cfg.global_batch) % 1)


class Crops(Dataset[Batch]):
    """Square parts of fields in memory, by number.

    Every field, in several sizes if it is an image, is divided into cells of the first side. An epoch visits every cell
    once in a random order, each time moved by up to half a cell and turned or mirrored. Cells with too few numbers or
    too little contrast are left out.

    Args:
        fields: What is trained on.
        cfg: The run.
        moments: Of the training data, for the contrast.

    Raises:
        ValueError: No cell is large enough, full enough and contrasting enough.
    """

    def __init__(self, fields: Sequence[Field], cfg: TrainConfig, moments: Moments) -> None:
        self.cfg, self.dims = cfg, cfg.model.dims
        self.unit = fields[0].unit if fields else ""
        least = max(cfg.sides)
        sizes = [(f.name, x) for f in fields for x in pyramid(f.values, cfg.levels)]
        sizes = [(name, x) for name, x in sizes if min(x.shape[:-1]) >= least]
        self.names_, self.arrays = [n for n, _ in sizes], [x for _, x in sizes]
        found = [
            np.insert(usable_cells(x, cfg.sides[0], cfg.min_valid, cfg.min_contrast, moments), 0, number, axis=1)
            for number, x in enumerate(self.arrays)
        ]
        self.cells = np.concatenate(found) if found else np.empty((0, 1 + self.dims), np.int64)
        if not len(self.cells):
            raise ValueError(
                f"data: no part of {least} points a side of {len(fields)} fields has {cfg.min_valid:.0%} numbers and "
                f"contrast {cfg.min_contrast:g}; lower --sides, --min_valid or --min_contrast"
            )

    def __len__(self) -> int:
        """Cells, that is fields per epoch."""
        return len(self.cells)

    def place(self, number: int) -> tuple[int, NDArray[np.int64], np.random.Generator]:
        """Return which array, the first corner of a cell, and the random numbers that are left for the rest."""
        epoch, position = divmod(number, len(self.cells))
        cell = self.cells[in_order(self.cfg.seed, epoch, len(self.cells))[position]]
        return int(cell[0]), cell[1:], np.random.default_rng((self.cfg.seed, PLACE, number))

    def crop(self, number: int, side: int) -> tuple[NDArray[np.float32], np.random.Generator]:
        """Return field `number`, (side, ..., side, C) float32, and its random numbers."""
        which, corner, rng = self.place(number)
        array, half = self.arrays[which], self.cfg.sides[0] // 2
        space = np.array(array.shape[:-1])
        corner = np.clip(corner + rng.integers(-half, half + 1, self.dims), 0, space - side)
        part = array[tuple(slice(c, c + side) for c in corner)]
        return as_float(flip(part, rng.random(self.dims + 1) < 0.5)), rng

    def __getitem__(self, number: int) -> Batch:
        """Return field `number` of the run as a batch of one."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return the fields `numbers` of the run, all of one step, as one batch."""
        cfg = self.cfg
        shape = shape_at(numbers[0] // cfg.global_batch, cfg)
        grid = cell_centres((shape.side,) * self.dims)
        rows = [point_row(*self.crop(number, shape.side), number, shape, grid, cfg) for number in numbers]
        return collect(rows, shape)

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return which fields the crops come from, each once, in order."""
        return list(dict.fromkeys(self.names_[self.place(number)[0]] for number in numbers))


def point_row(
    field: NDArray[np.float32],
    rng: np.random.Generator,
    number: int,
    shape: Shape,
    grid: NDArray[np.float32],
    cfg: TrainConfig,
) -> dict[str, NDArray]:
    """Return the row of a batch that field `number` makes: its sensors, queries, time and noise."""
    values = field.reshape(-1, field.shape[-1])
    valid = np.flatnonzero(np.isfinite(values).all(-1))
    sensors = rng.permutation(valid)[: shape.sensors]
    if len(sensors) < shape.sensors:  # a part moved over more land than its cell has
        sensors = rng.choice(valid if len(valid) else [0], shape.sensors)
    queries = rng.choice(valid if len(valid) else [0], shape.queries, replace=len(valid) < shape.queries)
    values = np.nan_to_num(values)
    row = {"input_coords": grid[sensors], "input_values": values[sensors]}
    row |= {"query_coords": grid[queries], "query_values": values[queries]}
    return row | {"t": time_at(number, cfg), **noise_numbers(rng, cfg.model, shape.queries)}


def collect(rows: Sequence[dict[str, NDArray]], shape: Shape) -> Batch:
    """Put rows together to a batch."""
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return batch | {"anchors": torch.tensor([shape.anchors])}


@lru_cache(maxsize=2)
def in_order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """Return the random order in which an epoch visits `length` fields or parts."""
    return np.random.default_rng((seed, SHUFFLE, epoch)).permutation(length)


@lru_cache(maxsize=8)
def cell_centres(space: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the coordinates of a grid's cells, (points, d), x (the last axis of space) first, in C order."""
    axes = [(np.arange(n, dtype=np.float32) + 0.5) / n for n in space]
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack(mesh[::-1], -1).reshape(-1, len(space)).astype(np.float32)


def as_float(values: NDArray) -> NDArray[np.float32]:
    """Return an image's bytes as shares of the brightest, other numbers as they are."""
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    return np.asarray(values, np.float32)


def flip(part: NDArray, flips: NDArray[np.bool_]) -> NDArray:
    """Mirror every axis of space as told, and with the last of `flips` swap the last two: a view."""
    dims = part.ndim - 1
    part = part[tuple(slice(None, None, -1) if on else slice(None) for on in flips[:dims])]
    return part.swapaxes(dims - 2, dims - 1) if dims >= 2 and flips[dims] else part


def pyramid(values: NDArray, levels: int) -> list[NDArray]:
    """Return an image and its halves, `levels` in all; fields that are not images, and 1-D or 3-D ones, as they are."""
    sizes = [values]
    while values.dtype == np.uint8 and values.ndim == 3 and len(sizes) < levels and min(sizes[-1].shape[:2]) >= 2:
        sizes.append(halve(sizes[-1], 2))
    return sizes


def usable_cells(
    values: NDArray, side: int, min_valid: float, min_contrast: float, moments: Moments
) -> NDArray[np.int64]:
    """Return the first corners of the cells with enough numbers and contrast, (n, d)."""
    dims = values.ndim - 1
    counts = [n // side for n in values.shape[:-1]]
    if min(counts) < 1:
        return np.empty((0, dims), np.int64)
    cut = as_float(values[tuple(slice(0, n * side) for n in counts)])
    cut = (cut - moments.mean) / moments.std
    split = cut.reshape([x for n in counts for x in (n, side)] + [cut.shape[-1]])
    inside = tuple(range(1, 2 * dims, 2))
    valid = np.asarray(np.isfinite(split).all(-1))
    share = valid.mean(inside)
    weights = np.where(valid[..., None], 1.0, 0.0)
    number = weights.sum(inside).clip(1)
    mean = np.where(valid[..., None], split, 0).sum(inside, keepdims=True) / weights.sum(inside, keepdims=True).clip(1)
    spread = np.sqrt((np.where(valid[..., None], split - mean, 0) ** 2).sum(inside) / number).mean(-1)
    return np.argwhere((share >= min_valid) & (spread >= min_contrast)) * side


def moments_of(fields: Sequence[Field], channels: int) -> Moments:
    """Return mean and standard deviation of every channel over all numbers of all fields."""
    count, total, squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for field in fields:
        values = as_float(field.values).reshape(-1, channels).astype(np.float64)
        values = values[np.isfinite(values).all(-1)]
        count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return Moments(mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32))


class Steps(Sampler[list[int]]):
    """The field numbers of every micro-batch of one process, from step `start` to the last."""

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


def open_source(cfg: TrainConfig, *, verbose: bool) -> tuple[Source, list[Field], Moments]:
    """Return what a run draws its fields from, its validation fields, and the mean and deviation of the training data.

    Point sets and streams have no validation fields: no field is known everywhere, or none is kept.

    Args:
        cfg: The run.
        verbose: Say on stderr what is used and what was skipped.

    Raises:
        ValueError: There is nothing to train on; the message says what was looked for.
    """
    files = point_files(cfg.data) if cfg.data is not None else []
    if files:
        from .pointsets import PointSets

        sets = PointSets(files, cfg, verbose=verbose)
        if verbose:
            print(f"{len(sets)} point sets of at least {sets.fewest} points", file=sys.stderr)
        return sets, [], sets.moments
    if cfg.data is not None and is_stream(cfg.data):
        from .stream import Stream

        stream = Stream(cfg)
        return stream, [], stream.moments
    fields = find_fields(cfg.data, cfg.subject, verbose=verbose)
    train = [f for f in fields if f.split == "train"]
    check_fields(train, cfg)
    moments = moments_of(train, cfg.model.channels)
    crops = Crops(train, cfg, moments)
    shown = [] if cfg.validation == "none" else [f for f in fields if f.split == "validation"]
    if verbose:
        text = f"{len(train)} fields, {len(crops)} parts per epoch, {len(shown)} validation fields"
        print(text, file=sys.stderr)
    return crops, shown, moments


def check_fields(fields: Sequence[Field], cfg: TrainConfig) -> None:
    """Refuse fields of other dimensions, channels or units than the model's, or in several units.

    Raises:
        ValueError: The first field that does not fit is named.
    """
    if not fields:
        raise ValueError(f"data: {cfg.data or cfg.subject} has no field to train on; all are for validation or tests")
    units = {f.unit for f in fields}
    if len(units) > 1:
        raise ValueError(f"data: the fields are in several units, {', '.join(sorted(units))}; convert them to one")
    for field in fields:
        dims, channels = field.values.ndim - 1, field.values.shape[-1]
        if dims != cfg.model.dims or channels != cfg.model.channels:
            raise ValueError(
                f"data: {field.name} has {dims} axes and {channels} channels, the model {cfg.model.dims} and "
                f"{cfg.model.channels}; give --model.dims {dims} --model.channels {channels}, or another preset"
            )


def loader(cfg: TrainConfig, source: Source, start: int, rank: int, *, pin: bool) -> DataLoader[Batch]:
    """Return the micro-batches of one process from step `start` on.

    Args:
        cfg: The run.
        source: Where they come from.
        start: First step.
        rank: Of this process.
        pin: Put batches into page-locked memory, which makes copies to a GPU asynchronous.
    """
    if isinstance(source, IterableDataset):
        source.start, source.rank = start, rank
        # always one reader: `datasets` orders rows by another rule in the main process, and several would mix them
        return DataLoader(
            source,
            batch_size=None,
            num_workers=1,
            pin_memory=pin,
            generator=torch.Generator(),
            prefetch_factor=AHEAD,
            worker_init_fn=_only_one_thread,
        )
    return DataLoader(
        source,
        batch_sampler=Steps(cfg, start, rank),
        collate_fn=_already_a_batch,
        num_workers=cfg.workers,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the global one belongs to the network and is restored on resume
        prefetch_factor=AHEAD if cfg.workers else None,
        worker_init_fn=_only_one_thread,
    )


def _only_one_thread(worker: int) -> None:
    """Let a loader process live through Ctrl-C and a SIGTERM to the whole group: it goes when the main one does."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _already_a_batch(batch: Any) -> Any:  # the loader's type wants a list here, __getitems__ made the batch
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device; the number of anchors stays, since the host needs it."""
    return {k: v if k == "anchors" else v.to(device, non_blocking=True) for k, v in batch.items()}
