"""The excess speckle index: how much pixel noise a prediction has where the truth is flat, in units of noise sigma.

Fields are (*space, C) float arrays with one, two or three axes of space; NaN marks points that do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

FLAT = 0.02  # largest standard deviation of a flat window, as a share of the data's range
LEAST_POINTS = 30  # of the flat mask
FLAT_WINDOW = 5
# standard deviation of x - median of its n = 3, 9, 27 window for unit Gaussian noise: sqrt(1 + var(median) - 2 / n)
RESIDUAL_STD = {1: 0.8843, 2: 0.9715, 3: 0.9916}
NEIGHBOURS = 12  # of a scattered point
DENSITY_FACTOR, DENSITY_FLOOR = 3.0, 0.01


@dataclass(frozen=True)
class Speckle:
    """Of one prediction.

    Attributes:
        index: The excess speckle index, >= 0, in the unit of the values.
        density: Share of the flat points that stick out of all their neighbours.
        points: Of the flat mask.
    """

    index: float
    density: float
    points: int


def flat_mask(truth: NDArray, data_range: float, threshold: float = FLAT) -> NDArray[np.bool_]:
    """Return where the truth is flat: standard deviation in a window of five points a side, mean over channels.

    Args:
        truth: (*space, C).
        data_range: Of the values, such as 1 for pictures.
        threshold: Largest deviation, as a share of the range.

    Returns:
        (*space), false in windows that leave the field or touch a missing point.
    """
    dims = truth.ndim - 1
    window = (FLAT_WINDOW,) * dims + (1,)
    good = np.asarray(np.isfinite(truth).all(-1))
    filled = np.where(good[..., None], truth, 0.0).astype(np.float64)
    centred = filled - filled.mean()
    mean = ndimage.uniform_filter(centred, list(window), mode="nearest")  # pyright: ignore[reportArgumentType]
    square = ndimage.uniform_filter(centred**2, list(window), mode="nearest")  # pyright: ignore[reportArgumentType]
    deviation = np.sqrt(np.maximum(square - mean**2, 0)).mean(-1)
    inside = ndimage.binary_erosion(good, np.ones(window[:-1], bool))
    return (deviation < threshold * data_range) & inside


def residual(field: NDArray) -> NDArray[np.float64]:
    """Return every point minus the median of it and its direct neighbours, per channel."""
    window = (3,) * (field.ndim - 1) + (1,)
    filled = np.nan_to_num(field).astype(np.float64)
    return filled - ndimage.median_filter(filled, window, mode="nearest")


def roughness(field: NDArray, mask: NDArray[np.bool_]) -> float:
    """Return the noise sigma that the residual in the mask would come from."""
    return float(np.sqrt(np.mean(residual(field)[mask] ** 2)) / RESIDUAL_STD[field.ndim - 1])


def speckle(prediction: NDArray, truth: NDArray, data_range: float = 1.0) -> Speckle | None:
    """Measure a prediction against the truth.

    Args:
        prediction: (*space, C).
        truth: The same shape.
        data_range: Of the values.

    Returns:
        None if fewer than 30 points of the truth are flat. A constant prediction scores 0 too: read the index beside
        PSNR, SSIM and the sharpness.

    Raises:
        ValueError: The shapes differ, or there are more than three axes of space.
    """
    if prediction.shape != truth.shape or not 2 <= truth.ndim <= 4:
        raise ValueError(
            f"speckle: prediction must be (*space, C) like the truth, {truth.shape}, got {prediction.shape}; "
            "give fields on the same grid"
        )
    mask = flat_mask(truth, data_range)
    if mask.sum() < LEAST_POINTS:
        return None
    ours, theirs = roughness(prediction, mask), roughness(truth, mask)
    index = float(np.sqrt(max(0.0, ours**2 - theirs**2)))
    outside = outliers(prediction, DENSITY_FACTOR * max(theirs, DENSITY_FLOOR * data_range))
    return Speckle(index, float(outside[mask].mean()), int(mask.sum()))


def outliers(field: NDArray, margin: float) -> NDArray[np.bool_]:
    """Return where the channel mean exceeds, or falls below, all direct neighbours by more than `margin`."""
    grey = np.nan_to_num(field).mean(-1)
    around = np.ones((3,) * grey.ndim, bool)
    around[(1,) * grey.ndim] = False
    above = grey - ndimage.maximum_filter(grey, footprint=around, mode="nearest")
    below = ndimage.minimum_filter(grey, footprint=around, mode="nearest") - grey
    return (above > margin) | (below > margin)


def scattered_residual(coords: NDArray, values: NDArray, neighbours: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Return every scattered point minus a plane through its nearest neighbours, in units of the plane's own error.

    Args:
        coords: (N, d).
        values: (N, C).
        neighbours: Of the plane; the point itself is left out.

    Returns:
        (N, C): for unit Gaussian noise its standard deviation is 1 at every point.
    """
    tree = KDTree(coords)
    near = np.asarray(tree.query(coords, neighbours + 1)[1])[:, 1:]
    offset = coords[near] - coords[:, None]
    design = np.concatenate([np.ones_like(offset[..., :1]), offset], -1).astype(np.float64)
    inverse = np.linalg.pinv(design)[:, :1]  # the plane at the point itself: a weighted mean
    plane = np.einsum("nok,nkc->noc", inverse, values[near].astype(np.float64))[:, 0]
    return (values - plane) / np.sqrt(1 + (inverse**2).sum((1, 2)))[:, None]


def scattered_speckle(
    prediction: NDArray, truth: NDArray, coords: NDArray, data_range: float = 1.0, threshold: float = FLAT
) -> Speckle | None:
    """Measure speckle at scattered points: values (N, C) at coords (N, d); the flat mask is by the truth's residual."""
    ours, theirs = scattered_residual(coords, prediction), scattered_residual(coords, truth)
    mask = np.abs(theirs).mean(-1) < threshold * data_range
    if mask.sum() < LEAST_POINTS:
        return None
    own, base = np.sqrt(np.mean(ours[mask] ** 2)), np.sqrt(np.mean(theirs[mask] ** 2))
    margin = DENSITY_FACTOR * max(base, DENSITY_FLOOR * data_range)
    density = float((np.abs(ours[mask]).mean(-1) > margin).mean())
    return Speckle(float(np.sqrt(max(0.0, own**2 - base**2))), density, int(mask.sum()))


def sharpness(prediction: NDArray, truth: NDArray, data_range: float = 1.0) -> float:
    """Return the detail of a prediction over that of the truth, outside the flat mask: 1 is as sharp, 0 is blurred.

    Detail is the energy of what a 3-point Gaussian removes. NaN where the truth has none.
    """
    detailed = ~flat_mask(truth, data_range) & np.isfinite(truth).all(-1)
    sigma = (0.85,) * (truth.ndim - 1) + (0,)

    def energy(field: NDArray) -> float:
        filled = np.nan_to_num(field).astype(np.float64)
        return float(np.mean((filled - ndimage.gaussian_filter(filled, sigma, mode="nearest"))[detailed] ** 2))

    base = energy(truth) if detailed.any() else 0.0
    return float(np.sqrt(energy(prediction) / base)) if base > 0 else float("nan")
