"""Measure models and classical methods on the same parts, sensors and noise. K samples, N points, C channels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .baselines import BASELINES
from .data import cell_centres
from .fieldset import Part
from .metrics import bootstrap, coverage, crps, expected_coverage, gaussian_crps, psnr, relative_l2, ssim
from .model import SparseField
from .predict import Prediction, sample_fields
from .speckles import sharpness, speckle

LEVEL = 0.9  # of the interval whose coverage is reported
TOGETHER = 8  # parts that run side by side
NORMAL = 1.6449  # half of that interval, in standard deviations of a Gaussian
REMEDY = "take a model of these fields, or other fields (--subject, --data)"
Row = dict[str, Any]


def check_model(model: SparseField, parts: list[Part], name: str) -> None:
    """Refuse a model that was trained on something else than the parts.

    Args:
        model: Any.
        parts: What it is to be measured on.
        name: Of the option that names the model.

    Raises:
        ValueError: Axes, channels or the unit differ.
    """
    config, part = model.config, parts[0]
    sizes = (("axes", config.dims, part.values.ndim - 1), ("channels", config.channels, part.values.shape[-1]))
    for what, mine, theirs in sizes:
        if mine != theirs:
            raise ValueError(f"{name}: the model must have the {theirs} {what} of {part.name}, got {mine}; {REMEDY}")
    if config.unit and part.unit and config.unit != part.unit:
        wanted = f"{part.unit}, the unit of {part.name}"
        raise ValueError(f"{name}: the model must be of {wanted}, got {config.unit}; {REMEDY}")


def predict_part(
    model: SparseField, part: Part, device: torch.device, asked: Prediction, resolution: int | None = None
) -> NDArray[np.float32]:
    """Return K samples of a part on its own grid, or on another over the same domain: (K, *space, C)."""
    return predict_parts(model, [part], device, asked, asked.seed, resolution)[0]


def predict_parts(
    model: SparseField,
    parts: list[Part],
    device: torch.device,
    asked: Prediction,
    seed: int,
    resolution: int | None = None,
) -> NDArray[np.float32]:
    """Return K samples of every part, (parts, K, *space, C); part n has the noise of seed `seed` + n.

    Args:
        model: On the device.
        parts: Of one shape and as many sensors.
        device: Where it runs.
        asked: Samples and how.
        seed: Of the first part.
        resolution: Points along each axis of another grid; None for their own.
    """
    space = parts[0].values.shape[:-1]
    shape = space if resolution is None else (resolution,) * len(space)
    observed = [part.observed for part in parts]
    coords, values = (torch.from_numpy(np.stack(x)).to(device) for x in zip(*observed, strict=True))
    queries = torch.from_numpy(cell_centres(shape)).to(device).expand(len(parts), -1, -1)
    seeds = range(seed, seed + len(parts))
    samples = sample_fields(model, coords, values, queries, asked, seeds=seeds)
    return samples.float().cpu().numpy().reshape(len(parts), asked.samples, *shape, -1)


def alike(parts: list[Part]) -> Iterator[tuple[int, list[Part]]]:
    """Yield the parts in their order, with their number, in groups of at most `TOGETHER` that can run together."""
    first = 0
    for _, group in groupby(parts, key=lambda part: (part.values.shape, len(part.sensors))):
        whole = list(group)
        for start in range(0, len(whole), TOGETHER):
            yield first + start, whole[start : start + TOGETHER]
        first += len(whole)


def measure(field: NDArray, truth: NDArray, peak: float) -> Row:
    """Return what one field is worth; the speckle index is a share of the range, NaN where the truth is not flat."""
    found = speckle(field, truth, peak)
    return {
        "psnr": psnr(field, truth, peak),
        "ssim": ssim(field, truth, peak),
        "relative_l2": relative_l2(field, truth),
        "xsi": math.nan if found is None else found.index / peak,
        "density": math.nan if found is None else found.density,
        "sharpness": sharpness(field, truth, peak),
    }


def measure_samples(samples: NDArray, truth: NDArray, peak: float) -> Row:
    """Return what K samples are worth: of the first one ("psnr", ...), of their mean ("psnr_mean", ...), and together.

    CRPS is a share of the range, like the speckle index; coverage is that of the 90 % interval at points that are no
    number in the truth are left out.
    """
    row = measure(samples[0], truth, peak)
    row |= {f"{k}_mean": v for k, v in measure(samples.mean(0), truth, peak).items()}
    if len(samples) > 2:
        row |= {"crps": crps(samples, truth) / peak, "coverage": coverage(samples, truth, LEVEL)}
    return row


def evaluate_model(
    model: SparseField,
    parts: Iterable[Part],
    device: torch.device,
    asked: Prediction,
    *,
    resolution: int | None = None,
    report: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Measure a model.

    Args:
        model: On the device.
        parts: What it is measured on; part n gets the noise of seed `asked.seed` + n.
        device: Where it runs.
        asked: Samples and how.
        resolution: Points along each axis of another grid, whose truth the parts have; None for their own.
        report: Told every row.

    Returns:
        "rows", one a part, and their "mean" with bootstrap intervals (see `summary`).
    """
    rows = []
    for first, group in alike(list(parts)):
        start = time.perf_counter()
        fields = predict_parts(model, group, device, asked, asked.seed + first, resolution)
        seconds = (time.perf_counter() - start) / len(group)
        for part, samples in zip(group, fields, strict=True):
            truth = part.values if resolution is None else part.fine[resolution]
            rows.append({"name": part.name, **measure_samples(samples, truth, part.peak), "seconds": seconds})
            if report is not None:
                report(rows[-1])
    return {"rows": rows, "mean": summary(rows), "expected_coverage": expected_coverage(asked.samples, LEVEL)}


