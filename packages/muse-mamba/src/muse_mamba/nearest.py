"""The training pictures nearest to drawn ones, so that memorising can be seen. n drawn, N training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from .data import square
from .features import picture_features
from .packed import Pictured


class Nearest(NamedTuple):
    """What is nearest: `pictures` (n, 2, H, W, 3) uint8, by features and by pixels, and how near, (n, 2).

    Features are compared by their cosine, pixels by PSNR in dB.
    """

    pictures: NDArray[np.uint8]
    nearness: NDArray[np.float64]


def nearest(made: NDArray[np.uint8], training: Sequence[Pictured], device: torch.device) -> Nearest:
    """Find the training picture nearest to every drawn one, in the features of EfficientNet-Lite0 and in pixels.

    Args:
        made: (n, H, W, 3).
        training: Pictures; they are brought to that size.
        device: Where the features are made.
    """
    side = made.shape[1]
    pool = np.stack([square(p.pixels, side) for p in training])
    a, b = (F.normalize(picture_features(x, device), dim=-1) for x in (made, pool))
    cosine = a @ b.t()
    x, y = (torch.from_numpy(p.reshape(len(p), -1)).float() for p in (made, pool))
    squared = torch.cdist(x, y).square() / x.shape[1]
    psnr = 10 * torch.log10(255**2 / squared.clamp_min(1e-6))
    pairs = [similarity.max(1) for similarity in (cosine, psnr)]
    pictures = np.stack([pool[places.indices.numpy()] for places in pairs], axis=1)
    return Nearest(pictures, np.stack([places.values.double().numpy() for places in pairs], axis=1))
