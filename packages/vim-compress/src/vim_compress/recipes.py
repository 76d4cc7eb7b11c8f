"""What decides a training run: one frozen dataclass, and named runs as functions that return it.

Importing this module does not import torch. A step is an optimizer step; batch sizes count pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from .config import ModelConfig
from .presets import PRESETS, preset
from .sparsity import SparsityConfig

Precision = Literal["no", "bf16", "fp16"]
Optimizer = Literal["adamw", "lamb"]
Crop = Literal["resized", "padded", "center"]

# A resumed run may change these: they decide when it stops, what it writes and how fast it is, not what it computes.
FREE_ON_RESUME = frozenset(
    {"stop_at", "max_minutes", "log_every", "save_every", "sample_every", "keep", "workers", "ahead", "graph"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run.

    Attributes:
        model: The network. With 0 classes the data decide how many, and name them.
        init: Start from a run's model/ folder or a weights file, as far as names and shapes agree; None draws weights.
        data: Folder with a folder of pictures for each class, a packed file, "fashion-mnist", folder of parquet or
            WebDataset shards, or name of a `datasets` data set (owner/name); None takes the colour emoji that the data
            extra installs.
        validation: "auto" takes the data's own held-out pictures; "none", or a folder or file like `data`.
        crop: Training pictures: a random part, resized; padded by an eighth and cut at random; or the centre.
        crop_scale: Least and largest area of a random part.
        flip: Probability of mirroring left and right.
        randaug: timm's augmentation policy, such as rand-m9-mstd0.5-inc1; empty for none.
        erase: Probability of filling a random rectangle with noise.
        mixup: Strength of blending pairs of pictures (beta distribution); 0 for none.
        cutmix: Strength of pasting a part of one picture into another; 0 for none. With both, half of the pairs each.
        mix: Probability that a pair is mixed at all.
        smoothing: Of the targets.
        repeats: How often each picture comes in an epoch, augmented anew, within about one step.
        steps: Length of the run and of the cosine, in steps.
        first_step: Step to begin with, as iterative pruning does after rewinding.
        stop_at: End this session, saving, after this step; None runs to the end.
        max_minutes: End this session, saving, after this many minutes; None sets no limit.
        global_batch: Pictures per step, over all processes.
        micro_batch: Pictures per process and forward pass.
        processes: How many processes the run is meant for; another number is an error.
        optimizer: "adamw", or "lamb" for very large batches (which waits for the device at every step).
        lr: Peak learning rate.
        min_lr: Learning rate at the last step.
        warmup: Steps of the linear rise to `lr`.
        betas: Decay of the optimizer's first and second moment.
        weight_decay: Of matrices; never of norms, biases, A, D, positions and gates.
        clip: Largest L2 norm of the gradient; 0 only measures it.
        ema: Decay of the averaged weights, which validation and `model/` use; it rises as (1 + step) / (10 + step)
            to this value. 0 keeps the newest weights.
        teacher: Folder of a trained model whose outputs are to be imitated; None learns from the labels alone.
        teacher_weight: Share of the teacher in the loss.
        temperature: That soften both outputs for it.
        mesa: Weight of imitating the run's own averaged weights; 0 does not.
        mesa_start: Share of the steps after which that begins.
        sparsity: What is pruned while training.
        rewind_step: Keep the weights of this step in `rewind.safetensors`; 0 keeps the first ones, None none.
        precision: "no" is float32; "bf16" and "fp16" are autocast.
        checkpoint_activations: Recompute activations in the backward pass to save memory.
        compile: Run the network through torch.compile.
        graph: Record a whole step as a CUDA graph and replay it, without accumulation: where the host cannot start
            kernels as fast as the GPU runs them, several times as fast.
        seed: Of the initial weights and of every picture.
        workers: Loader processes; 0 loads in the main one. The pictures do not depend on it. A stream always has one.
        ahead: Folder with pictures that `vim_compress.ahead` made for this run, which spares the loader their making;
            where none are for it, and with None, the loader makes them.
        resident: Keep all training pictures in the device's memory and change whole batches there, with padded or
            central crops and without randaug: for small pictures, which loader processes make too slowly.
        log_every: Steps between rows of metrics.jsonl; the host waits for the device only then.
        sample_every: Steps between sample pictures.
        save_every: Steps between checkpoints, each preceded by a validation.
        keep: How many of the newest checkpoints stay.
    """

    model: ModelConfig
    init: str | None = None
    data: str | None = None
    validation: str = "auto"
    crop: Crop = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    randaug: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0
    smoothing: float = 0.1
    repeats: int = 1
    steps: int = 10_000
    first_step: int = 0
    stop_at: int | None = None
    max_minutes: float | None = None
    global_batch: int = 256
    micro_batch: int = 256
    processes: int = 1
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup: int = 500
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 2.0
    mesa: float = 0.0
    mesa_start: float = 0.25
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    rewind_step: int | None = None
    precision: Precision = "no"
    checkpoint_activations: bool = False
    compile: bool = False
    graph: bool = False
    seed: int = 10
    workers: int = 4
    ahead: str | None = None
    resident: bool = False
    log_every: int = 100
    sample_every: int = 5_000
    save_every: int = 5_000
    keep: int = 3

    def __post_init__(self) -> None:
        """Refuse contradictions. Lists become tuples, so that a configuration read from a file is equal."""
        for name in ("betas", "crop_scale"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "global_batch", "micro_batch", "processes", "repeats"):
            _check(name, self, "at least 1", getattr(self, name) >= 1)
        for name in ("log_every", "sample_every", "save_every", "keep"):
            _check(name, self, "at least 1", getattr(self, name) >= 1)
        for name in ("workers", "seed", "weight_decay", "clip", "min_lr", "mixup", "cutmix", "mesa"):
            _check(name, self, "at least 0", getattr(self, name) >= 0)
        for name in ("flip", "erase", "mix", "teacher_weight", "mesa_start"):
            _check(name, self, "in [0, 1]", 0 <= getattr(self, name) <= 1)
        _check("smoothing", self, "in [0, 1)", 0 <= self.smoothing < 1)
        _check("temperature", self, "above 0", self.temperature > 0)
        low, high = self.crop_scale
        _check("crop_scale", self, "two numbers, 0 < least <= largest <= 1", 0 < low <= high <= 1)
        _check("lr", self, f"above 0 and not below min_lr={self.min_lr}", 0 < self.lr >= self.min_lr)
        _check("warmup", self, f"in [0, steps={self.steps})", 0 <= self.warmup < self.steps)
        _check("first_step", self, f"in [0, steps={self.steps})", 0 <= self.first_step < self.steps)
        _check("ema", self, "in [0, 1)", 0 <= self.ema < 1)
        _check("betas", self, "two numbers in [0, 1)", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas))
        _check("max_minutes", self, "above 0, or None", self.max_minutes is None or self.max_minutes > 0)
        _check("stop_at", self, "at least 1, or None", self.stop_at is None or self.stop_at >= 1)
        for name, kind in (("precision", Precision), ("optimizer", Optimizer), ("crop", Crop)):
            _check(name, self, f"one of {', '.join(get_args(kind))}", getattr(self, name) in get_args(kind))
        per_pass = self.micro_batch * self.processes
        if self.global_batch % per_pass:
            raise ValueError(
                f"TrainConfig: global_batch must be a multiple of micro_batch * processes = {self.micro_batch} * "
                f"{self.processes} = {per_pass}, got {self.global_batch}; change one of the three"
            )
        unrecorded = {
            "accumulation": self.micro_steps > 1,
            "fp16": self.precision == "fp16",
            "compile": self.compile,
            "checkpoint_activations": self.checkpoint_activations,
            "lamb": self.optimizer == "lamb",
            "mesa": self.mesa > 0,
        }
        _refuse_beside("graph", self.graph, unrecorded)
        singly = {"crop=resized": self.crop == "resized", "randaug": bool(self.randaug), "ahead": bool(self.ahead)}
        _refuse_beside("resident", self.resident, singly)

    @property
    def micro_steps(self) -> int:
        """Forward passes per process and step."""
        return self.global_batch // (self.micro_batch * self.processes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**plain, "model": self.model.to_dict(), "sparsity": self.sparsity.to_dict()}


