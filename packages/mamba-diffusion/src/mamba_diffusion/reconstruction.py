"""From measurements to a field with its uncertainty, and the files that hold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .checks import refuse
from .model import SparseField
from .pictures import colours, enlarge, limits
from .points import Points, check_scale
from .predict import Prediction, sample_fields

QUANTILES = (0.05, 0.5, 0.95)
LEAST_DEVIATION = 1e-6
FLOATS = 12  # a query and sample, in the flow and the sampler
INDEXED = 400  # bytes a query, whatever the samples: neighbours, kriging, places
VIEW = 256  # pixels, of the shorter side of a map


@dataclass(frozen=True)
class Reconstruction:
    """Samples of a field.

    Attributes:
        points: What it is made from.
        places: Where it is wanted, (M, d) in the coordinates of the points, x first.
        grid: Shape of the grid that the places make up (rows first), or None.
        samples: (K, M, C) in the unit of the values.
        truth: (M, C) if it is known.
    """

    points: Points
    places: NDArray[np.float64]
    grid: tuple[int, ...] | None
    samples: NDArray[np.float32]
    truth: NDArray[np.float32] | None = None

    @property
    def mean(self) -> NDArray[np.float32]:
        """Of the samples, (M, C)."""
        return self.samples.mean(0)

    @property
    def std(self) -> NDArray[np.float32]:
        """Of the samples, (M, C); 0 for one sample."""
        return self.samples.std(0, ddof=min(1, len(self.samples) - 1))

    @property
    def quantiles(self) -> NDArray[np.float32]:
        """5, 50 and 95 %, (3, M, C)."""
        return np.quantile(self.samples, QUANTILES, axis=0).astype(np.float32)


def reconstruct(
    model: SparseField,
    points: Points,
    places: NDArray[np.float64],
    asked: Prediction,
    *,
    grid: tuple[int, ...] | None = None,
    normalise: str = "weights",
) -> Reconstruction:
    """Draw samples of the field that the points belong to.

    Args:
        model: On its device.
        points: Measurements.
        places: Where the field is wanted, (M, d), in the coordinates of the points.
        asked: Samples and how.
        grid: Shape of the grid that the places make up, if they do.
        normalise: "weights" scales the values like the training data; "sensors" by their own mean and deviation,
            whatever their unit.

    Raises:
        ValueError: The points do not fit the model, or the samples do not fit the memory.
    """
    if normalise == "sensors":
        scale_by_sensors(model, points.values)
    check_scale(
        points,
        model.mean.cpu().numpy(),
        model.std.cpu().numpy(),
        unit="" if normalise == "sensors" else model.config.unit,
        dims=model.config.dims,
    )
    device = model.mean.device
    check_memory(len(places), points.values.shape[1], asked.samples, device)
    stretch = any(model.config.wraps)
    coords, queries = (points.to_domain(x, stretch=stretch) for x in (points.places, places))
    where, what, wanted = (torch.from_numpy(x).to(device)[None] for x in (coords, points.values, queries))
    samples = sample_fields(model, where, what, wanted, asked)[0]
    return Reconstruction(points, places, grid, samples.float().cpu().numpy())


def scale_by_sensors(model: SparseField, values: NDArray[np.float32]) -> None:
    """Let a model see values relative to the sensors' own mean and deviation."""
    mean, std = values.mean(0), values.std(0)
    floor = LEAST_DEVIATION * np.maximum(np.abs(mean), 1)
    model.mean.copy_(torch.from_numpy(mean))
    model.std.copy_(torch.from_numpy(np.maximum(std, floor).astype(np.float32)))


def check_memory(queries: int, channels: int, samples: int, device: torch.device) -> None:
    """Refuse what does not fit.

    Raises:
        ValueError: The message says how many samples or queries would.
    """
    needed = queries * (samples * channels * 4 * FLOATS + INDEXED)
    free = free_bytes(device)
    if needed <= free:
        return
    fitting = int((free / queries - INDEXED) / (channels * 4 * FLOATS))
    per_query = samples * channels * 4 * FLOATS + INDEXED
    remedy = f"take --samples {fitting}" if fitting >= 1 else f"take parts of at most {free // per_query:,} queries"
    found = f"{queries:,} queries and {samples} samples, which need {needed / 1e9:.1f} GB of {free / 1e9:.1f} free"
    refuse("reconstruct", "--grid", "a field that fits the memory", found, remedy + "; --chunk only bounds the network")


