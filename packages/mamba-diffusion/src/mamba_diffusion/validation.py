"""What is looked at during training: PSNR on a few fields that are not trained on, and pictures of them.

Numbers for orientation; `mamba-diffusion evaluate` gives the ones to publish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .data import as_float, cell_centres, pyramid, usable_cells
from .model import SparseField
from .predict import Prediction, sample_fields
from .process import Moments
from .recipes import TrainConfig
from .samplers import SamplerConfig
from .sources import Field

MOST = 16  # fields
DRAWN = 4  # of them in the picture
SHARE = 0.2  # of the points are sensors
ASKED = Prediction(samples=4, sampler=SamplerConfig(steps=5))


@dataclass(frozen=True)
class Shown:
    """One validation field.

    Attributes:
        name: Of the field it is cut from.
        values: The truth, (*space, C) float32 with NaN where there is none.
        sensors: Which points are observed, by their number in C order, (Ni,).
        peak: Range of the values, for PSNR: 1 for images.
    """

    name: str
    values: NDArray[np.float32]
    sensors: NDArray[np.int64]
    peak: float

    @property
    def coords(self) -> NDArray[np.float32]:
        """Of all points, (points, d)."""
        return cell_centres(self.values.shape[:-1])

    @property
    def flat(self) -> NDArray[np.float32]:
        """The truth, (points, C)."""
        return self.values.reshape(-1, self.values.shape[-1])


def cut(field: Field, corner: NDArray[np.int64], values: NDArray, side: int, share: float, seed: int) -> Shown:
    """Cut a square out of one size of a field and choose its sensors."""
    part = as_float(values[tuple(slice(c, c + side) for c in corner)])
    valid = np.flatnonzero(np.isfinite(part).all(-1).ravel())
    count = max(4, round(share * part[..., 0].size))
    sensors = np.random.default_rng(seed).permutation(valid)[:count]
    peak = 1.0 if field.values.dtype == np.uint8 else float(np.nanmax(part) - np.nanmin(part))
    return Shown(field.name, part, sensors, peak or 1.0)


def validation_fields(cfg: TrainConfig, fields: list[Field], moments: Moments) -> list[Shown]:
    """Return at most sixteen squares of the validation fields, spread evenly over them."""
    side, cells = cfg.sides[0], []
    for field in fields:
        for values in pyramid(field.values, cfg.levels):
            if min(values.shape[:-1]) >= side:
                corners = usable_cells(values, side, max(cfg.min_valid, SHARE), cfg.min_contrast, moments)
                cells += [(field, corner, values) for corner in corners]
    chosen = [cells[i] for i in np.linspace(0, len(cells) - 1, min(MOST, len(cells))).round().astype(int)]
    return [cut(field, corner, values, side, SHARE, n) for n, (field, corner, values) in enumerate(chosen)]


def predict(model: SparseField, shown: Shown, device: torch.device, asked: Prediction) -> NDArray[np.float32]:
    """Return samples of a whole field, (K, points, C), the device's precision."""
    coords = torch.from_numpy(shown.coords).to(device)
    values = torch.from_numpy(np.nan_to_num(shown.flat)).to(device)
    sensors = torch.from_numpy(shown.sensors).to(device)
    fields = sample_fields(model, coords[None, sensors], values[None, sensors], coords[None], asked)
    return fields[0].cpu().numpy()


def score(model: SparseField, shown: list[Shown], device: torch.device) -> float:
    """Return the mean PSNR of the mean of four samples, dB; NaN without fields."""
    figures = []
    for field in shown:
        mean = predict(model, field, device, ASKED).mean(0)
        error = np.nanmean((mean - field.flat) ** 2)
        figures.append(10 * math.log10(field.peak**2 / max(float(error), 1e-12)))
    return float(np.mean(figures)) if figures else math.nan


def draw(model: SparseField, shown: list[Shown], device: torch.device, path: Path) -> None:
    """Save a picture, one row a field: sensors, one sample, mean of four, truth. Only 2-D fields are drawn."""
    from .pictures import row, write_rows

    rows = []
    for field in shown[:DRAWN]:
        if field.values.ndim != 3:
            return
        samples = predict(model, field, device, ASKED)
        sparse = np.full_like(field.flat, np.nan)
        sparse[field.sensors] = field.flat[field.sensors]
        parts = [sparse, samples[0], samples.mean(0), field.flat]
        rows.append(row([x.reshape(field.values.shape) for x in parts], field.values))
    if rows:
        write_rows(rows, path)
