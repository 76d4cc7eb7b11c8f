"""Where a field is wanted: a grid over the domain, or places from a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checks import refuse
from .points import Points, axes_in, read_table

NUMBERS = re.compile(r"[x,;: ]+")
LARGEST = 1 << 26  # points


def parse_grid(text: str, dims: int) -> tuple[int, ...]:
    """Read "64x96" (rows x columns), "100" or "16x32x32" as the shape of a grid.

    Raises:
        ValueError: It is something else, or for other dimensions.
    """
    parts = NUMBERS.split(text.strip())
    wanted = {1: "N", 2: "HxW, such as 64x96", 3: "DxHxW"}[dims]
    if len(parts) != dims or not all(p.isdigit() and int(p) > 0 for p in parts):
        refuse("grid", "--grid", wanted, text, "give the points along every axis, rows first")
    shape = tuple(int(p) for p in parts)
    if np.prod(shape, dtype=np.int64) > LARGEST:
        refuse("grid", "--grid", f"at most {LARGEST:,} points", text, "take a coarser grid, or parts of the domain")
    return shape


def parse_numbers(text: str, option: str) -> NDArray[np.float64]:
    """Read "x0,x1,y0,y1" as pairs, (d, 2).

    Raises:
        ValueError: These are no pairs of numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % 2:
        refuse("grid", option, "x0,x1 or x0,x1,y0,y1 or with z0,z1", text, "give two numbers an axis")
    return np.array(numbers).reshape(-1, 2)


def grid_places(points: Points, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the cell centres of a grid over the domain in the file's coordinates, (points, d), x first."""
    axes = []
    for (low, high), count in zip(points.extent, shape[::-1], strict=True):
        axes.append(low + (np.arange(count) + 0.5) / count * (high - low))
    mesh = np.meshgrid(*axes[::-1], indexing="ij")
    return np.stack(mesh[::-1], -1).reshape(-1, len(shape))


def default_grid(points: Points, longest: int = 64) -> tuple[int, ...]:
    """Return a grid with `longest` points along the longest side of the domain and square cells."""
    sides = points.extent[:, 1] - points.extent[:, 0]
    return tuple(max(1, round(longest * side / sides.max())) for side in sides[::-1])


def read_places(path: Path, points: Points) -> NDArray[np.float64]:
    """Read places from a CSV file with the columns of the points' axes, or an .npy or .npz (coords) file: (M, d).

    Raises:
        ValueError: It cannot be read, or a place is outside the domain.
    """
    if not path.is_file():
        refuse("reconstruct", "--at", "a .csv, .npy or .npz file", f"{path}, which is not there", "check the path")
    try:
        if path.suffix == ".npy":
            places = np.load(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                places = arrays["coords"]
        else:
            places = _columns(path, points.axes)
    except (OSError, ValueError, KeyError) as error:
        refuse("reconstruct", "--at", "a .csv, .npy or .npz file with coords", f"{path}: {error}", "check it")
    dims = len(points.axes)
    if places.ndim != 2 or places.shape[1] < dims or not np.isfinite(places[:, :dims]).all():
        refuse("reconstruct", "--at", f"{dims} numbers a place", f"{places.shape} in {path}, or NaN", "check it")
    places = places[:, :dims].astype(np.float64)
    low, high = points.extent.T
    outside = np.flatnonzero(((places < low) | (places > high)).any(-1))
    if len(outside):
        refuse("reconstruct", "--at", "places inside the extent", f"place {outside[0] + 1}", "widen --extent")
    return places


def _columns(path: Path, axes: tuple[str, ...]) -> NDArray[np.float64]:
    """Read the columns of the axes by name, or those of other axes (lon,lat for x,y) if they come first."""
    header, table = read_table(path)
    names = [name.lower() for name in header]
    if axes_in(header) == len(axes):
        return table[:, : len(axes)]
    missing = [axis for axis in axes if axis.lower() not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}, there are {', '.join(header)}")
    return table[:, [names.index(axis.lower()) for axis in axes]]