def evaluate_baseline(name: str, parts: Iterable[Part], resolution: int | None = None) -> dict[str, Any]:
    """Measure a classical method; its CRPS is the mean absolute error where it has no error bar.

    Raises:
        ValueError: There is no such method, or its library is not installed.
    """
    if name not in BASELINES:
        raise ValueError(f"--baselines: must be among {', '.join(BASELINES)}, got {name}")
    rows = []
    for part in parts:
        truth = part.values if resolution is None else part.fine[resolution]
        start = time.perf_counter()
        mean, std = BASELINES[name](*part.observed, cell_centres(truth.shape[:-1]))
        seconds = time.perf_counter() - start
        field, flat = mean.reshape(truth.shape), truth.reshape(mean.shape)
        row = {"name": part.name, **measure(field, truth, part.peak)}
        row |= {f"{k}_mean": row[k] for k in ("psnr", "ssim", "relative_l2", "xsi", "density", "sharpness")}
        if std is None:
            row |= {"crps": float(np.nanmean(np.abs(mean - flat))) / part.peak, "coverage": math.nan}
        else:
            good = np.isfinite(flat)
            inside = (np.abs(mean - flat) <= NORMAL * std)[good].mean()
            row |= {"crps": gaussian_crps(mean, std, flat) / part.peak, "coverage": float(inside)}
        rows.append({**row, "seconds": seconds})
    return {"rows": rows, "mean": summary(rows)}


def summary(rows: list[Row]) -> dict[str, list[float]]:
    """Return for every figure its mean over the parts and the 95 % bootstrap interval: [mean, low, high].

    Infinite and missing values are left out; a figure that no part has is NaN.
    """
    names = [key for key in rows[0] if key != "name"]
    return {key: list(bootstrap(np.array([row[key] for row in rows], np.float64))) for key in names}


def finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(results: dict[str, dict[str, Any]], columns: Iterable[str]) -> str:
    """Return results by name as text, one a line."""
    columns = list(columns)
    width = max(12, *(len(name) + 2 for name in results))
    lines = [" " * width + "".join(f"{c:>16}" for c in columns)]
    for name, result in results.items():
        cells = [result["mean"].get(c, [math.nan])[0] for c in columns]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>16.4f}" for cell in cells))
    return "\n".join(lines)
