"""How a training picture is changed: crop, mirror, timm's policies, erasing; and how two are mixed.

Every choice follows from a generator or seed that is given, so a picture's number alone decides what becomes of it.
C channels, H, W the network's size, K classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import ModelConfig
from .preprocess import as_mode, center, to_array
from .recipes import TrainConfig

ERASED = 0.02, 1 / 3  # least and largest share of the area
ASPECT = 3 / 4, 4 / 3  # of a random part
ERASED_ASPECT = 0.3, 1 / 0.3
TRIES = 10


class Augment:
    """Make a training picture of an image.

    Args:
        cfg: The run.
        model: What the network wants.
    """

    def __init__(self, cfg: TrainConfig, model: ModelConfig) -> None:
        self.cfg, self.model = cfg, model
        self.policy = None
        if cfg.randaug:
            from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

            grey = tuple(round(255 * m) for m in model.mean)
            hints = {
                "img_mean": grey if model.channels == 3 else grey[0],
                "translate_const": int(0.45 * min(model.image)),
            }
            make = rand_augment_transform if cfg.randaug.startswith("rand") else auto_augment_transform
            self.policy = make(cfg.randaug, hints)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return (C, H, W), uint8."""
        cfg, (height, width) = self.cfg, self.model.image
        image = as_mode(image, self.model.channels)
        if cfg.crop == "resized":
            box = random_part(image.size, cfg.crop_scale, rng)
            image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        else:
            image = center(image, self.model)
        if rng.random() < cfg.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.policy is not None:
            seed = int(rng.integers(2**32))  # timm's policies draw from the global generators
            random.seed(seed)
            np.random.seed(seed)
            image = self.policy(image)
        pixels = to_array(image)
        if cfg.crop == "padded":
            pixels = shifted(pixels, rng)
        if rng.random() < cfg.erase:
            pixels = erased(pixels, self.model, rng)
        return pixels


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the global generators of Python and numpy back at the end. It takes as long as half a picture: once a batch.

    Every `Augment` with a policy belongs inside.
    """
    before, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(legacy)


def random_part(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Choose left, top, right and bottom of a part of a picture by its share of the area and its aspect."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
            return left, top, left + wide, top + high
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def shifted(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Move (C, H, W) by up to an eighth in both directions; the edge's pixels are repeated."""
    for axis in (1, 2):
        size = pixels.shape[axis]
        most = size // 8
        from_where = np.arange(size) + (rng.integers(2 * most + 1) - most)
        pixels = pixels.take(np.minimum(np.maximum(from_where, 0), size - 1), axis)  # five times as fast as np.pad
    return pixels


def erased(pixels: NDArray[np.uint8], model: ModelConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Fill a random rectangle of (C, H, W) with noise of the data's mean and deviation (Zhong et al. 2017)."""
    channels, height, width = pixels.shape
    for _ in range(TRIES):
        area = height * width * rng.uniform(ERASED[0], ERASED[1])
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < high < height and 0 < wide < width:
            top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            noise = rng.standard_normal((channels, high, wide), np.float32)
            mean, std = (np.array(v, np.float32)[:, None, None] for v in (model.mean, model.std))
            pixels = pixels.copy()
            pixels[:, top : top + high, left : left + wide] = np.clip(255 * (noise * std + mean), 0, 255)
            return pixels
    return pixels


def soft_targets(labels: NDArray[np.int64], classes: int, smoothing: float) -> NDArray[np.float32]:
    """Return (B, K): 1 - smoothing for the label, and smoothing shared by all."""
    target = np.full((len(labels), classes), smoothing / classes, np.float32)
    target[np.arange(len(labels)), labels] += 1 - smoothing
    return target


def mix_pair(
    pixels: NDArray[np.uint8], target: NDArray[np.float32], cfg: TrainConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mix two pictures (2, C, H, W) and their targets (2, K) with each other, by blending or by pasting.

    Source: Zhang et al. 2017, arXiv:1710.09412 (mixup); Yun et al. 2019, arXiv:1905.04899 (CutMix).
    """
    if not (cfg.mixup or cfg.cutmix) or rng.random() >= cfg.mix:
        return pixels, target
    paste = rng.random() < 0.5 if cfg.mixup and cfg.cutmix else bool(cfg.cutmix)
    strength = cfg.cutmix if paste else cfg.mixup
    kept = float(rng.beta(strength, strength))
    if paste:
        height, width = pixels.shape[2:]
        high, wide = round(height * math.sqrt(1 - kept)), round(width * math.sqrt(1 - kept))
        top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
        mixed = pixels.copy()
        mixed[:, :, top : top + high, left : left + wide] = pixels[::-1, :, top : top + high, left : left + wide]
        kept = 1 - high * wide / (height * width)
    else:
        blend = kept * pixels.astype(np.float32) + (1 - kept) * pixels[::-1]
        mixed = np.rint(blend).astype(np.uint8)
    return mixed, (kept * target + (1 - kept) * target[::-1]).astype(np.float32)
