"""When the channels that pruning would keep have settled: the early-bird ticket.

Source: You et al. 2019, arXiv:1909.11957, section 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

QUEUE = 5  # masks
THRESHOLD = 0.1  # largest share of entries that may differ


def mask_distance(a: Tensor, b: Tensor) -> float:
    """Return the share of entries in which two masks differ, in [0, 1].

    Raises:
        ValueError: They have different sizes.
    """
    if a.shape != b.shape:
        raise ValueError(f"mask_distance: b must have the shape of a, {tuple(a.shape)}, got {tuple(b.shape)}")
    return (a.bool() != b.bool()).double().mean().item()


class EarlyBird:
    """Watches a sequence of masks; draws the ticket when five in a row agree.

    After a mask was added, the ticket is drawn if the queue holds five and the newest differs from each of the four
    older ones in at most a tenth of the entries.

    Attributes:
        masks: The newest, at most five, oldest first.
        fired: Number of masks that had been seen when the ticket was drawn; None before.
        seen: Masks so far.
    """

    def __init__(self) -> None:
        self.masks: deque[Tensor] = deque(maxlen=QUEUE)
        self.fired: int | None = None
        self.seen = 0

    def add(self, mask: Tensor) -> list[float]:
        """Add a mask and return its distances to the older ones, oldest first; `fired` tells about the ticket."""
        mask = mask.detach().bool().cpu()
        older = list(self.masks)[-(QUEUE - 1) :]
        distances = [mask_distance(old, mask) for old in older]
        self.masks.append(mask)
        self.seen += 1
        if self.fired is None and len(distances) == QUEUE - 1 and max(distances) <= THRESHOLD + 1e-12:
            self.fired = self.seen
        return distances

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be kept to go on after an interruption."""
        return {"masks": list(self.masks), "fired": self.fired, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.masks = deque((m.bool() for m in state["masks"]), maxlen=QUEUE)
        self.fired, self.seen = state["fired"], state["seen"]


def gate_mask(gates: Mapping[str, Tensor], pruned: float) -> Tensor:
    """Return which of all gates together are kept, (sum of sizes,), if a share of them, the nearest to 0, is pruned."""
    flat = torch.cat([gate.detach().abs().flatten().float() for gate in gates.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    kept[flat.topk(len(flat) - round(pruned * len(flat))).indices] = True
    return kept
