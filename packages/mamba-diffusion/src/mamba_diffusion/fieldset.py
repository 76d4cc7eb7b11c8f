"""The fields that models are measured on: square parts of held-out data, with their sensors, at one or more scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import as_float, cell_centres, moments_of, pyramid, usable_cells
from .process import Moments
from .recipes import Subject
from .sources import Field, Split, find_fields

LEVELS = 3  # sizes of an image that parts are taken from
MIN_VALID = 0.6
CONTRAST = {"rgb": 0.25}  # of a part, as a share of the data's deviation: pictures of something, no empty sky
LEAST_CONTRAST = 0.02  # of fields


@dataclass(frozen=True)
class Part:
    """A part of a field and its sensors.

    Attributes:
        name: Of the field it is cut from.
        values: The truth, (*space, C) float32 with NaN where there is none.
        sensors: Which points are observed, by their number in C order, (Ni,).
        peak: Range of the values, for PSNR: 1 for images.
        fine: The truth by the points along each axis, at other resolutions.
        unit: Of the values.
    """

    name: str
    values: NDArray[np.float32]
    sensors: NDArray[np.int64]
    peak: float
    fine: dict[int, NDArray[np.float32]]
    unit: str = ""

    @property
    def coords(self) -> NDArray[np.float32]:
        """Of all points, (points, d)."""
        return cell_centres(self.values.shape[:-1])

    @property
    def flat(self) -> NDArray[np.float32]:
        """The truth, (points, C)."""
        return self.values.reshape(-1, self.values.shape[-1])

    @property
    def observed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Coordinates (Ni, d) and values (Ni, C) of the sensors."""
        return self.coords[self.sensors], self.flat[self.sensors]

    def on_grid(self, resolution: int) -> Part:
        """Return the part on another of its grids, with sensors where they were: they measure cells of that grid.

        A sensor whose place has no number there is left out.
        """
        truth = self.fine[resolution]
        sides = np.array(truth.shape[-2::-1])  # as coordinates are ordered, x first
        cells = np.minimum((self.coords[self.sensors] * sides).astype(np.int64), sides - 1)
        sensors = np.unique(np.ravel_multi_index(tuple(cells[:, ::-1].T), truth.shape[:-1]))
        known = np.isfinite(truth.reshape(-1, truth.shape[-1])[sensors]).all(-1)
        return Part(self.name, truth, sensors[known], self.peak, {resolution: truth}, self.unit)

    def with_share(self, share: float, seed: int) -> Part:
        """Return the same part with another share of sensors."""
        sensors = choose_sensors(self.values, share, seed)
        return Part(self.name, self.values, sensors, self.peak, self.fine, self.unit)


def choose_sensors(values: NDArray, share: float, seed: int) -> NDArray[np.int64]:
    """Choose a share of all points among those with a number, at least four."""
    valid = np.flatnonzero(np.isfinite(values).all(-1).ravel())
    count = max(4, round(share * values[..., 0].size))
    return np.random.default_rng(seed).permutation(valid)[:count]


def find_parts(
    data: str | None,
    subject: Subject,
    *,
    split: Split,
    side: int,
    share: float,
    count: int,
    seed: int = 0,
    resolutions: tuple[int, ...] = (),
) -> list[Part]:
    """Cut parts out of a source, spread evenly over its fields, with sensors.

    Args:
        data: As `find_fields`.
        subject: As `find_fields`.
        split: Which fields.
        side: Points along each axis.
        share: Of the points that are sensors.
        count: How many parts; fewer if there are fewer.
        seed: Of the sensors; part n has the seed `seed` + n.
        resolutions: More grids over the same parts. The parts are then cut at the finest and averaged down to the
            others and to `side`, so every truth is real.

    Raises:
        ValueError: There is no such field, or none is large enough.
    """
    fields = find_fields(data, subject)
    moments = moments_of([f for f in fields if f.split == "train"] or fields, fields[0].values.shape[-1])
    chosen = [f for f in fields if f.split == split]
    if not chosen:
        splits = ", ".join(sorted({f.split for f in fields}))
        raise ValueError(f"data: no field of split {split}, there are {splits}; give --split")
    finest = max((side, *resolutions))
    per_field = [cells_of(field, finest, moments, subject) for field in chosen]
    cells = spread([cells for cells in per_field if cells], count)
    if not cells:
        raise ValueError(f"data: no {split} field has a part of {finest} points a side; lower --side or --resolutions")
    return [make_part(*cell, side, share, seed + n, resolutions) for n, cell in enumerate(cells)]


Cell = tuple[Field, NDArray, NDArray[np.int64], int]  # field, one of its sizes, first corner, side


def cells_of(field: Field, side: int, moments: Moments, subject: Subject) -> list[Cell]:
    """Return the usable squares of a field in all its sizes."""
    contrast = CONTRAST.get(subject, LEAST_CONTRAST)
    sizes = [x for x in pyramid(field.values, LEVELS) if min(x.shape[:-1]) >= side]
    return [(field, x, corner, side) for x in sizes for corner in usable_cells(x, side, MIN_VALID, contrast, moments)]


def spread(groups: list[list[Cell]], count: int) -> list[Cell]:
    """Take `count` cells, as many from every group as possible, evenly spaced in each."""
    if not groups:
        return []
    share = [count // len(groups) + (n < count % len(groups)) for n in range(len(groups))]
    chosen = []
    for group, wanted in zip(groups, share, strict=True):
        places = np.linspace(0, len(group) - 1, min(wanted, len(group)) + 2)[1:-1]
        chosen += [group[place] for place in places.round().astype(int)]
    return chosen


def make_part(
    field: Field,
    values: NDArray,
    corner: NDArray[np.int64],
    finest: int,
    side: int,
    share: float,
    seed: int,
    resolutions: tuple[int, ...],
) -> Part:
    """Cut one part and choose its sensors."""
    whole = as_float(values[tuple(slice(c, c + finest) for c in corner)])
    truth = resample(whole, side)
    peak = 1.0 if field.values.dtype == np.uint8 else float(np.nanmax(truth) - np.nanmin(truth)) or 1.0
    fine = {r: resample(whole, r) for r in resolutions}
    return Part(field.name, truth, choose_sensors(truth, share, seed), peak, fine, field.unit)


def resample(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Average a cube (n, ..., n, C) down to `side` points an axis: every new cell is the mean of what it covers.

    A cell of which less than half has numbers is NaN.
    """
    if values.shape[0] == side:
        return values
    good = np.isfinite(values).all(-1, keepdims=True).astype(np.float64)
    total = np.where(good > 0, values, 0).astype(np.float64)
    for axis in range(values.ndim - 1):
        weights = cover(values.shape[axis], side)
        total = np.moveaxis(np.tensordot(weights, total, (1, axis)), 0, axis)
        good = np.moveaxis(np.tensordot(weights, good, (1, axis)), 0, axis)
    return np.where(good >= 0.5, total / np.maximum(good, 1e-9), np.nan).astype(np.float32)


def cover(fine: int, coarse: int) -> NDArray[np.float64]:
    """Return which share of every coarse cell each fine cell covers, (coarse, fine); rows sum to 1."""
    edges = np.arange(fine + 1) / fine
    low, high = (np.arange(coarse) / coarse)[:, None], ((np.arange(coarse) + 1) / coarse)[:, None]
    overlap = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
    return overlap / overlap.sum(1, keepdims=True)
