"""What decides a training run: one frozen dataclass, and named runs as functions that return it.

Importing this module does not import torch. A step is an optimizer step; batch sizes count crops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .config import PRESETS, ModelConfig, preset

Precision = Literal["no", "bf16", "fp16"]
Loss = Literal["l1", "charbonnier"]

# A resumed run may change these: they decide when it stops, what it writes and how fast it is, not what it computes.
FREE_ON_RESUME = frozenset(
    {"stop_at", "max_minutes", "log_every", "save_every", "sample_every", "keep", "workers", "graph"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run.

    Attributes:
        model: The network; its `scale` is the run's.
        init: Start from a run's model/ folder or a .safetensors file, also of another scale; None draws weights.
        data: Folder of images, packed folder, "debian-photos", folder of parquet or WebDataset shards, or name of a
            `datasets` data set (owner/name); None takes the Earth mosaics that the data extra installs.
        data_lr: Folder of matching low-resolution images; None makes them by MATLAB bicubic.
        validation: "auto" takes the data's own validation photos, or the packaged photos where it has none; "none", or
            a folder of images.
        halve: Halve the size of folder images first, which hides the compression of JPEG photos.
        min_contrast: A part of a photo whose low-resolution pixels deviate less (grey levels, 0 to 255) is not used.
        patch: Side of a crop, in low-resolution pixels.
        steps: Length of the run and of the cosine, in steps.
        stop_at: End this session, saving, after this step; None runs to the end.
        max_minutes: End this session, saving, after this many minutes; None sets no limit.
        global_batch: Crops per step, over all processes.
        micro_batch: Crops per process and forward pass.
        processes: How many processes the run is meant for; another number is an error.
        loss: "l1", or its smooth relative "charbonnier", sqrt(d^2 + 1e-6).
        lr: Peak learning rate.
        min_lr: Learning rate at the last step.
        warmup: Steps of the linear rise to `lr`.
        betas: Decay of AdamW's first and second moment.
        weight_decay: Of AdamW; 0 makes it Adam.
        clip: Largest L2 norm of the gradient; 0 only measures it.
        ema: Decay of the averaged weights, which validation and `model/` use; it rises as (1 + step) / (10 + step)
            to this value. 0 keeps the newest weights.
        precision: "no" is float32; "bf16" and "fp16" are autocast.
        checkpoint_activations: Recompute activations in the backward pass to save memory.
        compile: Run the network through torch.compile.
        graph: Record forward and backward as CUDA graphs and replay them, without accumulation. Starts faster than
            `compile` and leaves the host next to nothing to do.
        seed: Of the initial weights and of every crop.
        workers: Loader processes; 0 loads in the main one. The crops do not depend on it. Of a stream: threads.
        log_every: Steps between rows of metrics.jsonl; the host waits for the device only then.
        sample_every: Steps between sample pictures.
        save_every: Steps between checkpoints, each preceded by a validation.
        keep: How many of the newest checkpoints stay.
    """

    model: ModelConfig
    init: str | None = None
    data: str | None = None
    data_lr: str | None = None
    validation: str = "auto"
    halve: bool = False
    min_contrast: float = 4.0
    patch: int = 64
    steps: int = 500_000
    stop_at: int | None = None
    max_minutes: float | None = None
    global_batch: int = 32
    micro_batch: int = 32
    processes: int = 1
    loss: Loss = "l1"
    lr: float = 2e-4
    min_lr: float = 1e-6
    warmup: int = 1_000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: Precision = "no"
    checkpoint_activations: bool = False
    compile: bool = False
    graph: bool = False
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
        for name in ("steps", "global_batch", "micro_batch", "processes", "patch"):
            _check(name, self, "at least 1", getattr(self, name) >= 1)
        for name in ("log_every", "sample_every", "save_every", "keep"):
            _check(name, self, "at least 1", getattr(self, name) >= 1)
        for name in ("workers", "seed", "weight_decay", "clip", "min_contrast", "min_lr"):
            _check(name, self, "at least 0", getattr(self, name) >= 0)
        _check("lr", self, f"above 0 and not below min_lr={self.min_lr}", 0 < self.lr >= self.min_lr)
        _check("warmup", self, f"in [0, steps={self.steps})", 0 <= self.warmup < self.steps)
        _check("ema", self, "in [0, 1)", 0 <= self.ema < 1)
        _check("betas", self, "two numbers in [0, 1)", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas))
        _check("max_minutes", self, "above 0, or None", self.max_minutes is None or self.max_minutes > 0)
        _check("stop_at", self, "at least 1, or None", self.stop_at is None or self.stop_at >= 1)
        for name, kind in (("precision", Precision), ("loss", Loss)):
            _check(name, self, f"one of {', '.join(get_args(kind))}", getattr(self, name) in get_args(kind))
        per_pass = self.micro_batch * self.processes
        if self.global_batch % per_pass:
            raise ValueError(
                f"TrainConfig: global_batch must be a multiple of micro_batch * processes = {self.micro_batch} * "
                f"{self.processes} = {per_pass}, got {self.global_batch}; change one of the three"
            )
        against = {
            "accumulation": self.micro_steps > 1,
            "compile": self.compile,
            "checkpoint_activations": self.checkpoint_activations,
        }
        found = [name for name, on in against.items() if on]
        if self.graph and found:
            raise ValueError(
                f"TrainConfig: graph must be off with {', '.join(against)}, got it with {' and '.join(found)}; "
                "leave out one of them"
            )

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.model.scale

    @property
    def micro_steps(self) -> int:
        """Forward passes per process and step."""
        return self.global_batch // (self.micro_batch * self.processes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        return {**asdict(self), "model": self.model.to_dict(), "betas": list(self.betas)}


