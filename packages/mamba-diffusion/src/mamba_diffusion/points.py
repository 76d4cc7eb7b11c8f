"""Scattered measurements: CSV and NPZ files in, checked; the domain that they lie in. N sensors, C channels, d axes."""

from __future__ import annotations

import csv
import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from .checks import refuse

AXES = (("x", "y", "z"), ("lon", "lat"), ("longitude", "latitude"))
FEWEST = 4  # sensors
FAR = 12.0  # standard deviations of the training data: no plausible value
SAME = 1e-6  # of the domain
UNIT = re.compile(r"\s*[\[(](?P<unit>[^\])]*)[\])]\s*$")


@dataclass(frozen=True)
class Points:
    """Measurements and where they lie.

    Attributes:
        places: (N, d) in the file's coordinates, x first.
        values: (N, C) float32.
        axes: Names of the coordinates, such as ("lon", "lat").
        channels: Names of the channels.
        unit: Of the values, "" if the file does not say.
        extent: Lower and upper end of the domain along every axis, (d, 2).
    """

    places: NDArray[np.float64]
    values: NDArray[np.float32]
    axes: tuple[str, ...]
    channels: tuple[str, ...]
    unit: str
    extent: NDArray[np.float64]

    def to_domain(self, places: NDArray, *, stretch: bool = False) -> NDArray[np.float32]:
        """Map places (M, d) to the network's coordinates: the longest side of the domain becomes 1.

        Args:
            places: In the file's coordinates.
            stretch: Make every side 1 instead, as periodic axes need it.
        """
        sides = self.extent[:, 1] - self.extent[:, 0]
        return ((places - self.extent[:, 0]) / (sides if stretch else sides.max())).astype(np.float32)


def read_points(path: str | Path, *, extent: NDArray[np.float64] | None = None) -> Points:
    """Read a CSV file with a header, or an NPZ file.

    CSV: columns x, y, z (as many as there are axes) or lon, lat, then one column a channel; a unit may stand in
    brackets after a channel's name, as in "temperature [K]". NPZ: coords (N, d), values (N, C), and if they are
    there unit, channels, axes, extent.

    Args:
        path: The file.
        extent: Of the domain, (d, 2); None takes the file's, or the box around the points.

    Raises:
        ValueError: Something is wrong with it: the message names the line or point and what to do.
    """
    path = Path(path)
    if not path.is_file():
        found = f"{path}, which is {'a folder' if path.is_dir() else 'not there'}"
        refuse("read_points", "points", "a .csv or .npz file", found, "check the path")
    if path.suffix.lower() == ".npz":
        points = _from_npz(path)
    elif path.suffix.lower() in (".csv", ".txt", ".tsv"):
        points = _from_csv(path)
    else:
        refuse("read_points", "points", "a .csv or .npz file", path.name, "convert it")
    if extent is not None:
        if extent.shape != points.extent.shape:
            wanted = f"two numbers for each of {len(points.axes)} axes"
            refuse("read_points", "extent", wanted, extent.ravel().tolist(), "give x0,x1,y0,y1")
        points = Points(points.places, points.values, points.axes, points.channels, points.unit, extent)
    check_points(points, path)
    return points


