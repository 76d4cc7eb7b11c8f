"""What a network costs in one number: parameters, multiply-adds or measured milliseconds; and targets for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from .config import ModelConfig

Quantity = Literal["parameters", "macs", "latency"]
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "ms": 1.0, "s": 1e3}
FORM = re.compile(r"(?P<quantity>\w+)=(?P<value>[0-9.]+(?:e[+-]?[0-9]+)?)(?P<unit>x|k|M|G|ms|s)?")


@dataclass(frozen=True)
class Target:
    """What is wanted: at most `value` of a quantity (latency in milliseconds), or that share of what there is now."""

    quantity: Quantity
    value: float
    relative: bool

    def limit(self, now: float) -> float:
        """Return the largest cost that is allowed, given the present one."""
        return self.value * now if self.relative else self.value

    def text(self, cost: float) -> str:
        """Return a cost in the quantity's unit."""
        if self.quantity == "latency":
            return f"{cost:.3g} ms"
        return f"{cost / 1e6:.3g} M {self.quantity}" if cost >= 1e4 else f"{cost:,g} {self.quantity}"


def parse_target(text: str) -> Target:
    """Read a target such as latency=0.5x, latency=12ms, parameters=3.5M, macs=0.9G.

    Raises:
        ValueError: It is none of these.
    """
    match = FORM.fullmatch(text.strip())
    if match is None or match["quantity"] not in get_args(Quantity):
        known = ", ".join(get_args(Quantity))
        raise ValueError(f"--target: must be one of {known} with a value, as latency=0.5x or macs=0.9G, got {text}")
    quantity, unit = match["quantity"], match["unit"] or ""
    timed = unit in ("ms", "s")
    if unit != "x" and timed != (quantity == "latency"):
        wanted = "in ms or s, or with x" if quantity == "latency" else "a count, with k, M or G, or with x"
        raise ValueError(f"--target: {quantity} must be {wanted}, got {text}")
    value = float(match["value"]) * (1.0 if unit == "x" else UNITS[unit])
    if not value > 0 or (unit == "x" and value > 1):
        raise ValueError(f"--target: must be above 0 and, with x, at most 1, got {text}; 0.5x halves")
    return Target(quantity, value, unit == "x")  # pyright: ignore[reportArgumentType]


def meter(target: Target, *, batch: int, device: str, precision: str, repeats: int) -> Callable[[ModelConfig], float]:
    """Return a function that measures the target's quantity of a configuration.

    Args:
        target: What is asked for.
        batch: Pictures at a time, for latency.
        device: Where latency is measured; on CUDA a recorded graph is replayed, so that the host's time, which no cut
            changes, does not count.
        precision: In which it is measured.
        repeats: Timed runs, of which the median counts.
    """

    def parameters(config: ModelConfig) -> float:
        import torch

        from .info import count
        from .models import make_network

        with torch.device("meta"):
            return float(count(make_network(config)))

    def macs(config: ModelConfig) -> float:
        from .info import model_info

        return float(model_info(config)["total_macs"])

    def latency(config: ModelConfig) -> float:
        from .benchmark import time_network
        from .models import make_network

        return time_network(
            make_network(config), batch=batch, device=device, precision=precision, repeats=repeats, graph=True
        ).milliseconds

    return {"parameters": parameters, "macs": macs, "latency": latency}[target.quantity]
