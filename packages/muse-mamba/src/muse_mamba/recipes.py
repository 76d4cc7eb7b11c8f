"""What decides a token model's training: one frozen dataclass, and named runs as functions. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .checks import check, check_whole, nearest, refuse
from .config import ModelConfig, model_preset
from .runconfig import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Everything that decides a run.

    Attributes:
        model: The token model.
        init: Start from a run's model/ folder; None draws weights.
        tokenizer: Folder of the tokenizer; None takes the data folder's, or the one that ships.
        text_encoder: "minilm", or the folder or name of an encoder of `transformers`; not needed for packed data.
        text_drop: Share of samples that are not told their text, for guidance.
        label_smoothing: Share of probability spread over all codes.
        rectangle: Share of samples whose hidden tokens form a rectangle, for inpainting.
        self_condition: Share of samples with a first pass, for models with self_conditioning.
        variants: Augmented versions of every picture that are turned into tokens.
        token_cache: Folder where the tokens are kept for the next run with the same pictures and tokenizer; None
            keeps none.
        flip: Mirror every second version.
        shift: Largest shift of a version, as a share of the side.
        critic_weight: Of the critic's loss.
        layer_critic_weight: Of the mean loss of the critics of layer-critic.
        early_weight: Of the mean loss of the early predictions of layer-critic.
        graph: Record a whole step as a CUDA graph and replay it, without accumulation: where the host cannot start
            kernels as fast as the GPU runs them, several times as fast.
    """

    model: ModelConfig
    init: str | None = None
    tokenizer: str | None = None
    text_encoder: str = "minilm"
    text_drop: float = 0.1
    label_smoothing: float = 0.1
    rectangle: float = 0.0
    self_condition: float = 0.9
    variants: int = 1
    token_cache: str | None = None
    flip: bool = False
    shift: float = 0.0
    critic_weight: float = 1.0
    layer_critic_weight: float = 1.0
    early_weight: float = 0.1
    graph: bool = False

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        super().__post_init__()
        check_whole(self, "variants")
        for name in ("text_drop", "label_smoothing", "rectangle", "self_condition"):
            check(self, name, "in [0, 1]", 0 <= getattr(self, name) <= 1)
        for name in ("shift", "critic_weight", "layer_critic_weight", "early_weight"):
            check(self, name, "at least 0", getattr(self, name) >= 0)
        against = {
            "accumulation": self.micro_steps > 1,
            "fp16": self.precision == "fp16",
            "compile": self.compile,
            "checkpoint_activations": self.checkpoint_activations,
        }
        found = [name for name, on in against.items() if on]
        if self.graph and found:
            wanted = f"off with {', '.join(against)}"
            refuse("TrainConfig", "graph", wanted, f"it with {' and '.join(found)}", "leave out one of them")


def muse(name: str) -> Callable[[str | None], TrainConfig]:
    """Return the paper's recipe for a transformer: rate 1e-4, weight decay 0.045, 5,000 steps of warm-up."""

    def make(method: str | None) -> TrainConfig:
        return TrainConfig(
            model=model_preset(name, method),
            steps=1_500_000,
            global_batch=512,
            micro_batch=16,
            lr=1e-4,
            warmup=5_000,
            betas=(0.9, 0.96),
            weight_decay=0.045,
            precision="bf16",
            text_encoder="google/t5-v1_1-base",
        )

    return make


def study(method: str | None) -> TrainConfig:
    """One run of the study: 3.5 million parameters, the same pictures, steps and batch for every method."""
    return TrainConfig(
        model=model_preset("study", method),
        steps=6_000,
        global_batch=64,
        micro_batch=64,
        lr=1e-3,
        min_lr=1e-5,
        warmup=300,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        ema=0.998,
        precision="bf16",
        variants=8,
        flip=True,
        shift=0.06,
        workers=2,
        log_every=100,
        sample_every=3_000,
        save_every=3_000,
        keep=1,
    )


def ship(method: str | None) -> TrainConfig:
    """The weights that ship: at most 2.95 million parameters (with the tokenizer 8 MB), in minutes on one GPU."""
    base = study(method)
    model = replace(base.model, dim=min(SHIP_DIM, base.model.dim - 24))
    return replace(
        base,
        model=model,
        steps=14_000,
        global_batch=128,
        micro_batch=128,
        lr=1.5e-3,
        warmup=200,
        rectangle=0.1,
        ema=0.9995,
        variants=16,
        max_minutes=9.0,
        workers=8,
        sample_every=2_000,
        save_every=2_000,
        keep=2,
    )


def tiny(method: str | None) -> TrainConfig:
    """A run for tests and first tries, done in seconds."""
    return TrainConfig(
        model=model_preset("tiny", method),
        steps=20,
        global_batch=4,
        micro_batch=4,
        lr=1e-2,
        min_lr=1e-4,
        warmup=2,
        ema=0.9,
        label_smoothing=0.0,
        workers=0,
        log_every=5,
        sample_every=20,
        save_every=10,
    )


SHIP_DIM = 176
RECIPES: dict[str, Callable[[str | None], TrainConfig]] = {
    "muse-24x2048": muse("muse-24x2048"),
    "muse-12x1024": muse("muse-12x1024"),
    "mamba-12x1024": muse("mamba-12x1024"),
    "study": study,
    "ship": ship,
    "tiny": tiny,
}


def recipe(name: str, method: str | None = None) -> TrainConfig:
    """Return a named run.

    Raises:
        ValueError: No such name or method (the message names the nearest).
    """
    if name not in RECIPES:
        refuse("recipe", "preset", f"one of {', '.join(RECIPES)}", repr(name), nearest(name, RECIPES))
    return RECIPES[name](method)
