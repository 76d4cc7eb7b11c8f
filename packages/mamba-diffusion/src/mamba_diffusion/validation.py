"""What is looked at during training: PSNR on a few fields that are not trained on, and pictures of them.

Numbers for orientation; `mamba-diffusion evaluate` gives the ones to publish.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .data import pyramid, usable_cells
from .fieldset import Part, make_part
from .metrics import psnr
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


def validation_fields(cfg: TrainConfig, fields: list[Field], moments: Moments) -> list[Part]:
    """Return at most sixteen squares of the validation fields, spread evenly over them."""
    side, cells = cfg.sides[0], []
    for field in fields:
        for values in pyramid(field.values, cfg.levels):
            if min(values.shape[:-1]) >= side:
                corners = usable_cells(values, side, max(cfg.min_valid, SHARE), cfg.min_contrast, moments)
                cells += [(field, corner, values) for corner in corners]
    chosen = [cells[i] for i in np.linspace(0, len(cells) - 1, min(MOST, len(cells))).round().astype(int)]
    return [
        make_part(field, values, corner, side, side, SHARE, n, ()) for n, (field, corner, values) in enumerate(chosen)
    ]


def predict(model: SparseField, shown: Part, device: torch.device, asked: Prediction) -> NDArray[np.float32]:
    """Return samples of a whole field, (K, points, C), the device's precision."""
    coords = torch.from_numpy(shown.coords).to(device)
    values = torch.from_numpy(np.nan_to_num(shown.flat)).to(device)
    sensors = torch.from_numpy(shown.sensors).to(device)
    fields = sample_fields(model, coords[None, sensors], values[None, sensors], coords[None], asked)
    return fields[0].cpu().numpy()


def score(model: SparseField, shown: list[Part], device: torch.device) -> float:
    """Return the mean PSNR of the mean of four samples, dB; NaN without fields."""
    figures = []
    for field in shown:
        mean = predict(model, field, device, ASKED).mean(0)
        figures.append(psnr(mean, field.flat, field.peak))
    return float(np.mean(figures)) if figures else math.nan


def draw(model: SparseField, shown: list[Part], device: torch.device, path: Path) -> None:
    """Save a picture, one row a field: sensors, one sample, mean of four, truth."""
    from .pictures import row, write_rows

    rows = []
    for field in shown[:DRAWN]:
        samples = predict(model, field, device, ASKED)
        sparse = np.full_like(field.flat, np.nan)
        sparse[field.sensors] = field.flat[field.sensors]
        parts = [sparse, samples[0], samples.mean(0), field.flat]
        rows.append(row([x.reshape(field.values.shape) for x in parts], field.values))
    if rows:
        write_rows(rows, path)