def free_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def write_reconstruction(result: Reconstruction, out: Path) -> list[Path]:
    """Write what `files_of` lists; the units and coordinates are those of the points."""
    files = files_of(out, result)
    points, unit = result.points, result.points.unit
    arrays = {"mean": result.mean, "std": result.std, "quantiles": result.quantiles, "samples": result.samples}
    named = {k: _on_grid(v, result.grid) for k, v in arrays.items()}
    sensors = {"sensor_coords": points.places, "sensor_values": points.values, "extent": points.extent}
    words = {"unit": unit, "channels": np.array(points.channels), "axes": np.array(points.axes)}
    np.savez_compressed(out / "reconstruction.npz", coords=result.places, **named, **sensors, **words)
    if result.grid is not None:
        write_netcdf(result, out / "reconstruction.nc")
    if result.grid is not None and len(result.grid) == 2:
        draw(result, out)
    return files


def files_of(out: Path, result: Reconstruction | None = None, *, grid: tuple[int, ...] | None = None) -> list[Path]:
    """Return the files of a reconstruction: NPZ always, NetCDF for grids, PNG for 2-D grids."""
    shape = result.grid if result is not None else grid
    names = ["reconstruction.npz"] + (["reconstruction.nc"] if shape else [])
    return [out / name for name in names + (["picture.png", "mean.png", "spread.png"] if len(shape or ()) == 2 else [])]


def _on_grid(values: NDArray, grid: tuple[int, ...] | None) -> NDArray:
    return values if grid is None else values.reshape(*values.shape[:-2], *grid, values.shape[-1])


def write_netcdf(result: Reconstruction, path: Path) -> None:
    """Write mean, std, quantiles and samples of every channel as NetCDF (classic format), with coordinates and unit."""
    from scipy.io import netcdf_file

    assert result.grid is not None
    points = result.points
    names = [_plain(name) for name in points.axes][::-1]  # the slowest axis first
    with netcdf_file(path, "w") as file:
        file.createDimension("sample", len(result.samples))
        file.createDimension("quantile", len(QUANTILES))
        file.createVariable("quantile", "d", ("quantile",))[:] = QUANTILES
        for name, count, (low, high) in zip(names, result.grid, points.extent[::-1], strict=True):
            file.createDimension(name, count)
            file.createVariable(name, "d", (name,))[:] = low + (np.arange(count) + 0.5) / count * (high - low)
        for number, channel in enumerate(points.channels):
            parts = (("mean", (), result.mean), ("std", (), result.std), ("quantiles", ("quantile",), result.quantiles))
            for kind, first, values in (*parts, ("samples", ("sample",), result.samples)):
                variable = file.createVariable(f"{_plain(channel)}_{kind}", "f", (*first, *names))
                variable[:] = _on_grid(values, result.grid)[..., number]
                if points.unit:
                    variable.units = points.unit


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name) or "value"


def draw(result: Reconstruction, out: Path) -> None:
    """Save picture.png (sensors, mean, spread, and truth and error where known), mean.png and spread.png.

    y grows upwards if the axes are those of a map or a plot, downwards for pictures.
    """
    from PIL import Image

    assert result.grid is not None
    mean, std = (_on_grid(x, result.grid) for x in (result.mean, result.std))
    truth = None if result.truth is None else _on_grid(result.truth, result.grid)
    low, high = limits(result.points.values if truth is None else truth)
    sensors = sensor_map(result)
    maps = {"mean": colours(mean, low, high), "spread": grey_scale(std)}
    panels = [colours(sensors, low, high), maps["mean"], maps["spread"]]
    if truth is not None:
        error = np.abs(mean - truth)
        panels += [colours(truth, low, high), grey_scale(error, float(np.nanmax(std)) * 2)]
    upright = result.points.axes[:1] != ("column",)
    drawn = [enlarge(p[::-1] if upright else p, VIEW) for p in panels]
    gap = np.full((drawn[0].shape[0], 6, 3), 255, np.uint8)
    strip = np.concatenate([x for part in drawn for x in (part, gap)][:-1], axis=1)
    Image.fromarray(strip).save(out / "picture.png")
    for name, pixels in maps.items():
        Image.fromarray(enlarge(pixels[::-1] if upright else pixels, VIEW)).save(out / f"{name}.png")


def sensor_map(result: Reconstruction) -> NDArray[np.float32]:
    """Return a grid with every sensor in its cell and NaN elsewhere, (H, W, C)."""
    assert result.grid is not None
    points, shape = result.points, result.grid
    field = np.full((*shape, points.values.shape[1]), np.nan, np.float32)
    share = (points.places - points.extent[:, 0]) / (points.extent[:, 1] - points.extent[:, 0])
    cells = np.clip((share[:, ::-1] * shape).astype(int), 0, np.array(shape) - 1)
    field[tuple(cells.T)] = points.values
    return field


def grey_scale(values: NDArray, high: float | None = None) -> NDArray[np.uint8]:
    """Draw non-negative (H, W, C) as the mean over channels, black at 0, white at the largest."""
    grey = np.nan_to_num(values).mean(-1)
    top = high or float(grey.max()) or 1.0
    return np.repeat((np.clip(grey / top, 0, 1) * 255).astype(np.uint8)[..., None], 3, -1)
