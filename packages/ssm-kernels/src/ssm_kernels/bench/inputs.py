"""Random inputs, made where they are used: the largest would take minutes on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Maker:
    """Draw tensors from one generator on the device, the same ones for the same seed and device.

    Args:
        device: Where the tensors are.
        dtype: Of the sequences; parameters are float32.
        seed: Of the generator.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Draw a sequence from a normal distribution of this deviation."""
        x = torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.device)
        return x if scale == 1 else x.mul_(scale)

    def weight(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Draw a float32 parameter from a normal distribution."""
        return torch.randn(shape, generator=self.generator, device=self.device) * scale + shift

    def rate(self, *shape: int) -> Tensor:
        """Draw A: negative and unrelated from state to state, as training leaves it, never -1, -2, -3."""
        return -(0.2 + 8 * torch.rand(shape, generator=self.generator, device=self.device))


def scan_tensors(make: Maker, batch: int, length: int, channels: int, state: int) -> dict[str, Tensor]:
    """Make every floating argument of `selective_scan` but the initial state."""
    return {
        "x": make.normal(batch, length, channels),
        "dt": make.normal(batch, length, channels, scale=0.5),
        "A": make.rate(channels, state),
        "B": make.normal(batch, length, state),
        "C": make.normal(batch, length, state),
        "D": make.weight(channels),
        "z": make.normal(batch, length, channels),
        "dt_bias": make.weight(channels, scale=0.5, shift=-2),
    }


def scan_2d_tensors(
    make: Maker, batch: int, height: int, width: int, channels: int, state: int, directions: int
) -> dict[str, Tensor]:
    """Make every floating argument of `selective_scan_2d`."""
    pixels = (batch, height, width)
    return {
        "x": make.normal(*pixels, channels),
        "dt": make.normal(*pixels, directions, channels, scale=0.5),
        "A": make.rate(directions, channels, state),
        "B": make.normal(*pixels, directions, state),
        "C": make.normal(*pixels, directions, state),
        "D": make.weight(directions, channels),
        "dt_bias": make.weight(directions, channels, scale=0.5, shift=-2),
    }
