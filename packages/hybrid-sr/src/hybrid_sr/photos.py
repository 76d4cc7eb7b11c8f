"""Read photos into memory as uint8, high and low resolution, once per run.

H and W are the high-resolution size, s the scale. Arrays are (height, width, 3) RGB uint8.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .resize import imresize, modcrop
from .sources import Photo

STRIP_ROWS = 512  # low-resolution rows resized at once, which bounds the memory
MARGIN = 8  # low-resolution rows of context; the widened cubic kernel reaches 2
MOST_PIXELS = 2**30  # of one picture: larger ones are mistakes or decompression bombs


@dataclass(frozen=True)
class Pair:
    """A photo in memory: `hr` is (s * h, s * w, 3) and `lr` (h, w, 3), uint8."""

    name: str
    hr: NDArray[np.uint8]
    lr: NDArray[np.uint8]


def read_image(path: Path, *, halve: bool = False) -> Image.Image:
    """Open a picture as 8-bit RGB; alpha is dropped.

    Args:
        path: The file.
        halve: Halve both sides by antialiased bicubic (an odd last row or column is cut).

    Raises:
        OSError: The file is missing, truncated or no image.
    """
    Image.MAX_IMAGE_PIXELS = None  # mosaics and panoramas are meant
    with Image.open(path) as file:
        if file.width * file.height > MOST_PIXELS:
            raise OSError(f"{file.width} x {file.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million; cut it up")
        image = file.convert("RGB")
    if not halve:
        return image
    width, height = image.width // 2, image.height // 2
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, 2 * width, 2 * height))


def shrink(hr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Make the low-resolution image by MATLAB bicubic, strip by strip: (s * h, s * w, 3) -> (h, w, 3)."""
    rows = hr.shape[0] // scale
    strips = []
    for top in range(0, rows, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, rows)
        above, below = max(0, top - MARGIN), min(rows, bottom + MARGIN)
        strip = imresize(hr[above * scale : below * scale], 1 / scale, dtype=np.float32)
        strips.append(strip[top - above : bottom - above])
    return np.concatenate(strips)


def read_pair(photo: Photo, scale: int, patch: int) -> Pair:
    """Read one photo and its low-resolution image.

    Raises:
        ValueError: The picture is smaller than a crop, or the two sizes do not fit.
        OSError: A file cannot be read.
    """
    image = read_image(photo.path, halve=photo.halve)
    if min(image.size) < patch * scale:
        raise ValueError(f"{image.width}x{image.height} pixels, smaller than a crop of {patch * scale}")
    hr = modcrop(np.asarray(image), scale)
    if photo.lr is None:
        return Pair(photo.name, hr, shrink(hr, scale))
    lr = np.asarray(read_image(photo.lr))
    if lr.shape[0] != hr.shape[0] // scale or lr.shape[1] != hr.shape[1] // scale:
        raise ValueError(f"its low-resolution image is {lr.shape[1]}x{lr.shape[0]}, not 1/{scale} of it")
    return Pair(photo.name, hr, lr)


def check_memory(photos: list[Photo]) -> None:
    """Refuse photos that will not fit into memory, from their headers alone, and from no more of them than it takes.

    Raises:
        ValueError: They take more than what is free.
    """
    import psutil

    pixels, free = 0, psutil.virtual_memory().available
    Image.MAX_IMAGE_PIXELS = None
    for number, photo in enumerate(photos, start=1):
        try:
            with Image.open(photo.path) as file:
                own = file.width * file.height
                pixels += own // (4 if photo.halve else 1) if own <= MOST_PIXELS else 0  # refused when it is read
        except (OSError, SyntaxError):  # named when it is read
            continue
        wanted = round(3 * 1.25 * pixels)  # a quarter for low resolution, at most
        if wanted > free:
            raise ValueError(
                f"data: {number} of {len(photos)} images take {wanted / 1e9:.1f} GB of memory per process, "
                f"{free / 1e9:.1f} are free; give fewer, or pack them into parquet or WebDataset shards, which are "
                "streamed"
            )


def read_pairs(photos: list[Photo], scale: int, patch: int, *, verbose: bool = True) -> list[Pair]:
    """Read every photo that can be read, in their order; the others are named on stderr and counted.

    Args:
        photos: What to read.
        scale: s.
        patch: Side of a crop in low-resolution pixels; smaller pictures are skipped.
        verbose: Say on stderr what was skipped.

    Raises:
        ValueError: Nothing could be read.
    """

    def attempt(photo: Photo) -> Pair | str:
        try:
            return read_pair(photo, scale, patch)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow reports some broken PNG files by SyntaxError
            return f"skipped {photo.path}: {error}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, photos))
    pairs = [result for result in results if isinstance(result, Pair)]
    skipped = [result for result in results if isinstance(result, str)]
    if verbose and skipped:
        print("\n".join([*skipped, f"{len(skipped)} of {len(photos)} images skipped"]), file=sys.stderr)
    if not pairs:
        raise ValueError(f"data: none of {len(photos)} images can be used; the first: {skipped[0]}")
    return pairs
