"""A picture as a network wants it: size, channels and, on the device, range.

Arrays are uint8 (C, H, W), C being 1 or 3.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import ModelConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def as_mode(image: Image.Image, channels: int) -> Image.Image:
    """Return a picture with one channel (grey) or three.

    Raises:
        ValueError: Another number of channels is wanted.
    """
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ValueError(f"data: pictures have 1 or 3 channels, the model wants {channels}; change --model.channels")
    return image if image.mode == modes[channels] else image.convert(modes[channels])


def center(image: Image.Image, config: ModelConfig) -> Image.Image:
    """Resize a picture so that it covers the network's size over `crop_pct`, and cut out the middle."""
    height, width = config.image
    high, wide = math.floor(height / config.crop_pct), math.floor(width / config.crop_pct)
    factor = max(high / image.height, wide / image.width)
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Put channels first: (C, H, W)."""
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def prepare(image: Image.Image, config: ModelConfig) -> NDArray[np.uint8]:
    """Make a picture ready for classification: (C, H, W)."""
    return to_array(center(as_mode(image, config.channels), config))


def to_float(pixels: Tensor, config: ModelConfig, device: torch.device) -> Tensor:
    """Copy uint8 pictures (B, C, H, W) to the device and normalise them there: float32."""
    mean, std = _constants(config.mean, config.std, device)
    return pixels.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=8)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation as (C, 1, 1), copied to the device once and not for every batch."""
    import torch

    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))  # pyright: ignore[reportReturnType]
