"""What both trainers have in common: the fields that decide how a run goes, whatever it trains. No torch here.

A step is an optimizer step; batch sizes count pictures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .checks import check, check_choice, check_whole, refuse

Precision = Literal["no", "bf16", "fp16"]

# A resumed run may change these: they decide when it stops, what it writes and how fast it is, not what it computes.
FREE_ON_RESUME = frozenset(
    {"stop_at", "max_minutes", "log_every", "save_every", "sample_every", "keep", "workers", "token_cache", "graph"}
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run goes.

    Attributes:
        data: Packed folder (`muse-mamba encode`), folder of pictures (with metadata.jsonl or .csv for captions),
            folder of parquet or WebDataset shards, or name of a `datasets` data set (owner/name); None takes
            openmoji from its package, and Noto emoji and stamps where they are installed.
        validation: "auto" looks at the data's validation pictures, "none" at nothing.
        repeats: Visits of a picture in an epoch, each augmented in its own way.
        steps: Length of the run and of the cosine, in steps.
        stop_at: End this session, saving, after this step; None runs to the end.
        max_minutes: End this session, saving, after this many minutes; None sets no limit.
        global_batch: Pictures per step, over all processes.
        micro_batch: Pictures per process and forward pass.
        processes: How many processes the run is meant for; another number is an error.
        lr: Peak learning rate.
        min_lr: Learning rate at the last step.
        warmup: Steps of the linear rise to `lr`.
        betas: Decay of AdamW's first and second moment.
        weight_decay: Of AdamW, for matrices only: not for norms, biases, embeddings and the scan's A and D.
        clip: Largest L2 norm of the gradient; 0 only measures it.
        ema: Decay of the averaged weights, which validation and `model/` use; it rises as (1 + step) / (10 + step)
            to this value. 0 keeps the newest weights.
        precision: "no" is float32; "bf16" and "fp16" are autocast.
        checkpoint_activations: Recompute activations in the backward pass to save memory.
        compile: Run the network through torch.compile.
        seed: Of the initial weights and of every choice in the data.
        workers: Loader processes; 0 loads in the main one. What is learned from does not depend on it.
        log_every: Steps between rows of metrics.jsonl; the host waits for the device only then.
        sample_every: Steps between sample pictures.
        save_every: Steps between checkpoints, each preceded by a validation.
        keep: How many of the newest checkpoints stay.
    """

    data: str | None = None
    validation: Literal["auto", "none"] = "auto"
    repeats: int = 1
    steps: int = 100_000
    stop_at: int | None = None
    max_minutes: float | None = None
    global_batch: int = 64
    micro_batch: int = 64
    processes: int = 1
    lr: float = 1e-4
    min_lr: float = 1e-6
    warmup: int = 500
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: Precision = "no"
    checkpoint_activations: bool = False
    compile: bool = False
    seed: int = 10
    workers: int = 4
    log_every: int = 100
    sample_every: int = 5_000
    save_every: int = 5_000
    keep: int = 3

    def __post_init__(self) -> None:
        """Refuse contradictions. Lists become tuples, so that a configuration read from a file is equal."""
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))
        check_whole(self, "steps", "global_batch", "micro_batch", "processes", "repeats")
        check_whole(self, "log_every", "sample_every", "save_every", "keep")
        check_whole(self, "workers", "seed", "warmup", least=0)
        for name in ("weight_decay", "clip", "min_lr"):
            check(self, name, "at least 0", getattr(self, name) >= 0)
        good = 0 < self.lr >= self.min_lr and math.isfinite(self.lr)
        check(self, "lr", f"above 0 and not below min_lr={self.min_lr}", good)
        check(self, "warmup", f"in [0, steps={self.steps})", self.warmup < self.steps)
        check(self, "ema", "in [0, 1)", 0 <= self.ema < 1)
        check(self, "betas", "two numbers in [0, 1)", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas))
        check(self, "max_minutes", "above 0, or None", self.max_minutes is None or self.max_minutes > 0)
        check(self, "stop_at", "at least 1, or None", self.stop_at is None or self.stop_at >= 1)
        check_choice(self, "precision", get_args(Precision))
        check_choice(self, "validation", ("auto", "none"))
        check_division(type(self).__name__, self.global_batch, self.micro_batch, self.processes)

    @property
    def micro_steps(self) -> int:
        """Forward passes per process and step."""
        return self.global_batch // (self.micro_batch * self.processes)

    def samples_of(self, step: int) -> range:
        """Return the numbers of the pictures of a step, over all processes."""
        return range(step * self.global_batch, (step + 1) * self.global_batch)

    def keys_of(self, step: int, rank: int) -> list[list[Any]]:
        """Return the keys of a process's micro-batches of a step: here the samples' numbers."""
        first, size = self.samples_of(step).start, self.micro_batch
        starts = [first + (micro * self.processes + rank) * size for micro in range(self.micro_steps)]
        return [list(range(start, start + size)) for start in starts]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        values = {**asdict(self), "betas": list(self.betas)}
        for name in ("model", "network"):
            if hasattr(self, name):
                values[name] = getattr(self, name).to_dict()
        return values


def check_division(owner: str, global_batch: int, micro_batch: int, processes: int) -> None:
    """Refuse a batch that does not divide into forward passes."""
    per_pass = micro_batch * processes
    if global_batch % per_pass:
        wanted = f"a multiple of micro_batch * processes = {micro_batch} * {processes} = {per_pass}"
        refuse(owner, "global_batch", wanted, global_batch, "change one of the three")


def lr_at(step: int, cfg: RunConfig) -> float:
    """Return the learning rate of a step (counted from 0): a linear rise, then half a cosine down to `min_lr`."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def ema_at(step: int, cfg: RunConfig) -> float:
    """Return the decay of the averaged weights at a step: short at first, so that the first weights are forgotten."""
    return min(cfg.ema, (1 + step) / (10 + step))