def _check(name: str, cfg: TrainConfig, wanted: str, good: bool) -> None:
    if not good:
        raise ValueError(f"TrainConfig: {name} must be {wanted}, got {getattr(cfg, name)}; change --{name}")


def _refuse_beside(name: str, on: bool, others: dict[str, bool]) -> None:
    found = [other for other, given in others.items() if given]
    if on and found:
        raise ValueError(
            f"TrainConfig: {name} must be off with {', '.join(others)}, got it with {' and '.join(found)}; "
            "leave out one of them"
        )


def vim_imagenet(name: str) -> TrainConfig:
    """Vim's published recipe for ImageNet-1k: 300 epochs of 1,281,167 pictures at batch 1024, AdamW, float32."""
    tiny = "tiny" in name
    model = replace(preset(name), classes=0, drop_path=0.0 if tiny else 0.05)
    return TrainConfig(
        model=model,
        randaug="rand-m9-mstd0.5-inc1",
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        repeats=3,
        steps=375_300,
        global_batch=1024,
        micro_batch=128,
        warmup=6_255,
        weight_decay=0.1 if tiny else 0.05,
        clip=0.0,
        ema=0.99996,
        workers=12,
    )


def mambavision_imagenet(name: str) -> TrainConfig:
    """MambaVision's published recipe: 310 epochs at batch 4096, LAMB, bfloat16, imitating its own average."""
    large = name in ("mambavision_l", "mambavision_l2")
    return TrainConfig(
        model=replace(preset(name), classes=0),
        randaug="rand-m9-mstd0.5-inc1",
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        steps=96_720,
        global_batch=4096,
        micro_batch=128,
        optimizer="lamb",
        lr=5e-3,
        warmup=6_240,
        weight_decay=0.12 if large else 0.05,
        clip=5.0,
        ema=0.9998,
        mesa=6.0 if large else 0.5,
        precision="bf16",
        workers=12,
    )


