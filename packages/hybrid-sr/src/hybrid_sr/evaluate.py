"""PSNR and SSIM of an upscaler against bicubic, by the protocol that the field publishes with.

The original is cut to a multiple of the scale, made smaller by MATLAB bicubic and upscaled; results are rounded to
uint8, `scale` pixels are cut from every side, and luma is compared. H, W are the original's size, s the scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import picture_files, read_picture
from .metrics import psnr_y, ssim_y
from .resize import imresize, modcrop
from .samples import sample_set

Upscaler = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # (h, w, 3) -> (s * h, s * w, 3)
NamedImage = tuple[str, NDArray[np.uint8]]  # a name and an original, (H, W, 3) RGB


def evaluate_images(
    upscale_fn: Upscaler,
    images: Iterable[NamedImage],
    scale: int,
    *,
    low_resolution: Mapping[str, NDArray[np.uint8]] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Upscale reduced originals and compare with them.

    Args:
        upscale_fn: Upscales (h, w, 3) uint8 to (s * h, s * w, 3) uint8.
        images: Names and originals, (H, W, 3) uint8, at least 11 + 2 s pixels high and wide after the cut. Read one
            at a time.
        scale: s.
        low_resolution: Ready-made inputs by name instead of MATLAB bicubic, each (H // s, W // s, 3) uint8.
        report: Called with the row of every image as soon as it is known.

    Returns:
        `psnr_y` (dB), `ssim_y`, `bicubic_psnr_y`, `bicubic_ssim_y` and `gain_db` as means over the images, `n`, and
        `per_image`: rows with `name`, `height`, `width` and the same figures. An exact result has infinite PSNR.

    Raises:
        ValueError: There is no image, a size does not fit, or a low-resolution input is missing.
    """
    rows = []
    for name, original in images:
        original = modcrop(original, scale)  # noqa: PLW2901
        lr = imresize(original, 1 / scale) if low_resolution is None else _lr_of(name, original, scale, low_resolution)
        result, bicubic = upscale_fn(lr), imresize(lr, scale)
        if result.shape != original.shape:
            raise ValueError(f"evaluate: {name}: the result is {result.shape}, the original {original.shape}")
        row = {
            "name": name,
            "height": original.shape[0],
            "width": original.shape[1],
            "psnr_y": psnr_y(result, original, crop=scale),
            "ssim_y": ssim_y(result, original, crop=scale),
            "bicubic_psnr_y": psnr_y(bicubic, original, crop=scale),
            "bicubic_ssim_y": ssim_y(bicubic, original, crop=scale),
        }
        row["gain_db"] = _difference(row["psnr_y"], row["bicubic_psnr_y"])
        rows.append(row)
        if report is not None:
            report(row)
    if not rows:
        raise ValueError("evaluate: there is no image; give a folder of PNG, JPEG, WebP or TIFF originals")
    means = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")
    result = {key: float(np.mean([row[key] for row in rows])) for key in means}
    result["gain_db"] = _difference(result["psnr_y"], result["bicubic_psnr_y"])
    return {**result, "n": len(rows), "per_image": rows}


def sample_images(set_name: str | None = None) -> Iterator[NamedImage]:
    """Yield the photos that installed packages carry; of one set, or all of them.

    Raises:
        ValueError: No such set, or its package is not installed.
    """
    for sample in sample_set(set_name):
        yield sample.name, sample.read()


def folder_images(folder: str | Path, *, max_megapixels: float) -> Iterator[NamedImage]:
    """Yield the pictures of a folder and the folders in it, by relative path without suffix; hidden files are left out.

    Raises:
        ValueError: No folder, no picture in it, or a picture is damaged.
    """
    folder = Path(folder)
    for path in picture_files(folder):
        yield str(path.relative_to(folder).with_suffix("")), read_picture(path, max_megapixels=max_megapixels).rgb8()


def read_low_resolution(folder: str | Path, scale: int, *, max_megapixels: float) -> dict[str, NDArray[np.uint8]]:
    """Read ready-made inputs; "0801x4" in the folder is the input of the original "0801".

    Raises:
        ValueError: As `folder_images`.
    """
    return {
        name.removesuffix(f"x{scale}"): image for name, image in folder_images(folder, max_megapixels=max_megapixels)
    }


def _lr_of(
    name: str, original: NDArray[np.uint8], scale: int, low_resolution: Mapping[str, NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    if name not in low_resolution:
        raise ValueError(f"evaluate: {name} has no low-resolution image; expected {name} or {name}x{scale} in --lr")
    lr = low_resolution[name]
    if (lr.shape[0] * scale, lr.shape[1] * scale) != original.shape[:2]:
        wanted = f"{original.shape[1] // scale}x{original.shape[0] // scale}"
        found = f"{lr.shape[1]}x{lr.shape[0]}"
        raise ValueError(f"evaluate: the low-resolution image of {name} must be {wanted}, got {found}; check --scale")
    return lr


def _difference(a: float, b: float) -> float:
    return 0.0 if a == b else a - b if math.isfinite(b) else -math.inf
