"""From noise to data: Euler, Heun, UniPC, and two with fresh noise on the way, SDE and DDIM, all with right marginals.

A velocity is a function (z, t) -> dz/dt of a tensor and a float. N steps; an evaluation is one call of the velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor

from .process import data_of, noise_of

Velocity = Callable[[Tensor, float], Tensor]
Sampler = Literal["heun", "euler", "unipc", "sde", "ddim"]
Grid = Literal["uniform", "refined"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a sample is drawn.

    Attributes:
        sampler: "heun" (order 2, two evaluations a step), "euler", "unipc" (of diffusers, one evaluation a step),
            "sde" and "ddim" with fresh noise on the way.
        steps: N.
        grid: Times at even distances, or closer together towards the data, for nearly certain fields.
        temperature: Of the SDE; 0 is Euler.
        eta: Of DDIM; 0 is Euler.
    """

    sampler: Sampler = "heun"
    steps: int = 10
    grid: Grid = "uniform"
    temperature: float = 0.5
    eta: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name, kind in (("sampler", Sampler), ("grid", Grid)):
            if getattr(self, name) not in get_args(kind):
                _refuse(name, f"one of {', '.join(get_args(kind))}", getattr(self, name))
        if self.steps < 1:
            _refuse("steps", "at least 1", self.steps)
        if self.temperature < 0:
            _refuse("temperature", "at least 0", self.temperature)
        if not 0 <= self.eta <= 1:
            _refuse("eta", "in [0, 1]", self.eta)

    @property
    def evaluations(self) -> int:
        """Calls of the velocity per sample."""
        return 2 * self.steps if self.sampler == "heun" else self.steps


def _refuse(name: str, wanted: str, found: object) -> None:
    raise ValueError(f"SamplerConfig: {name} must be {wanted}, got {found}; change --{name}")


def times(cfg: SamplerConfig) -> list[float]:
    """Return the N + 1 times from 0 to 1."""
    even = [k / cfg.steps for k in range(cfg.steps + 1)]
    return even if cfg.grid == "uniform" else [1 - (1 - k) ** 2 for k in even]


def integrate(
    velocity: Velocity,
    noise: Tensor,
    cfg: SamplerConfig,
    *,
    fresh: Callable[[], Tensor] | None = None,
    enforce: Callable[[Tensor, float], Tensor] | None = None,
    seen: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """Follow the flow from t = 0 to t = 1.

    Args:
        velocity: dz/dt.
        noise: z at t = 0.
        cfg: How.
        fresh: Draws noise of the same distribution, for sde and ddim.
        enforce: Applied to z after every step with the new time: puts observed values where they belong.
        seen: Told time and z after every step.

    Returns:
        z at t = 1.

    Raises:
        ValueError: unipc without diffusers, or sde or ddim without `fresh`.
    """
    if cfg.sampler in ("sde", "ddim") and fresh is None:
        _refuse("sampler", "heun, euler or unipc without fresh noise", cfg.sampler)
    keep = enforce or (lambda z, _: z)
    if cfg.sampler == "unipc":
        from .unipc import unipc

        return unipc(velocity, keep(noise, 0.0), cfg, keep, seen)
    z = keep(noise, 0.0)
    for t, u in pairwise(times(cfg)):
        z = keep(_step(velocity, z, t, u, cfg, fresh), u)
        if seen is not None:
            seen(u, z)
    return z


def _step(
    velocity: Velocity, z: Tensor, t: float, u: float, cfg: SamplerConfig, fresh: Callable[[], Tensor] | None
) -> Tensor:
    v, dt = velocity(z, t), u - t
    if cfg.sampler == "heun":
        ahead = velocity(z + dt * v, u)
        return z + dt / 2 * (v + ahead)
    if cfg.sampler == "sde" and cfg.temperature > 0:
        assert fresh is not None
        drift = v - cfg.temperature * noise_of(z, v, t)
        return z + dt * drift + math.sqrt(2 * cfg.temperature * (1 - t) * dt) * fresh()
    if cfg.sampler == "ddim" and cfg.eta > 0 and t > 0:
        assert fresh is not None
        new = cfg.eta * (1 - u) / (1 - t) * math.sqrt(max(0.0, (1 - t) ** 2 - (t / u) ** 2 * (1 - u) ** 2))
        old = math.sqrt(max(0.0, (1 - u) ** 2 - new**2))
        return u * data_of(z, v, t) + old * noise_of(z, v, t) + new * fresh()
    return z + dt * v