def _check(name: str, cfg: TrainConfig, wanted: str, good: bool) -> None:
    if not good:
        raise ValueError(f"TrainConfig: {name} must be {wanted}, got {getattr(cfg, name)}; change --{name}")


def paper(name: str, scale: int) -> TrainConfig:
    """The published recipe for a network of `config.PRESETS`: batch 32, 500,000 steps, rate 2e-4, L1, float32.

    The published rate falls by steps at 250,000, 400,000, 450,000 and 475,000; here it falls along a cosine.
    """
    return TrainConfig(model=preset(name, scale))


def contrast_s(scale: int) -> TrainConfig:
    """Contrast-S as published: batch 16."""
    return TrainConfig(model=preset("contrast-s", scale), global_batch=16, micro_batch=16)


def ship(scale: int) -> TrainConfig:
    """The weights that ship: `contrast-no-pe-no-cab` in minutes on one GPU: a high rate, bfloat16."""
    return TrainConfig(
        model=preset("contrast-no-pe-no-cab", scale),
        data="packed",
        steps=15_000,
        lr=1e-3,
        warmup=300,
        clip=0.5,
        precision="bf16",
        workers=8,
        sample_every=2_500,
        save_every=2_500,
    )


def tiny(scale: int) -> TrainConfig:
    """A run for tests and first tries: the tiny network, small crops, done in seconds."""
    return TrainConfig(
        model=preset("tiny", scale),
        patch=16,
        steps=20,
        global_batch=4,
        micro_batch=4,
        lr=2e-3,
        min_lr=1e-4,
        warmup=2,
        ema=0.9,
        workers=0,
        log_every=5,
        sample_every=20,
        save_every=10,
    )


def _paper_run(name: str) -> Callable[[int], TrainConfig]:
    return lambda scale: paper(name, scale)


RECIPES: dict[str, Callable[[int], TrainConfig]] = {
    **{name: _paper_run(name) for name in PRESETS},
    "contrast-s": contrast_s,
    "ship": ship,
    "tiny": tiny,
}


def recipe(name: str, scale: int = 4) -> TrainConfig:
    """Return a named run.

    Raises:
        ValueError: No such name (the message lists them), or the network cannot have this scale.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: unknown name {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name](scale)
