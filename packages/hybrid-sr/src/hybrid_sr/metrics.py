"""PSNR and SSIM as the super-resolution field reports them: on luma, after cutting `scale` pixels from every side.

Images are (H, W, 3) RGB uint8 (grey (H, W) counts as three equal channels). All arithmetic is float64.
Source: the protocol of BasicSR, checked against its numbers.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from .checks import refuse

PEAK = 255.0
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels


def to_uint8(image: NDArray) -> NDArray[np.uint8]:
    """Round a floating image in [0, 1] to uint8 after clipping, as it would be stored; any shape."""
    return np.rint(np.clip(np.asarray(image, np.float64), 0, 1) * PEAK).astype(np.uint8)


def rgb_to_y(image: NDArray) -> NDArray[np.float64]:
    """Return BT.601 luma in studio range, not rounded: black is 16, white 235.

    Args:
        image: (H, W, 3) RGB or (H, W) grey, uint8 in 0..255 or floating in [0, 1].

    Returns:
        (H, W) float64.

    Raises:
        ValueError: Another shape or type.
    """
    rgb = _as_rgb("rgb_to_y", image)
    if rgb.dtype == np.uint8:
        rgb = rgb.astype(np.float64) / PEAK
    elif not np.issubdtype(rgb.dtype, np.floating):
        refuse("rgb_to_y", "image", "uint8, or floating in [0, 1]", rgb.dtype, "scale it to [0, 1]")
    return rgb.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) + 16.0


def psnr(a: NDArray, b: NDArray, *, crop: int = 0) -> float:
    """Return the peak signal-to-noise ratio over all RGB values, in dB; infinite for equal images.

    Args:
        a: (H, W, 3) RGB or (H, W) grey, uint8.
        b: Same shape and dtype.
        crop: Pixels cut from every side first.

    Raises:
        ValueError: Shapes or dtypes differ or are wrong, or nothing is left after the crop.
    """
    a, b = _pair("psnr", a, b, crop)
    return _psnr(a.astype(np.float64), b.astype(np.float64))


def psnr_y(a: NDArray, b: NDArray, *, crop: int = 0) -> float:
    """Return the peak signal-to-noise ratio of luma, in dB, with peak 255. Arguments and errors as `psnr`."""
    a, b = _pair("psnr_y", a, b, crop)
    return _psnr(rgb_to_y(a), rgb_to_y(b))


def ssim(a: NDArray, b: NDArray, *, crop: int = 0) -> float:
    """Return the structural similarity, mean over the R, G and B maps; 1 for equal images.

    Gaussian window of 11 pixels, sigma 1.5, only where it fits into the cropped image; C1 = (0.01 * 255)^2 and
    C2 = (0.03 * 255)^2. Arguments as `psnr`.

    Raises:
        ValueError: As `psnr`, or fewer than 11 pixels are left in a direction.
    """
    a, b = _pair("ssim", a, b, crop, least=SSIM_WINDOW)
    return float(np.mean([_ssim(_as_float(a[..., c]), _as_float(b[..., c])) for c in range(3)]))


def ssim_y(a: NDArray, b: NDArray, *, crop: int = 0) -> float:
    """Return the structural similarity of luma. Arguments, window and errors as `ssim`."""
    a, b = _pair("ssim_y", a, b, crop, least=SSIM_WINDOW)
    return _ssim(rgb_to_y(a), rgb_to_y(b))


def _as_float(x: NDArray) -> NDArray[np.float64]:
    return x.astype(np.float64)


def _as_rgb(function: str, image: NDArray) -> NDArray:
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        refuse(function, "image", "(H, W, 3) RGB or (H, W) grey", image.shape, "drop alpha, put channels last")
    return image


def _pair(function: str, a: NDArray, b: NDArray, crop: int, least: int = 1) -> tuple[NDArray, NDArray]:
    if a.shape != b.shape:
        refuse(function, "b", f"of the shape of a, {a.shape}", b.shape, "crop the original to a multiple of the scale")
    for name, x in (("a", a), ("b", b)):
        if x.dtype != np.uint8:
            refuse(function, name, "uint8", x.dtype, "round it with to_uint8 first, as the published numbers do")
    if crop < 0:
        refuse(function, "crop", ">= 0", crop, "the field crops `scale` pixels")
    a, b = _as_rgb(function, a), _as_rgb(function, b)
    height, width = a.shape[:2]
    if min(height, width) - 2 * crop < least:
        wanted = f"more than {2 * crop + least - 1} pixels high and wide (crop {crop})"
        refuse(function, "a", wanted, (height, width), "take a larger image")
    inside = (slice(crop, height - crop), slice(crop, width - crop))
    return a[inside], b[inside]


def _psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 20 * math.log10(PEAK / math.sqrt(error))


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean where the whole window fits: (h, w) -> (h - 10, w - 10)."""
    edge = SSIM_WINDOW // 2
    if find_spec("cv2") is None:  # a bare GPU machine; slower
        taps = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - edge) / SSIM_SIGMA) ** 2)
        taps /= taps.sum()
        rows, columns = x.shape[0] - 2 * edge, x.shape[1] - 2 * edge
        down = np.sum([tap * x[i : i + rows] for i, tap in enumerate(taps)], axis=0)
        return np.sum([tap * down[:, i : i + columns] for i, tap in enumerate(taps)], axis=0)
    import cv2

    taps = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_64F)
    blurred = np.asarray(cv2.sepFilter2D(np.ascontiguousarray(x), cv2.CV_64F, taps, taps), np.float64)
    return blurred[edge : x.shape[0] - edge, edge : x.shape[1] - edge]


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))
