"""The example that `reconstruct` runs without points: a held-out map of the data extra, seen by a few sensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .embedded import air
from .fieldset import choose_sensors
from .points import Points

SHARE = 0.1  # of the points are sensors


def example(number: int) -> tuple[Points, tuple[int, ...], NDArray[np.float64], NDArray[np.float32]]:
    """Return sensors, grid, its places (M, 2) and the truth (M, 1) of a held-out air temperature map, K.

    Args:
        number: Which of the held-out maps.

    Raises:
        ValueError: The data extra is not installed, or there is no such map.
    """
    maps = [field for field in air() if field.split == "held-out"]
    if not 0 <= number < len(maps):
        raise ValueError(f"--example: must be from 0 to {len(maps) - 1}, got {number}")
    values = maps[number].values
    height, width = values.shape[:2]
    row, column = np.divmod(np.arange(height * width), width)
    places = np.stack([column + 0.5, row + 0.5], -1)
    sensors = choose_sensors(values, SHARE, number)
    truth = values.reshape(-1, 1)
    extent = np.array([[0.0, width], [0.0, height]])
    points = Points(places[sensors], truth[sensors], ("x", "y"), ("air temperature",), maps[number].unit, extent)
    return points, (height, width), places, truth
