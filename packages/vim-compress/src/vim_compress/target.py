"""Which units of a network stay so that a target is met: a share of every axis, found by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .axes import MULTIPLES, Axis
from .config import ModelConfig
from .cost import Target

Spread = Literal["uniform", "global"]
STEPS = 12  # of the bisection
STEPS_TIMED = 7
SLACK = 1.02  # what a measured time may exceed the limit by


@dataclass(frozen=True)
class Plan:
    """Which units stay.

    Attributes:
        kept: Numbers of the units, by axis.
        share: Of the units that was asked of the axes.
        cost: Of the network that is left.
        before: Cost of the network now.
    """

    kept: dict[str, list[int]]
    share: float
    cost: float
    before: float


def sizes_at(axes: list[Axis], scores: Mapping[str, Tensor], share: float, spread: Spread, multiple: int = 0) -> dict:
    """Return how many units of each axis stay.

    Args:
        axes: What is cut.
        scores: Importance by axis; only "global" looks at it.
        share: Of all units.
        spread: The same share of each axis, or the most important of all axes of a kind together.
        multiple: Sizes are rounded up to it; 0 takes what suits the kind (16 channels, 2 states, 1 head).
    """
    counts = {}
    for kind in dict.fromkeys(axis.kind for axis in axes):
        group = [axis for axis in axes if axis.kind == kind]
        if spread == "global" and share < 1:
            flat = torch.cat([scores[a.name] for a in group])
            limit = flat.sort(descending=True).values[min(len(flat) - 1, max(0, round(share * len(flat)) - 1))]
            raw = {a.name: int((scores[a.name] >= limit).sum()) for a in group}
        else:
            raw = {a.name: share * a.size for a in group}
        for axis in group:
            step = min(multiple or MULTIPLES[kind], axis.size)
            counts[axis.name] = min(axis.size, max(step, step * math.ceil(raw[axis.name] / step - 1e-9)))
    return counts


def best_units(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the most important units of each axis, in order."""
    return {name: sorted(scores[name].topk(n).indices.tolist()) for name, n in counts.items() if n < len(scores[name])}


def allowed(target: Target, before: float) -> float:
    """Return the largest cost that meets a target, given the present one; two percent more for a measured time."""
    return target.limit(before) * (SLACK if target.quantity == "latency" else 1.0)


def find_plan(
    config: ModelConfig,
    axes: list[Axis],
    scores: Mapping[str, Tensor],
    target: Target,
    measure: Callable[[ModelConfig], float],
    *,
    spread: Spread = "uniform",
    multiple: int = 0,
) -> Plan:
    """Find the largest network that meets a target.

    Args:
        config: The network now.
        axes: What may be cut.
        scores: Importance by axis.
        target: What is wanted.
        measure: Cost of a configuration.
        spread: How the cut is spread over axes.
        multiple: As for `sizes_at`.

    Raises:
        ValueError: Even the smallest network costs more; the message says what the nearest is.
    """
    before = measure(config)
    limit = allowed(target, before)
    known: dict[tuple[int, ...], float] = {}

    def cost(share: float) -> float:
        counts = sizes_at(axes, scores, share, spread, multiple)
        key = tuple(counts.values())
        if key not in known:
            known[key] = measure(replace(config, widths={**config.widths, **counts}))
        return known[key]

    def plan(share: float) -> Plan:
        counts = sizes_at(axes, scores, share, spread, multiple)
        return Plan(best_units(scores, counts), share, cost(share), before)

    if before <= limit:
        return Plan({}, 1.0, before, before)
    if cost(0.0) > limit:
        nearest, wanted = target.text(cost(0.0)), target.text(limit)
        share = f"{cost(0.0) / before:.2f}x"
        raise ValueError(
            f"--target: {wanted} cannot be reached by cutting {', '.join(sorted({a.kind for a in axes}))}; the nearest "
            f"is {nearest} ({target.quantity}={share}); ask for that or add --axes"
        )
    low, high = 0.0, 1.0
    for _ in range(STEPS_TIMED if target.quantity == "latency" else STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return plan(low)
