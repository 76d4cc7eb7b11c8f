"""The probability path: noise, the straight line from noise to data, the loss, and what a velocity says of both.

z_t = (1 - t) e + t z_1, dz/dt = z_1 - e, at t = 0 noise e, at t = 1 data. B fields, N points, C channels, d axes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import ModelConfig

WAVES = 256  # K, of smooth noise
POINTS = 1 << 18  # whose waves are held at once


class Moments(NamedTuple):
    """Mean and standard deviation of every channel, (C,) float32."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def noise_numbers(rng: np.random.Generator, config: ModelConfig, points: int) -> dict[str, NDArray[np.float32]]:
    """Draw what `make_noise` needs for one field.

    Returns:
        "noise" (N, C) if the noise is white; else "frequencies" (K, d) in cycles per domain and "amplitudes"
        (2 K, C): a Gaussian random field with the covariance exp(-r^2 / (2 length^2)), as a sum of waves. On periodic
        axes the frequencies are whole numbers.
    """
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    if config.noise_length == 0:
        return {"noise": normal(points, config.channels)}
    frequencies = normal(WAVES, config.dims) / np.float32(2 * math.pi * config.noise_length)
    frequencies = np.where(config.wraps, frequencies.round(), frequencies).astype(np.float32)
    return {"frequencies": frequencies, "amplitudes": normal(2 * WAVES, config.channels) / np.float32(WAVES**0.5)}


def make_noise(numbers: dict[str, Tensor], coords: Tensor) -> Tensor:
    """Return the noise (B, N, C) at points (B, N, d).

    Smooth noise is a function of the place, so that a finer grid sees more of the same noise.
    """
    if "noise" in numbers:
        return numbers["noise"]
    parts = []
    for part in coords.split(max(1, POINTS // coords.shape[0]), 1):
        phase = 2 * math.pi * part @ numbers["frequencies"].mT
        parts.append(torch.cat([phase.sin(), phase.cos()], -1) @ numbers["amplitudes"])
    return torch.cat(parts, 1)


def at_time(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return z_t for data and noise (B, N, C) and t (B,)."""
    t = t[:, None, None]
    return (1 - t) * noise + t * data


def flow_loss(velocity: Tensor, data: Tensor, noise: Tensor, spread: Tensor) -> Tensor:
    """Mean squared error of the velocity, float32.

    Args:
        velocity: What the network says, (B, N, C).
        data: z at t = 1.
        noise: z at t = 0.
        spread: Unit of z at every point. Points weigh as their share of the field's mean unit, so that sensors, where
            there is nothing to learn, count little; where the unit is 1 this is the plain mean.
    """
    weight = spread / spread.mean(1, keepdim=True)
    return (weight * (velocity.float() - (data - noise).float()).square()).mean()


def data_of(z: Tensor, v: Tensor, t: float) -> Tensor:
    """Return the data that a velocity points to: E[z_1 | z_t]."""
    return z + (1 - t) * v


def noise_of(z: Tensor, v: Tensor, t: float) -> Tensor:
    """Return the noise that a velocity comes from: E[e | z_t], which is -(1 - t) times the score."""
    return z - t * v
