"""What decides a tokenizer's training: one frozen dataclass, and named runs as functions. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from ..checks import check, check_choice, check_whole, nearest, refuse
from ..runconfig import RunConfig, check_division
from .config import TokenizerConfig, tokenizer_preset

Perceptual = Literal["vgg16", "effnet-lite0", "none"]
DiscriminatorData = Literal["same", "own"]


class Stage(NamedTuple):
    """Part of a run at one size: pictures of `size` pixels, `micro_batch` per pass, `accumulation` passes a step."""

    size: int
    micro_batch: int
    accumulation: int
    first: int  # step it begins with
    steps: int


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig(RunConfig):
    """Everything that decides a run.

    Attributes:
        network: The tokenizer.
        init: Start from a run's model/ folder; None draws weights.
        size: Side of the training pictures in pixels, without `stages`.
        stages: Growing sizes: (size, micro_batch, accumulation, steps) each. Weights, discriminator, codebook,
            optimizers and averages go on from stage to stage. Replaces size, global_batch and micro_batch; the steps
            must add up to `steps`.
        reset_optimizer: Begin every stage with empty moments.
        l1: Weight of the mean absolute difference of pixels.
        l2: Weight of the mean squared difference.
        perceptual: Backbone of the perceptual loss: vgg16 (needs its weights), effnet-lite0, or none.
        perceptual_weight: Of the perceptual loss.
        perceptual_weights: File of the backbone; None takes the data folder's, or that of the installed package.
        adversarial: Weight of the adversarial loss, times the adaptive one. 0 trains no discriminator.
        adversarial_start: First step with it; the discriminator learns from there on.
        adversarial_warmup: Steps over which its weight rises.
        discriminator_channels: Of the first layer.
        discriminator_layers: Strided convolutions.
        discriminator_data: "same": judges the pictures of the step; "own": a further batch of the same size.
        flip: Mirror pictures left to right with probability 1/2.
        shift: Largest random shift, as a share of the side, with the edge repeated.
        revive_every: Steps between replacements of entries that nobody uses.
    """

    network: TokenizerConfig
    init: str | None = None
    size: int = 64
    stages: tuple[tuple[int, int, int, int], ...] = ()
    reset_optimizer: bool = False
    l1: float = 1.0
    l2: float = 0.0
    perceptual: Perceptual = "effnet-lite0"
    perceptual_weight: float = 0.1
    perceptual_weights: str | None = None
    adversarial: float = 0.1
    adversarial_start: int = 0
    adversarial_warmup: int = 1_000
    discriminator_channels: int = 64
    discriminator_layers: int = 4
    discriminator_data: DiscriminatorData = "same"
    flip: bool = True
    shift: float = 0.0
    revive_every: int = 200

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        super().__post_init__()
        check_whole(
            self, "size", "discriminator_channels", "discriminator_layers", "revive_every", "adversarial_warmup"
        )
        check_whole(self, "adversarial_start", least=0)
        check_choice(self, "perceptual", get_args(Perceptual))
        check_choice(self, "discriminator_data", get_args(DiscriminatorData))
        for name in ("l1", "l2", "perceptual_weight", "adversarial", "shift"):
            check(self, name, "at least 0", getattr(self, name) >= 0)
        for stage in self.stages:
            good = len(stage) == 4 and all(isinstance(n, int) and n >= 1 for n in stage)
            check(self, "stages", "a list of [size, micro_batch, accumulation, steps], all at least 1", good)
        if self.stages:
            total = sum(stage[3] for stage in self.stages)
            check(self, "steps", f"the sum of the stages' steps, {total}", self.steps == total, f"give --steps {total}")
        factor = self.network.factor
        for stage in self.plan:
            if stage.size % factor:
                wanted = f"a multiple of the tokenizer's factor {factor}"
                refuse("TokenizerTrainConfig", "size", wanted, stage.size, "change --size or --stages")
            if self.adversarial and stage.size < 4 << self.discriminator_layers:
                wanted = (
                    f"at least {4 << self.discriminator_layers} for {self.discriminator_layers} layers of the judge"
                )
                remedy = "use fewer --discriminator_layers, or --adversarial 0"
                refuse("TokenizerTrainConfig", "size", wanted, stage.size, remedy)
            batch = stage.micro_batch * stage.accumulation * (self.processes if not self.stages else 1)
            check_division("TokenizerTrainConfig", batch, stage.micro_batch, self.processes if not self.stages else 1)

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages in order; one for a run of a single size."""
        if not self.stages:
            return (Stage(self.size, self.micro_batch, self.micro_steps, 0, self.steps),)
        first, plan = 0, []
        for size, micro, accumulation, steps in self.stages:
            plan.append(Stage(size, micro, accumulation, first, steps))
            first += steps
        return tuple(plan)

    def stage_at(self, step: int) -> Stage:
        """Return the stage of a step."""
        return next(stage for stage in reversed(self.plan) if step >= stage.first)

    @property
    def judged_apart(self) -> bool:
        """Whether the discriminator has pictures of its own."""
        return self.discriminator_data == "own" and self.adversarial > 0

    def samples_of(self, step: int) -> range:
        """Return the numbers of the pictures of a step, over all processes; the discriminator's own come last."""
        first = 0
        for stage in self.plan:
            size = stage.micro_batch * stage.accumulation * self.processes * (1 + self.judged_apart)
            done = min(step - stage.first, stage.steps)
            if step < stage.first + stage.steps or stage is self.plan[-1]:
                return range(first + done * size, first + (done + 1) * size)
            first += done * size
        raise AssertionError

    def keys_of(self, step: int, rank: int) -> list[list[tuple[int, int]]]:
        """Return (number, size) of a process's micro-batches of a step; the discriminator's own follow in each."""
        stage, numbers = self.stage_at(step), self.samples_of(step)
        size, half = stage.micro_batch, len(numbers) // (1 + self.judged_apart)
        batches = []
        for micro in range(stage.accumulation):
            first = numbers.start + (micro * self.processes + rank) * size
            own = range(first + half, first + half + size) if self.judged_apart else ()
            batches.append([(n, stage.size) for n in (*range(first, first + size), *own)])
        return batches

    @property
    def pictures_seen(self) -> int:
        """Pictures that generator and discriminator look at in the whole run and all processes."""
        return (
            sum(s.micro_batch * s.accumulation * s.steps for s in self.plan) * self.processes * (1 + self.judged_apart)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {**super().to_dict(), "stages": [list(stage) for stage in self.stages]}


def seed() -> TokenizerTrainConfig:
    """The seed's plan: 64, 128, 256 and 512 pixels, 100,000 steps each, rate 1e-4, 61.2 million pictures."""
    return TokenizerTrainConfig(
        network=tokenizer_preset("seed"),
        steps=400_000,
        stages=((64, 128, 1, 100_000), (128, 32, 4, 100_000), (256, 8, 4, 100_000), (512, 3, 6, 100_000)),
        lr=1e-4,
        min_lr=1e-4,
        warmup=0,
        clip=0.0,
        discriminator_data="own",
        adversarial=1.0,
    )


def emoji_64() -> TokenizerTrainConfig:
    """The tokenizer that ships: 64 px, 256 tokens, in minutes on one GPU."""
    return TokenizerTrainConfig(
        network=tokenizer_preset("emoji-64"),
        size=64,
        steps=9_000,
        global_batch=128,
        micro_batch=128,
        lr=6e-4,
        warmup=200,
        weight_decay=0.0,
        perceptual_weight=0.3,
        adversarial=0.2,
        adversarial_start=3_000,
        discriminator_channels=48,
        discriminator_layers=3,
        shift=0.06,
        precision="bf16",
        max_minutes=9.0,
        workers=8,
        sample_every=2_000,
        save_every=2_000,
    )


def tiny() -> TokenizerTrainConfig:
    """A run for tests and first tries, done in seconds."""
    return TokenizerTrainConfig(
        network=tokenizer_preset("tiny"),
        size=32,
        steps=20,
        global_batch=4,
        micro_batch=4,
        lr=3e-3,
        min_lr=1e-4,
        warmup=2,
        ema=0.9,
        perceptual="none",
        adversarial_start=5,
        adversarial_warmup=5,
        discriminator_channels=8,
        discriminator_layers=2,
        workers=0,
        log_every=5,
        sample_every=20,
        save_every=10,
    )


RECIPES: dict[str, Callable[[], TokenizerTrainConfig]] = {"seed": seed, "emoji-64": emoji_64, "tiny": tiny}


def recipe(name: str, method: str | None = None) -> TokenizerTrainConfig:
    """Return a named run.

    Raises:
        ValueError: No such name, or a text method was asked for.
    """
    if name not in RECIPES:
        refuse("recipe", "preset", f"one of {', '.join(RECIPES)}", repr(name), nearest(name, RECIPES))
    if method is not None:
        refuse("recipe", "method", "left out for a tokenizer", method, "methods belong to `muse-mamba train`")
    return RECIPES[name]()
