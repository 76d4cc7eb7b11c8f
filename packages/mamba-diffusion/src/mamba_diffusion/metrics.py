"""How good a field and its error bars are, and how sure a difference is. K samples, N points, C channels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
K1, K2 = 0.01, 0.03


def psnr(prediction: NDArray, truth: NDArray, data_range: float = 1.0) -> float:
    """Return 10 log10(range^2 / mean squared error) in dB over all finite points; infinite if equal."""
    error = float(np.nanmean((prediction.astype(np.float64) - truth) ** 2))
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def relative_l2(prediction: NDArray, truth: NDArray) -> float:
    """Return |prediction - truth| / |truth - mean of truth|, per channel, averaged: 1 is as bad as the mean."""
    axes = tuple(range(truth.ndim - 1))
    away = np.nansum((prediction.astype(np.float64) - truth) ** 2, axes)
    spread = np.nansum((truth - np.nanmean(truth, axes)) ** 2, axes)
    return float(np.mean(np.sqrt(away / np.maximum(spread, 1e-30))))


def ssim(prediction: NDArray, truth: NDArray, data_range: float = 1.0) -> float:
    """Return the mean structural similarity of fields (*space, C), Gaussian window of sigma 1.5, 11 points a side.

    Missing points are left out with every window around them; NaN if nothing is left.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    good = np.asarray(np.isfinite(truth).all(-1))
    inside = np.asarray(ndimage.binary_erosion(good, np.ones((3,) * good.ndim, bool), border_value=1), bool)
    a, b = (np.where(good[..., None], x, 0).astype(np.float64) for x in (prediction, truth))
    sigma = (SSIM_SIGMA,) * good.ndim + (0,)

    def smooth(x: NDArray) -> NDArray:
        return ndimage.gaussian_filter(x, sigma, radius=(SSIM_RADIUS,) * good.ndim + (0,), mode="reflect")

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    value = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(value[inside].mean()) if inside.any() else math.nan


def crps(samples: NDArray, truth: NDArray) -> float:
    """Return the continuous ranked probability score of K samples, fair to their number, mean over finite points.

    Samples 0 and 1, 2 and 3, ... have opposite noise; the difference within such a pair says nothing of the spread
    and is left out.

    Args:
        samples: (K, N, C), K >= 3.
        truth: (N, C).

    Source: Ferro 2014, doi:10.1002/qj.2270.
    """
    count = len(samples)
    away = np.abs(samples - truth).mean(0)
    order = np.sort(samples, 0)
    weights = 2 * np.arange(1, count + 1) - count - 1
    paired = np.abs(samples[1::2] - samples[: count - count % 2 : 2]).sum(0)
    others = count * (count - 1) - 2 * (count // 2)
    between = 2 * (np.tensordot(weights, order, (0, 0)) - paired) / others
    return float(np.nanmean(away - between / 2))


def gaussian_crps(mean: NDArray, std: NDArray, truth: NDArray) -> float:
    """Return the score of Gaussian predictions, mean over finite points.

    Source: Gneiting et al. 2005, doi:10.1175/MWR2904.1.
    """
    std = np.maximum(std, 1e-12)
    z = (truth - mean) / std
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.nanmean(std * (z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))))


def coverage(samples: NDArray, truth: NDArray, level: float = 0.9) -> float:
    """Return the share of finite points whose truth lies in the central interval of K samples.

    The interval runs between order statistics placed so that, for samples from the truth's own distribution, its
    expected coverage is `level` whatever K is: (K + 1) * (1 - level) / 2 from either end, interpolated; with fewer
    samples than that takes (19 for 90 %), the ends themselves.
    """
    count = len(samples)
    place = max((count + 1) * (1 - level) / 2 - 1, 0.0)
    order: NDArray = np.sort(samples, axis=0)
    low, part = int(place), place - int(place)
    lower = order[low] * (1 - part) + order[min(low + 1, count - 1)] * part
    upper = order[-1 - low] * (1 - part) + order[max(-2 - low, -count)] * part
    good = np.isfinite(truth)
    inside = np.asarray((truth >= lower) & (truth <= upper))
    return float(inside[good].mean())


def expected_coverage(count: int, level: float = 0.9) -> float:
    """Return what perfect samples would cover: `level`, or (K - 1) / (K + 1) where K is too small for it."""
    return min(level, (count - 1) / (count + 1))


class Interval(NamedTuple):
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: NDArray, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of values (N,) and the interval of the means of fields drawn with replacement; NaN are left out.

    For a paired comparison give the differences.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def ratio_reduction(a: NDArray, b: NDArray, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Return 1 - mean(b) / mean(a) with its paired bootstrap interval, over fields where both are finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if not len(a) or a.mean() == 0:
        return Interval(math.nan, math.nan, math.nan)
    picks = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    reductions = 1 - b[picks].mean(1) / np.maximum(a[picks].mean(1), 1e-30)
    low, high = np.quantile(reductions, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(1 - b.mean() / a.mean()), float(low), float(high))
