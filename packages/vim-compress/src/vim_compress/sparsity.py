"""What is pruned while training: one frozen dataclass, and the target sparsity as a function of the step.

Importing this module does not import torch. Sparsity is the share of zeros among the weights that may be pruned.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Score = Literal["none", "magnitude", "random", "gradient", "rms_gradient", "taylor"]
Schedule = Literal["const", "linear", "cosine", "cubic"]
Regrow = Literal["none", "grad", "magnitude"]
Scope = Literal["layer", "global", "erk"]


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Unstructured pruning of weight matrices and convolutions, and gates towards zero.

    Attributes:
        score: What decides which weights go: "magnitude" |w|, "gradient" mean |g|, "rms_gradient" sqrt(mean g^2),
            "taylor" mean |w g|, "random", or "none" for no pruning. Gradients are gathered since the last update.
        schedule: How the sparsity goes from `first` to `final` between the steps `start` and `end`.
        first: Sparsity before `start`.
        final: Sparsity from `end` on.
        start: Step.
        end: Step.
        update_every: Steps between new masks.
        regrow: What comes back at an update beside what goes: nothing, what has the largest gradient, or what had the
            largest magnitude before it was pruned.
        regrow_fraction: Share of the kept weights that is exchanged at first; it falls along a cosine to 0 at `end`.
        scope: Ranks are within each layer, over all layers but the classifier, or within each with layer-wise rates by
            their shapes (Erdos-Renyi kernel).
        head_factor: Sparsity of the classifier over that of the rest, for scope "layer".
        mask: File of masks that hold from the first step; they never grow back.
        gate_l1: Weight of the sum of |gate| in the loss, which drives channel gates to zero; needs model.gates.
        ticket: Share of gates that an early-bird ticket prunes; 0 does not look for one.
        ticket_every: Steps between two looks, usually an epoch.
        ticket_stop: End the run when the ticket is drawn.
    """

    score: Score = "none"
    schedule: Schedule = "cosine"
    first: float = 0.0
    final: float = 0.6
    start: int = 0
    end: int = 1
    update_every: int = 100
    regrow: Regrow = "none"
    regrow_fraction: float = 0.3
    scope: Scope = "layer"
    head_factor: float = 0.5
    mask: str | None = None
    gate_l1: float = 0.0
    ticket: float = 0.0
    ticket_every: int = 100
    ticket_stop: bool = True

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        for name, kind in (("score", Score), ("schedule", Schedule), ("regrow", Regrow), ("scope", Scope)):
            if getattr(self, name) not in get_args(kind):
                _refuse(name, f"one of {', '.join(get_args(kind))}", getattr(self, name))
        for name in ("first", "final", "regrow_fraction", "ticket"):
            if not 0 <= getattr(self, name) < 1:
                _refuse(name, "in [0, 1)", getattr(self, name))
        if self.first > self.final:
            _refuse("first", f"at most final={self.final}", self.first)
        if not 0 <= self.start < self.end:
            _refuse("start", f"at least 0 and below end={self.end}", self.start)
        for name in ("update_every", "ticket_every"):
            if getattr(self, name) < 1:
                _refuse(name, "at least 1", getattr(self, name))
        if not 0 <= self.head_factor <= 1:
            _refuse("head_factor", "in [0, 1]", self.head_factor)
        if self.gate_l1 < 0:
            _refuse("gate_l1", "at least 0", self.gate_l1)
        if self.regrow != "none" and self.score == "none":
            _refuse("regrow", "'none' without a score", self.regrow)

    @property
    def prunes(self) -> bool:
        """Whether any weight is masked."""
        return self.score != "none" or self.mask is not None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, as config.json holds them."""
        return asdict(self)


def _refuse(name: str, wanted: str, found: object) -> None:
    raise ValueError(f"SparsityConfig: {name} must be {wanted}, got {found}; change --sparsity.{name}")


def sparsity_at(step: float, cfg: SparsityConfig) -> float:
    """Return the target sparsity of a step (or an epoch, if start and end count epochs).

    With x the share of the way from `start` to `end` and s the sparsities: linear s = first + (final - first) x, cosine
    first + (final - first) (1 - cos(pi x)) / 2, cubic final + (first - final) (1 - x)^3 (Zhu and Gupta 2017,
    arXiv:1710.01878), const `final` from `start` on.
    """
    x = min(1.0, max(0.0, (step - cfg.start) / (cfg.end - cfg.start)))
    rise = cfg.final - cfg.first
    if cfg.schedule == "const":
        return cfg.final if step >= cfg.start else cfg.first
    if cfg.schedule == "linear":
        return cfg.first + rise * x
    if cfg.schedule == "cosine":
        return cfg.first + rise * (1 - math.cos(math.pi * x)) / 2
    return cfg.final - rise * (1 - x) ** 3


def regrow_at(step: int, cfg: SparsityConfig) -> float:
    """Return the share of kept weights that an update exchanges: a cosine from `regrow_fraction` to 0 at `end`.

    Source: Evci et al. 2019, arXiv:1911.11134, section 3.
    """
    if cfg.regrow == "none" or step >= cfg.end:
        return 0.0
    x = max(0.0, (step - cfg.start) / (cfg.end - cfg.start))
    return cfg.regrow_fraction / 2 * (1 + math.cos(math.pi * x))
