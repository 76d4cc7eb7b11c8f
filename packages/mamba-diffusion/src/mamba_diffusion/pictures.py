"""Fields as pixels: colour as it is, one channel through a colour scale, missing points grey. No matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GREY = 128
GAP = 2  # pixels between parts
LEAST = 128  # side that small fields are enlarged to
# dark blue, blue-green, yellow: even steps of lightness
SCALE = np.array([[30, 20, 90], [45, 90, 150], [60, 160, 130], [160, 205, 90], [250, 235, 90]], np.float32)


def colours(values: NDArray, low: float, high: float) -> NDArray[np.uint8]:
    """Turn (H, W, C) into (H, W, 3) pixels: RGB in [0, 1] if C is 3, else the first channel between low and high."""
    missing = ~np.isfinite(values).all(-1)
    if values.shape[-1] == 3:
        pixels = np.clip(np.nan_to_num(values), 0, 1) * 255
    else:
        place = (np.nan_to_num(values[..., 0]) - low) / max(high - low, 1e-12)
        place = np.clip(place, 0, 1) * (len(SCALE) - 1)
        index = np.minimum(place.astype(int), len(SCALE) - 2)
        part = (place - index)[..., None]
        pixels = SCALE[index] * (1 - part) + SCALE[index + 1] * part
    pixels = (pixels + 0.5).astype(np.uint8)
    pixels[missing] = GREY
    return pixels


def limits(truth: NDArray) -> tuple[float, float]:
    """Return the range that a field's colours span."""
    good = truth[np.isfinite(truth)]
    return (float(good.min()), float(good.max())) if len(good) else (0.0, 1.0)


def enlarge(pixels: NDArray[np.uint8], least: int = LEAST) -> NDArray[np.uint8]:
    """Repeat pixels until the shorter side has at least `least`."""
    times = max(1, -(-least // min(pixels.shape[:2])))
    return pixels.repeat(times, 0).repeat(times, 1)


def as_map(values: NDArray) -> NDArray:
    """Return what is shown of a field (*space, C): a line as a strip, of a volume the middle slice; (H, W, C)."""
    if values.ndim == 2:
        return values[None].repeat(-(-len(values) // 8), 0)
    return values[len(values) // 2] if values.ndim == 4 else values


def row(parts: list[NDArray], truth: NDArray) -> NDArray[np.uint8]:
    """Put fields (*space, C) side by side, in the colours of the truth's range."""
    low, high = limits(truth)
    drawn = [enlarge(colours(as_map(part), low, high)) for part in parts]
    gap = np.full((drawn[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([x for part in drawn for x in (part, gap)][:-1], axis=1)


def write_rows(rows: list[NDArray[np.uint8]], path: Path) -> None:
    """Save rows one below the other as PNG."""
    from PIL import Image

    width = max(r.shape[1] for r in rows)
    rows = [np.pad(r, ((0, GAP), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    Image.fromarray(np.concatenate(rows)).save(path)
