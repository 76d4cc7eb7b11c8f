"""What is looked at during training: PSNR on a few photos that are not trained on, and pictures of them.

A number for orientation, on the middle of each photo; `hybrid-sr evaluate` gives the numbers to publish.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .metrics import psnr_y, to_uint8
from .photos import Pair, read_pairs
from .recipes import TrainConfig
from .resize import imresize
from .samples import SAMPLES
from .sources import Photo, in_folder

MIDDLE = 480  # side of what is looked at, in high-resolution pixels; a multiple of 2, 3, 4 and 8
MOST = 8  # photos
DRAWN = 3  # photos per picture
VIEW = 192  # side of each part of the picture, in high-resolution pixels

Network = Callable[[torch.Tensor], torch.Tensor]


def validation_pairs(cfg: TrainConfig, photos: list[Photo]) -> list[Pair]:
    """Return the middle of at most eight validation photos; none if the run asks for none.

    Args:
        cfg: Says which: its `validation`.
        photos: All photos of the training data, whose validation split comes first in "auto".

    Raises:
        ValueError: `validation` names a folder without images.
    """
    if cfg.validation == "none":
        return []
    if cfg.validation == "auto":
        chosen = [photo for photo in photos if photo.split == "validation"] or packaged_photos()
    else:
        chosen = in_folder(Path(cfg.validation), None, cfg.scale, cfg.halve)
    if not chosen:
        return []
    return [middle(pair, cfg.scale) for pair in read_pairs(chosen[:MOST], cfg.scale, 1)]


def packaged_photos() -> list[Photo]:
    """List the photos of installed packages, which are for evaluation only; empty without the data extra."""
    photos = []
    for sample in SAMPLES:
        try:
            photos.append(Photo(name=sample.name, path=sample.path(), split="validation"))
        except ValueError:  # this package is not installed; another may be
            continue
    return photos


def middle(pair: Pair, scale: int, most: int = MIDDLE) -> Pair:
    """Cut the middle of a photo, `most` high-resolution pixels or less; low-resolution ones are those of the whole."""
    side = max(1, most // scale)
    height, width = pair.lr.shape[:2]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    lr = pair.lr[top : top + side, left : left + side]
    hr = pair.hr[scale * top : scale * (top + side), scale * left : scale * (left + side)]
    return Pair(pair.name, hr, lr)


def upscale(network: Network, lr: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """Run the network on one picture: (h, w, 3) uint8 -> (s * h, s * w, 3) uint8."""
    x = torch.from_numpy(np.ascontiguousarray(lr)).to(device).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return to_uint8(network(x)[0].permute(1, 2, 0).float().cpu().numpy())


def score(network: Network, pairs: list[Pair], scale: int, device: torch.device) -> float:
    """Return the mean PSNR on Y in dB, `scale` pixels cut from every side; NaN without photos."""
    if not pairs:
        return math.nan
    return float(np.mean([psnr_y(upscale(network, p.lr, device), p.hr, crop=scale) for p in pairs]))


def draw(network: Network, pairs: list[Pair], scale: int, device: torch.device, path: Path) -> None:
    """Save a picture, one row a photo: low resolution, bicubic, the network, the original."""
    rows = []
    for pair in (middle(pair, scale, VIEW) for pair in pairs[:DRAWN]):
        enlarged = pair.lr.repeat(scale, 0).repeat(scale, 1)
        parts = (enlarged, imresize(pair.lr, scale), upscale(network, pair.lr, device), pair.hr)
        rows.append(np.concatenate(parts, axis=1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.concatenate(rows)).save(path)
