"""Measures of pictures that need no other network. Pictures are (n, H, W, 3) uint8."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

FLAT = 4.0  # grey levels: a picture whose pixels deviate less is nearly of one colour
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5


def flat_share(pictures: NDArray[np.uint8]) -> float:
    """Return the share of pictures that are nearly of one colour: every channel deviates by less than 4 levels."""
    deviation = pictures.reshape(len(pictures), -1, 3).astype(np.float64).std(1).max(-1)
    return float((deviation < FLAT).mean())


def code_statistics(ids: NDArray[np.integer], codes: int) -> dict[str, float]:
    """Return how many different codes occur in tokens (n, L), and exp(entropy) of their use."""
    counts = np.bincount(ids.ravel(), minlength=codes).astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    return {"unique_codes": int((counts > 0).sum()), "code_perplexity": float(np.exp(-(share * np.log(share)).sum()))}


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean PSNR in dB of pictures of one size over RGB; identical ones count as 100 dB."""
    errors = [np.square(x.astype(np.int32) - y).mean() for x, y in zip(a, b, strict=True)]
    return float(np.mean([100.0 if e == 0 else 10 * math.log10(255**2 / e) for e in errors]))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean SSIM of pictures of one size on luma, Gaussian window of 11 pixels, valid area.

    Source: Wang et al. 2004, sigma 1.5, K1 0.01, K2 0.03.
    """
    weights = np.array([0.299, 0.587, 0.114])
    return float(np.mean([_ssim(x @ weights, y @ weights) for x, y in zip(a, b, strict=True)]))


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    value = (2 * mx * my + one) * (2 * cov + two) / ((mx * mx + my * my + one) * (vx + vy + two))
    return float(value.mean())


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-np.square(np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)) / (2 * SSIM_SIGMA**2))
    taps /= taps.sum()
    for axis in (0, 1):
        x = sliding_window_view(x, len(taps), axis) @ taps
    return x
