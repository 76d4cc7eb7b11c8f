"""What training minimises. B batch, H height, W width."""

import torch
from torch import Tensor

from .recipes import Loss

CHARBONNIER_EPSILON = 1e-3  # of the value range; differences well below it count squared


def pixel_loss(kind: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the mean distance of two batches of images, a float32 number.

    Args:
        kind: "l1" is |d|, "charbonnier" is sqrt(d^2 + 1e-6), smooth at zero.
        output: (B, 3, H, W), RGB in about [0, 1], any floating dtype.
        target: Same shape.
    """
    difference = output.float() - target.float()
    if kind == "l1":
        return difference.abs().mean()
    return torch.sqrt(difference.square() + CHARBONNIER_EPSILON**2).mean()
