"""Upscale a picture whose original is known, and show what was gained: numbers and one picture with everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .images import Picture, check_writable, read_picture, write_picture
from .metrics import psnr_y, ssim_y
from .resize import imresize, modcrop
from .samples import Sample

DETAIL = 96  # pixels of the original; the part that the lower row of the panel shows enlarged
LABEL_HEIGHT = 30  # pixels
GAP = 8  # pixels
INK, PAPER = (32, 32, 32), (255, 255, 255)


@dataclass(frozen=True)
class Gain:
    """Figures of one upscaled picture against its original: luma, border of `scale` pixels cut."""

    psnr_y: float
    ssim_y: float
    bicubic_psnr_y: float
    bicubic_ssim_y: float

    @property
    def gain_db(self) -> float:
        """How much better than MATLAB bicubic, in dB."""
        return self.psnr_y - self.bicubic_psnr_y

    def lines(self) -> list[str]:
        """Return the figures as text for a person."""
        return [
            f"  bicubic    {self.bicubic_psnr_y:6.2f} dB   SSIM {self.bicubic_ssim_y:.4f}",
            f"  hybrid-sr  {self.psnr_y:6.2f} dB   SSIM {self.ssim_y:.4f}   {self.gain_db:+.2f} dB over bicubic",
        ]


def gain(lr: NDArray[np.uint8], result: NDArray[np.uint8], original: NDArray[np.uint8], scale: int) -> Gain:
    """Compare a result and MATLAB bicubic with the original.

    Args:
        lr: (h, w, 3) uint8 input.
        result: (s * h, s * w, 3) uint8.
        original: (H, W, 3) uint8; up to s - 1 more rows and columns than the result are cut.
        scale: s.

    Raises:
        ValueError: The original does not have s times the input's size.
    """
    cut = modcrop(original, scale)
    if cut.shape != result.shape:
        wanted = f"{result.shape[1]}x{result.shape[0]}, {scale} times the input"
        raise ValueError(f"--original: must be {wanted}, got {original.shape[1]}x{original.shape[0]}; check --scale")
    bicubic = imresize(lr, scale)
    return Gain(
        psnr_y=psnr_y(result, cut, crop=scale),
        ssim_y=ssim_y(result, cut, crop=scale),
        bicubic_psnr_y=psnr_y(bicubic, cut, crop=scale),
        bicubic_ssim_y=ssim_y(bicubic, cut, crop=scale),
    )


def sample_files(name: str, scale: int, out: Path) -> dict[str, Path]:
    """Return where `upscale_sample` writes: lr, bicubic, upscaled, original and panel."""
    names = {"lr": "lr", "bicubic": "bicubic", "upscaled": f"x{scale}", "original": "original", "panel": "panel"}
    return {key: out / f"{name}_{suffix}.png" for key, suffix in names.items()}


def upscale_sample(
    upscaler: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    sample: Sample,
    *,
    scale: int,
    out: Path,
    overwrite: bool = False,
) -> tuple[Gain, dict[str, Path]]:
    """Make a packaged photo small, upscale it, and write input, bicubic, result, original and a panel of all four.

    Args:
        upscaler: Upscales (h, w, 3) uint8 to (s * h, s * w, 3).
        sample: The photo.
        scale: s.
        out: Folder for the PNG files.
        overwrite: Replace existing ones.

    Returns:
        The figures and the files, as `sample_files` names them.

    Raises:
        ValueError: The photo's package is not installed, or a file exists.
    """
    files = sample_files(sample.name, scale, out)
    original = np.ascontiguousarray(modcrop(sample.read(), scale))
    for path in files.values():
        check_writable(path, original.shape, overwrite=overwrite)
    lr = imresize(original, 1 / scale)
    result = upscaler(lr)
    figures = gain(lr, result, original, scale)
    bicubic = imresize(lr, scale)
    pictures = {"lr": lr, "bicubic": bicubic, "upscaled": result, "original": original}
    pictures["panel"] = panel(lr, bicubic, result, original, figures)
    for key, path in files.items():
        write_picture(Picture(pictures[key]), path, overwrite=overwrite)
    return figures, files


def original_of(path: str | Path, *, max_megapixels: float) -> NDArray[np.uint8]:
    """Read the user's original, (H, W, 3) uint8.

    Raises:
        ValueError: As `read_picture`.
    """
    return read_picture(path, max_megapixels=max_megapixels).rgb8()


def panel(
    lr: NDArray[np.uint8],
    bicubic: NDArray[np.uint8],
    result: NDArray[np.uint8],
    original: NDArray[np.uint8],
    figures: Gain,
) -> NDArray[np.uint8]:
    """Draw the four pictures side by side with labels, and below each its most detailed part, enlarged.

    Args:
        lr: (h, w, 3) uint8; shown with visible pixels.
        bicubic: (H, W, 3) uint8.
        result: (H, W, 3) uint8.
        original: (H, W, 3) uint8.
        figures: For the labels.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = original.shape[:2]
    columns = [
        (f"input {lr.shape[1]}x{lr.shape[0]}", _enlarged(lr, height, width)),
        (f"bicubic {figures.bicubic_psnr_y:.2f} dB", bicubic),
        (f"hybrid-sr {figures.psnr_y:.2f} dB ({figures.gain_db:+.2f})", result),
        (f"original {width}x{height}", original),
    ]
    top, left, side = most_detailed(bicubic)  # where the input has structure, not texture that it cannot show
    rows = [np.concatenate([_labelled(text, image) for text, image in columns], axis=1)]
    details = [image[top : top + side, left : left + side] for _, image in columns]
    rows.append(np.concatenate([_framed(_enlarged(part, width, width)) for part in details], axis=1))
    return np.concatenate(rows)


def _enlarged(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Repeat pixels to (height, width)."""
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    return image[rows][:, columns]


def most_detailed(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return top, left and side of the square with the largest mean gradient."""
    import cv2

    height, width = image.shape[:2]
    side = min(DETAIL, height, width)
    luma = image.mean(axis=2)
    gradient = np.hypot(*np.gradient(luma)) if min(height, width) > 1 else luma
    scores = cv2.boxFilter(gradient, cv2.CV_64F, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    valid = scores[: height - side + 1, : width - side + 1]
    top, left = np.unravel_index(int(valid.argmax()), valid.shape)
    return int(top), int(left), side


def _labelled(text: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (image.shape[1] + 2 * GAP, LABEL_HEIGHT), PAPER)
    size = next((s for s in (18, 15, 12, 10) if ImageDraw.Draw(strip).textlength(text, _font(s)) < image.shape[1]), 8)
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont = _font(size)
    ImageDraw.Draw(strip).text((GAP, LABEL_HEIGHT - 4), text, INK, font, anchor="ls")
    return np.concatenate([np.asarray(strip), _framed(image)])


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(image, ((0, GAP), (GAP, GAP), (0, 0)), constant_values=255)
