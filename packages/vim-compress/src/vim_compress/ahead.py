"""Training pictures made ahead, for many runs that see the same ones.

Picture number i of a run is a function of its seed and augmentation alone, so that all rows of a study with one seed
train on the same pictures. They are made once and read from a file by all; the processor then has nothing to do.

FOLDER/KEY/ holds images.npy (N, C, H, W) uint8 and targets.npy (N, K) float32 of the numbers 0 to N - 1. KEY follows
from everything that decides a picture, so a run never finds pictures of another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import ModelConfig
from .recipes import TrainConfig

DECIDE = (
    *("data", "crop", "crop_scale", "flip", "randaug", "erase", "mixup", "cutmix", "mix", "smoothing", "repeats"),
    *("seed", "global_batch"),
)
DECIDE_MODEL = ("image", "channels", "classes", "mean", "std", "crop_pct")


@dataclass(frozen=True)
class Ahead:
    """Pictures in files, mapped into memory."""

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor] | None:
        """Return the pictures `numbers` as a batch; None if one of them was not made."""
        if max(numbers) >= len(self.images):
            return None
        chosen = slice(numbers[0], numbers[-1] + 1) if _follow(numbers) else list(numbers)
        images, targets = np.array(self.images[chosen]), np.array(self.targets[chosen])
        return {"image": torch.from_numpy(images), "target": torch.from_numpy(targets)}


def _follow(numbers: Sequence[int]) -> bool:
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def place_of(cfg: TrainConfig, model: ModelConfig) -> Path | None:
    """Return the folder of a run's pictures, whether it exists or not; None if the run asks for none."""
    if cfg.ahead is None:
        return None
    decides = {name: getattr(cfg, name) for name in DECIDE} | {name: getattr(model, name) for name in DECIDE_MODEL}
    return Path(cfg.ahead) / hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def find_ahead(cfg: TrainConfig, model: ModelConfig) -> Ahead | None:
    """Return the pictures that were made ahead for a run; None if there are none.

    Raises:
        ValueError: The files are damaged.
    """
    folder = place_of(cfg, model)
    if folder is None or not folder.is_dir():
        return None
    try:
        return Ahead(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "targets")))
    except (OSError, ValueError) as error:
        raise ValueError(f"ahead: {folder} cannot be read: {error}; remove it, it is made anew") from error


def make_ahead(cfg: TrainConfig, *, workers: int) -> Path:
    """Make all pictures of a run, unless they are there, and return their folder; whole or not at all.

    Args:
        cfg: The run, of one process; its `ahead` is the folder of such folders.
        workers: Processes that make them.

    Raises:
        ValueError: The data are missing, or come as a stream.
        OSError: The disk is full.
    """
    from .data import Numbered, loader, open_source

    source, _, model = open_source(replace(cfg, ahead=None, validation="none"), rank=0, verbose=False)
    folder = place_of(cfg, model)
    if folder is None or not isinstance(source, Numbered):
        raise ValueError("ahead: only pictures that are numbered can be made ahead, got a stream; leave ahead at None")
    if folder.is_dir():
        return folder
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    count = cfg.steps * cfg.global_batch
    shape = (count, model.channels, *model.image)
    images = np.lib.format.open_memmap(half / "images.npy", "w+", np.uint8, shape)
    targets = np.lib.format.open_memmap(half / "targets.npy", "w+", np.float32, (count, model.classes))
    first = 0
    for batch in loader(replace(cfg, ahead=None, workers=workers), source, 0, 0, pin=False):
        last = first + len(batch["image"])
        images[first:last], targets[first:last] = batch["image"].numpy(), batch["target"].numpy()
        first = last
    images.flush()
    targets.flush()
    half.rename(folder)
    return folder