def fashion_mnist() -> TrainConfig:
    """The dense baseline on Fashion-MNIST: a small Vim on 28 x 28 grey pixels, 49 tokens, 80 epochs.

    Its tokens come from a small convolutional stem: with plain patches it learns much more slowly from so few pictures.
    """
    model = replace(preset("vim_micro_patch4_32"), image=(28, 28), depth=4, d_state=8, stem="mobilenet")
    return replace(
        _small(model, grey=True),
        data="fashion-mnist",
        steps=18_720,
        global_batch=256,
        micro_batch=256,
        lr=1e-3,
        warmup=500,
        weight_decay=0.05,
        randaug="",
        erase=0.3,
        crop="padded",
        mix=0.2,
        resident=True,
        log_every=100,
    )


def emoji() -> TrainConfig:
    """The weights that ship: a small Vim on colour emoji of 64 x 64 pixels, 64 tokens, two minutes on one GPU."""
    model = replace(preset("vim_micro_patch8_64"), stride=8, d_state=8, stem="mobilenet")
    return replace(_small(model), steps=6_700, warmup=500, weight_decay=0.1)


def study() -> TrainConfig:
    """The recipe of every row of the study: the network of `fashion-mnist` for 10 epochs, without mixing."""
    base = replace(fashion_mnist(), steps=2_340, warmup=120, mixup=0.0, cutmix=0.0, erase=0.1, workers=2, ema=0.998)
    base = replace(base, model=replace(base.model, drop_path=0.05), resident=False)
    return replace(base, save_every=2_340, sample_every=2_340)


def _small(model: ModelConfig, *, grey: bool = False) -> TrainConfig:
    model = replace(model, classes=0, drop_path=0.1)
    if grey:
        model = replace(model, channels=1, mean=(0.286,), std=(0.353,))
    return TrainConfig(
        model=model,
        crop_scale=(0.3, 1.0),
        randaug="rand-m7-mstd0.5-inc1",
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        mix=0.8,
        global_batch=512,
        micro_batch=512,
        lr=1.5e-3,
        precision="bf16",
        workers=12,
        log_every=50,
        save_every=1_000,
        sample_every=2_500,
    )


def tiny() -> TrainConfig:
    """A run for tests and first tries: a network of 16 pixels, done in seconds."""
    return _test("vim_test_patch4_16")


def tiny_mambavision() -> TrainConfig:
    """`tiny` with the other family."""
    return _test("mambavision_test_32")


def _test(name: str) -> TrainConfig:
    return TrainConfig(
        model=replace(preset(name), classes=0),
        crop="padded",
        smoothing=0.0,
        steps=20,
        global_batch=8,
        micro_batch=8,
        lr=2e-3,
        min_lr=1e-4,
        warmup=2,
        ema=0.9,
        workers=0,
        log_every=5,
        sample_every=20,
        save_every=10,
    )


def _published(name: str) -> Callable[[], TrainConfig]:
    return lambda: vim_imagenet(name) if name.startswith("vim") else mambavision_imagenet(name)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "emoji": emoji,
    "fashion-mnist": fashion_mnist,
    "study": study,
    "tiny": tiny,
    "tiny-mambavision": tiny_mambavision,
    **{name: _published(name) for name in PRESETS if "micro" not in name and "test" not in name},
}


def recipe(name: str) -> TrainConfig:
    """Return a named run.

    Raises:
        ValueError: No such name; the message gives the nearest ones.
    """
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"nearest are {', '.join(close)}; " if close else ""
        raise ValueError(f"recipe: unknown name {name!r}; {hint}known are {', '.join(RECIPES)}")
    return RECIPES[name]()
