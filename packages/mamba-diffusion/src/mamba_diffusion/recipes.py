"""What decides a training run: one frozen dataclass, and named runs as functions that return it.

Importing this module does not import torch. A step is an optimizer step; batch sizes count fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from .config import PRESETS, ModelConfig, preset

Precision = Literal["no", "bf16", "fp16"]
Subject = Literal["rgb", "temperature", "sst", "air", "topography"]

# A resumed run may change these: they decide when it stops, what it writes and how fast it is, not what it computes.
FREE_ON_RESUME = frozenset(
    {"stop_at", "max_minutes", "log_every", "save_every", "sample_every", "keep", "workers", "graph"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run.

    Attributes:
        model: The network.
        init: Start from a run's model/ folder or a .safetensors file, as far as names and shapes agree; None draws
            weights.
        data: Packed folder, "debian-photos", or a file or folder of images, .npz, NetCDF or parquet with images; None
            takes what the data extra installs.
        subject: Which fields of a packed folder, or of what the data extra installs.
        validation: "auto" takes the data's own validation fields; "none" leaves validation out.
        sides: Points of a field along each axis; every step takes one of them.
        levels: How often images are halved; every size is trained on.
        sensors: Least and most sensors, as a share of the points of the first side; every step draws one share.
        queries: Queries a field; every step takes one of them.
        min_valid: Least share of a field's points that hold a number (land is none).
        min_contrast: Fields that deviate less, as a share of the whole data's standard deviation, are not used.
        steps: Length of the run and of the cosine, in steps.
        stop_at: End this session, saving, after this step; None runs to the end.
        max_minutes: End this session, saving, after this many minutes; None sets no limit.
        global_batch: Fields per step, over all processes.
        micro_batch: Fields per process and forward pass.
        processes: How many processes the run is meant for; another number is an error.
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
        graph: Record whole steps as CUDA graphs, one for every number of sensors, queries and anchors, and replay
            them, without accumulation: where the host cannot start kernels as fast as the GPU runs them, several
            times as fast.
        seed: Of the initial weights and of every field, point, time and noise.
        workers: Loader processes; 0 loads in the main one. What is trained on does not depend on it.
        log_every: Steps between rows of metrics.jsonl; the host waits for the device only then.
        sample_every: Steps between sample pictures.
        save_every: Steps between checkpoints, each preceded by a validation.
        keep: How many of the newest checkpoints stay.
    """

    model: ModelConfig
    init: str | None = None
    data: str | None = None
    subject: Subject = "rgb"
    validation: str = "auto"
    sides: tuple[int, ...] = (32,)
    levels: int = 3
    sensors: tuple[float, float] = (0.05, 0.5)
    queries: tuple[int, ...] = (512,)
    min_valid: float = 0.6
    min_contrast: float = 0.05
    steps: int = 20_000
    stop_at: int | None = None
    max_minutes: float | None = None
    global_batch: int = 64
    micro_batch: int = 64
    processes: int = 1
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup: int = 500
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
        for name in ("betas", "sides", "sensors", "queries"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "global_batch", "micro_batch", "processes", "levels"):
            _check(name, self, "at least 1", getattr(self, name) >= 1)
        for name in ("log_every", "sample_every", "save_every", "keep"):
            _check(name, self, "at least 1", getattr(self, name) >= 1)
        for name in ("workers", "seed", "weight_decay", "clip", "min_contrast", "min_lr"):
            _check(name, self, "at least 0", getattr(self, name) >= 0)
        self._check_points()
        _check("lr", self, f"above 0 and not below min_lr={self.min_lr}", 0 < self.lr >= self.min_lr)
        _check("warmup", self, f"in [0, steps={self.steps})", 0 <= self.warmup < self.steps)
        _check("ema", self, "in [0, 1)", 0 <= self.ema < 1)
        _check("betas", self, "two numbers in [0, 1)", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas))
        _check("max_minutes", self, "above 0, or None", self.max_minutes is None or self.max_minutes > 0)
        _check("stop_at", self, "at least 1, or None", self.stop_at is None or self.stop_at >= 1)
        for name, kind in (("precision", Precision), ("subject", Subject), ("validation", Literal["auto", "none"])):
            _check(name, self, f"one of {', '.join(get_args(kind))}", getattr(self, name) in get_args(kind))
        per_pass = self.micro_batch * self.processes
        if self.global_batch % per_pass:
            raise ValueError(
                f"TrainConfig: global_batch must be a multiple of micro_batch * processes = {self.micro_batch} * "
                f"{self.processes} = {per_pass}, got {self.global_batch}; change one of the three"
            )
        against = {
            "accumulation": self.micro_steps > 1,
            "fp16": self.precision == "fp16",
            "compile": self.compile,
            "checkpoint_activations": self.checkpoint_activations,
        }
        found = [name for name, on in against.items() if on]
        if self.graph and found:
            raise ValueError(
                f"TrainConfig: graph must be off with {', '.join(against)}, got it with {' and '.join(found)}; "
                "leave out one of them"
            )

    def _check_points(self) -> None:
        _check("sides", self, "whole numbers of at least 4", bool(self.sides) and min(self.sides) >= 4)
        _check("queries", self, "whole numbers of at least 1", bool(self.queries) and min(self.queries) >= 1)
        low_high = len(self.sensors) == 2 and 0 < self.sensors[0] <= self.sensors[1] <= 1
        _check("sensors", self, "two shares, 0 < least <= most <= 1", low_high)
        _check("min_valid", self, "in (0, 1]", 0 < self.min_valid <= 1)
        most = self.sensors[1]
        _check("min_valid", self, f"at least the largest share of sensors, {most}", self.min_valid >= most)
        fewest = self.sensors[0] * self.sides[0] ** self.model.dims
        _check("sensors", self, f"at least 4 points of a side of {self.sides[0]}", fewest >= 4)

    @property
    def micro_steps(self) -> int:
        """Forward passes per process and step."""
        return self.global_batch // (self.micro_batch * self.processes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**values, "model": self.model.to_dict()}