def read_table(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Read a CSV file (comma, semicolon or tab; decimal commas beside the latter two): names of columns and lines.

    Raises:
        ValueError: It is empty, or a cell is no number: the message names the line.
    """
    numbers = array("d")  # a list of ten million rows of text would take gigabytes
    with path.open(newline="", encoding="utf-8-sig") as file:
        sample = file.read(4096)
        file.seek(0)
        mark = max(",;\t", key=sample.partition("\n")[0].count)
        reader = csv.reader(file, delimiter=mark)
        rows = (row for row in reader if any(cell.strip() for cell in row))
        header = [cell.strip() for cell in next(rows, [])]
        if not header:
            refuse("read_points", "points", "a header and one line a sensor", f"an empty file, {path}", "check it")
        for row in rows:
            if len(row) != len(header):
                _line(path, reader.line_num, f"{len(header)} numbers", f"{len(row)}")
            cells = row if mark == "," else [cell.replace(",", ".") for cell in row]
            numbers.extend(_number(path, reader.line_num, *cell) for cell in zip(header, cells, strict=True))
    return header, np.frombuffer(numbers).reshape(-1, len(header))


def _from_csv(path: Path) -> Points:
    header, table = read_table(path)
    dims = axes_in(header)
    if dims == 0 or dims == len(header):
        wanted = "a header x[,y[,z]] or lon,lat, then one column a channel"
        refuse("read_points", "points", wanted, ",".join(header), f"correct the first line of {path}")
    units = {m["unit"] for name in header[dims:] if (m := UNIT.search(name))}
    if len(units) > 1:
        refuse("read_points", "points", "channels of one unit", ", ".join(sorted(units)), "convert them to one")
    channels = tuple(UNIT.sub("", name) for name in header[dims:])
    axes = tuple(header[:dims])
    return _points(table[:, :dims], table[:, dims:], axes, channels, next(iter(units), ""), None)


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        _line(path, line, f"a number for {column}", repr(cell.strip()))


def _line(path: Path, number: int, wanted: str, found: str) -> NoReturn:
    refuse("read_points", f"line {number} of {path}", wanted, found, "correct or remove the line")


def axes_in(header: list[str]) -> int:
    """Return how many of the first columns are coordinates."""
    lower = [name.lower() for name in header]
    return max(next((n for n in range(len(a), 0, -1) if tuple(lower[:n]) == a[:n]), 0) for a in AXES)


def _from_npz(path: Path) -> Points:
    try:
        with np.load(path) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError) as error:
        refuse("read_points", "points", "an .npz file", f"{path}: {error}", "write it with numpy.savez")
    for name in ("coords", "values"):
        if name not in found:
            refuse("read_points", "points", "arrays coords (N, d) and values (N, C)", list(found), f"add {name}")
    coords, values = found["coords"], found["values"]
    values = values[:, None] if values.ndim == 1 else values
    coords = coords[:, None] if coords.ndim == 1 else coords
    if coords.ndim != 2 or values.ndim != 2 or len(coords) != len(values) or not 1 <= coords.shape[1] <= 3:
        refuse("read_points", "points", "coords (N, d) and values (N, C)", (coords.shape, values.shape), "reshape them")
    axes = tuple(str(x) for x in found.get("axes", AXES[0][: coords.shape[1]]))
    channels = tuple(str(x) for x in found.get("channels", [f"channel{n}" for n in range(values.shape[1])]))
    return _points(coords, values, axes, channels, str(found.get("unit", "")), found.get("extent"))


def _points(
    places: NDArray,
    values: NDArray,
    axes: tuple[str, ...],
    channels: tuple[str, ...],
    unit: str,
    extent: NDArray | None,
) -> Points:
    places = np.asarray(places, np.float64)
    if extent is None:
        finite = places[np.isfinite(places).all(-1)]
        box = (finite.min(0), finite.max(0)) if len(finite) else (np.zeros(len(axes)), np.ones(len(axes)))
        extent = np.stack(box, -1)
    return Points(places, np.asarray(values, np.float32), axes, channels, unit, np.asarray(extent, np.float64))


def check_points(points: Points, source: object) -> None:
    """Refuse points that no field can go through.

    Raises:
        ValueError: Not a number, outside the domain, two values at one place, or too few.
    """
    bad = np.flatnonzero(~np.isfinite(points.places).all(-1) | ~np.isfinite(points.values).all(-1))
    if len(bad):
        found = f"{_row(points, bad[0])} ({len(bad)} such points)"
        refuse("read_points", "points", "finite numbers", found, f"remove the lines without a value from {source}")
    if len(points.places) < FEWEST:
        refuse("read_points", "points", f"at least {FEWEST}", len(points.places), "a field needs more sensors")
    low, high = points.extent.T
    if not (high > low).all():
        refuse("read_points", "extent", "two different ends along every axis", points.extent.tolist(), "give --extent")
    outside = np.flatnonzero(((points.places < low) | (points.places > high)).any(-1))
    if len(outside):
        found = f"{_row(points, outside[0])} ({len(outside)} such points)"
        box = ", ".join(f"{a} {lo:g} to {hi:g}" for a, (lo, hi) in zip(points.axes, points.extent, strict=True))
        refuse("read_points", "points", f"inside the extent, {box}", found, "widen --extent or remove them")
    _check_duplicates(points)


def _check_duplicates(points: Points) -> None:
    keys = np.round((points.places - points.extent[:, 0]) / np.ptp(points.extent, 1).max() / SAME).astype(np.int64)
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    away = points.values - points.values[first[which.ravel()]]
    clash = np.flatnonzero(np.abs(away).max(-1) > 1e-6 * max(float(np.abs(points.values).max()), 1e-30))
    if len(clash):
        other = int(first[which.ravel()[clash[0]]])
        found = f"{_row(points, other)} and {_row(points, clash[0])} ({len(clash)} such points)"
        refuse("read_points", "points", "one value a place", found, "average them or remove the wrong one")


def _row(points: Points, number: int | np.integer) -> str:
    numbers = [f"{x:g}" for x in (*points.places[number], *points.values[number])]
    return f"point {number + 1}: {', '.join(numbers)}"


def check_scale(points: Points, mean: NDArray, std: NDArray, *, unit: str, dims: int) -> None:
    """Refuse points of other dimensions, channels, unit or size than a model was trained on.

    Args:
        points: What is given.
        mean: (C,) of the training data.
        std: (C,) likewise.
        unit: Of the training data.
        dims: Of the model.

    Raises:
        ValueError: The message says what to do.
    """
    if len(points.axes) != dims or points.values.shape[1] != len(mean):
        found = f"{len(points.axes)} axes and {points.values.shape[1]} channels ({', '.join(points.channels)})"
        wanted = f"{dims} axes and {len(mean)} channels, as the model"
        refuse("reconstruct", "points", wanted, found, "remove columns, or train a model for them")
    remedy = "convert them, or --normalise sensors, which takes mean and deviation of the sensors instead"
    if points.unit and unit and points.unit.lower() != unit.lower():
        refuse("reconstruct", "points", f"in {unit}, as the training data", points.unit, remedy)
    away = np.abs((points.values - mean) / std)
    if away.max() > FAR:
        row = int(away.max(-1).argmax())
        wanted = f"near {', '.join(f'{m:.4g} +- {s:.3g}' for m, s in zip(mean, std, strict=True))} {unit}".rstrip()
        refuse("reconstruct", "points", f"{wanted}, as the training data", _row(points, row), remedy)