def _check(name: str, cfg: TrainConfig, wanted: str, good: bool) -> None:
    if not good:
        raise ValueError(f"TrainConfig: {name} must be {wanted}, got {getattr(cfg, name)}; change --{name}")


def plain(name: str) -> TrainConfig:
    """The common budget for a network of `config.PRESETS`: 20,000 steps of 64 fields."""
    return TrainConfig(model=preset(name), min_contrast=0.05 if preset(name).channels == 3 else 0.01)


def v2_seed() -> TrainConfig:
    """The seed's settings for V2, with the origin's blocks: 1000 epochs of 50,000 pictures in batches of 64, 1e-4.

    Saved and evaluated every 10 epochs, pictured every 50; 204 sensors and 204 queries of 32x32.
    """
    epoch = -(-50_000 // 64)
    return TrainConfig(
        model=preset("v2-legacy"),
        sensors=(0.2, 0.2),
        queries=(204,),
        steps=1_000 * epoch,
        warmup=0,
        lr=1e-4,
        min_lr=0.0,
        betas=(0.9, 0.999),
        ema=0.0,
        save_every=10 * epoch,
        sample_every=50 * epoch,
    )


def v1_seed() -> TrainConfig:
    """The seed's settings for V1."""
    return replace(v2_seed(), model=preset("v1-legacy"))


def ship_rgb() -> TrainConfig:
    """The RGB weights that ship: `ours` in minutes on one GPU."""
    return TrainConfig(
        model=preset("ours"),
        data="packed",
        sides=(32, 32, 48, 64),
        queries=(256, 512, 1024),
        steps=12_000,
        lr=2e-3,
        precision="bf16",
        workers=12,
        ema=0.9995,
        sample_every=4_000,
        save_every=4_000,
    )


def ship_temperature() -> TrainConfig:
    """The temperature weights that ship: `ours-scalar` on sea surface and air temperatures."""
    return replace(ship_rgb(), model=preset("ours-scalar"), subject="temperature", sides=(32, 36), min_contrast=0.02)


def tiny() -> TrainConfig:
    """A run for tests and first tries: the tiny network, small fields, done in seconds."""
    return TrainConfig(
        model=preset("tiny"),
        sides=(16,),
        levels=1,
        sensors=(0.1, 0.4),
        queries=(64,),
        steps=20,
        global_batch=4,
        micro_batch=4,
        lr=5e-3,
        min_lr=1e-4,
        warmup=2,
        ema=0.9,
        workers=0,
        log_every=5,
        sample_every=20,
        save_every=10,
    )


def tiny_v2() -> TrainConfig:
    """`tiny` with a network of the seed's kind."""
    return replace(tiny(), model=preset("tiny-v2"))


def _plain_run(name: str) -> Callable[[], TrainConfig]:
    return lambda: plain(name)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    **{name: _plain_run(name) for name in PRESETS if not name.startswith("tiny")},
    "v1-seed": v1_seed,
    "v2-seed": v2_seed,
    "ship-rgb": ship_rgb,
    "ship-temperature": ship_temperature,
    "tiny": tiny,
    "tiny-v2": tiny_v2,
}


def recipe(name: str) -> TrainConfig:
    """Return a named run.

    Raises:
        ValueError: No such name; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: unknown name {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name]()
