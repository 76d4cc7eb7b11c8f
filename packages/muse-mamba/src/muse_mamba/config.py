"""What a token model is made of: one frozen dataclass, the ways of mixing text in, and named models. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from .checks import check, check_choice, check_whole, nearest, refuse

Method = Literal[
    "transformer",
    "attn-xz",
    "mamba-xattn",
    "concat",
    "concat-seq-out",
    "concat-seq-in",
    "text-a",
    "text-b",
    "text-c",
    "text-d",
    "text-skip",
    "text-state",
    "parallel",
    "layer-critic",
    "mamba2-xattn",
    "hybrid",
]
METHODS: tuple[str, ...] = get_args(Method)
CONCATENATED = ("concat", "concat-seq-out", "concat-seq-in")
INJECTED = ("text-a", "text-b", "text-c", "text-d", "text-state", "attn-xz", "text-skip")
CROSS = ("transformer", "mamba-xattn", "mamba2-xattn", "hybrid")  # own cross attention after the mixer

Direction = Literal["causal", "alternate", "bidirectional"]
Critic = Literal["none", "transformer", "mamba", "self"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a token model's parameters and its output. L image tokens, T text tokens.

    Attributes:
        method: How text is mixed in; docs/methods.md defines each.
        vocab: Codes V of the tokenizer.
        grid: Rows and columns of image tokens; L is their product.
        dim: Width d.
        depth: Blocks.
        text_dim: Width of the text encoder's states.
        text_length: Text tokens T that are kept; T is fixed for concat-seq-out, -in, and parallel's linear align.
        heads: Of every attention.
        dim_head: Channels of a head.
        ff_mult: Inner width of the transformer's feed-forward part over d, before the factor 2/3 of its gate.
        d_state: States N per channel of the scans (64 suits mamba2-xattn).
        d_conv: Taps of the scans' convolutions.
        expand: Inner width of the scans over d.
        head_dim: Channels per head of mamba2-xattn.
        direction: "causal" reads the picture once, from its first token; "alternate" reads every second block from the
            end; "bidirectional" has two scans a block.
        text_layers: "all" blocks see the text, or only the "first".
        text_mixer: "mamba1" puts one scan over the text before it enters.
        text_summary: What text-a to text-d make of the text: "pooled" (one vector a text), "attn" (one per image
            token, by cross attention), or "auto" (attn for text-b and text-c, pooled for text-a and text-d).
        text_rank: Rank of the change of A (text-a) and of the initial state (text-state).
        attn_repeat: How attn-xz spreads d channels over 2 * expand * d: "tile" or "interleave".
        skip_gate: text-skip weighs its skip by every image token.
        merge: How parallel joins its branches: "sum", "mul" or "weighted".
        align: How parallel brings T outputs to L: "linear" over positions, the "last" one, or "pad".
        parallel_text_depth: Text layers of parallel: one for "all" blocks each, or "one" whose output is used again.
        attention_every: Every how many blocks of hybrid attend to the picture instead of scanning it.
        layer_critic_dim: Width of the critics of layer-critic; 0 is d.
        channel_mixer: Part after the mixer of a scan block: "none", "geglu", or "einfft" of SiMBA.
        self_conditioning: Feed the final states of a first pass into a second one.
        cond_vocab: Codes of a smaller picture that conditions this model (super-resolution); 0 for none.
        cond_grid: Rows and columns of that picture's tokens.
        critic: Network that finds wrong tokens when sampling: none, a "transformer", a "mamba", or one layer on this
            model's "self".
        critic_depth: Blocks of that network.
    """

    method: Method = "mamba-xattn"
    vocab: int = 8192
    grid: tuple[int, int] = (16, 16)
    dim: int = 1024
    depth: int = 12
    text_dim: int = 768
    text_length: int = 32
    heads: int = 8
    dim_head: int = 64
    ff_mult: float = 4.0
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    head_dim: int = 64
    direction: Direction = "alternate"
    text_layers: Literal["all", "first"] = "all"
    text_mixer: Literal["none", "mamba1"] = "none"
    text_summary: Literal["auto", "pooled", "attn"] = "auto"
    text_rank: int = 16
    attn_repeat: Literal["tile", "interleave"] = "tile"
    skip_gate: bool = False
    merge: Literal["sum", "mul", "weighted"] = "sum"
    align: Literal["linear", "last", "pad"] = "linear"
    parallel_text_depth: Literal["all", "one"] = "all"
    attention_every: int = 4
    layer_critic_dim: int = 0
    channel_mixer: Literal["none", "geglu", "einfft"] = "none"
    self_conditioning: bool = False
    cond_vocab: int = 0
    cond_grid: tuple[int, int] = (0, 0)
    critic: Critic = "none"
    critic_depth: int = 2

    def __post_init__(self) -> None:
        """Refuse values that cannot be built. Lists become tuples, so that a configuration read from JSON is equal."""
        for name in ("grid", "cond_grid"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_choice(self, "method", METHODS)
        for f in (
            *("direction", "text_layers", "text_mixer", "text_summary", "attn_repeat", "merge", "align"),
            *("parallel_text_depth", "channel_mixer", "critic"),
        ):
            check_choice(self, f, CHOICES[f])
        check_whole(self, "vocab", least=2)
        check_whole(self, "dim", "depth", "text_dim", "text_length", "heads", "dim_head", "d_state", "expand")
        check_whole(self, "head_dim", "text_rank", "attention_every", "critic_depth")
        check_whole(self, "cond_vocab", "layer_critic_dim", least=0)
        check(self, "d_conv", "in 2..8", self.d_conv in range(2, 9))
        check(self, "ff_mult", "above 0", self.ff_mult > 0)
        check(self, "grid", "two numbers of at least 1", len(self.grid) == 2 and min(self.grid) >= 1)
        self._check_together()

    def _check_together(self) -> None:
        if self.text_summary == "attn" and self.method == "text-a":
            remedy = "a rate per token would need (B, L, Di, N); use pooled"
            check(self, "text_summary", "pooled for text-a", False, remedy)
        if self.method == "parallel" and self.align == "pad" and self.text_length > self.length:
            check(self, "text_length", f"at most L={self.length} for align='pad'", False)
        if self.method == "mamba2-xattn" and self.inner % self.head_dim:
            check(self, "head_dim", f"a divisor of expand * dim = {self.inner}", False)
        if self.cond_vocab:
            fits = min(self.cond_grid) >= 1 and not any(a % b for a, b in zip(self.grid, self.cond_grid, strict=True))
            check(self, "cond_grid", f"such that it divides grid={self.grid}", fits)
        if self.channel_mixer != "none" and self.method in ("transformer", "parallel", "layer-critic"):
            check(self, "channel_mixer", f"'none' for method={self.method!r}", False)
        if self.channel_mixer == "einfft":
            check(self, "channel_mixer", "for dim that 4 divides", self.dim % 4 == 0)
            wanted = "alternate or bidirectional with channel_mixer='einfft', which sees all positions"
            check(self, "direction", wanted, self.direction != "causal")

    @property
    def length(self) -> int:
        """Image tokens L."""
        return self.grid[0] * self.grid[1]

    @property
    def inner(self) -> int:
        """Inner width Di of the scans."""
        return self.expand * self.dim

    @property
    def summary(self) -> str:
        """What text-a to text-d make of the text."""
        if self.text_summary != "auto":
            return self.text_summary
        return "attn" if self.method in ("text-b", "text-c") else "pooled"

    @property
    def fixed_text(self) -> bool:
        """Whether the model has weights per text position."""
        placed = self.method == "parallel" and self.align != "last"
        return placed or self.method in ("concat-seq-out", "concat-seq-in")

    @property
    def scans_text(self) -> bool:
        """Whether the absence of text is a learned token, because no attention can be masked."""
        attends = self.method in (*CROSS, "attn-xz", "layer-critic")
        return not (attends or (self.method in ("text-b", "text-c", "text-d") and self.summary == "attn"))

    def sees_text(self, block: int) -> bool:
        """Whether a block, counted from 0, has a part for the text."""
        return block == 0 or self.text_layers == "all"

    def critic_config(self) -> ModelConfig:
        """Return the configuration of the critic's own network."""
        method: Method = "transformer" if self.critic == "transformer" else "mamba-xattn"
        return replace(
            self,
            method=method,
            depth=self.critic_depth,
            critic="none",
            self_conditioning=False,
            text_mixer="none",
            text_layers="all",
            channel_mixer="none",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {**asdict(self), "grid": list(self.grid), "cond_grid": list(self.cond_grid)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build a configuration from the fields of `to_dict`.

        Raises:
            ValueError: A field is unknown or cannot be built.
        """
        unknown = [name for name in values if name not in cls.__dataclass_fields__]
        if unknown:
            known = cls.__dataclass_fields__
            refuse("ModelConfig", "fields", ", ".join(known), unknown[0], nearest(unknown[0], known))
        return cls(**values)


def why_not_upscaler(small: ModelConfig, large: ModelConfig) -> str | None:
    """Return why a model cannot enlarge the pictures of another one with its tokenizer and text; None if it can."""
    if not large.cond_vocab:
        return "must be a super-resolution model, got one that draws from the text alone; docs/drawing.md trains one"
    if (large.cond_grid, large.cond_vocab) != (small.grid, small.vocab):
        drawn, wanted = (
            f"{grid[0]} x {grid[1]} tokens of {vocab} codes"
            for grid, vocab in ((small.grid, small.vocab), (large.cond_grid, large.cond_vocab))
        )
        return f"must enlarge {drawn}, as the base model draws, got one for {wanted}; use another base model"
    if large.vocab != small.vocab:
        return f"must draw the {small.vocab} codes of the base model's tokenizer, got {large.vocab}; train it with that"
    if large.text_dim != small.text_dim:
        return f"must read text of width {small.text_dim}, as the base model, got {large.text_dim}; use one encoder"
    return None


CHOICES: dict[str, tuple[str, ...]] = {
    "direction": get_args(Direction),
    "text_layers": ("all", "first"),
    "text_mixer": ("none", "mamba1"),
    "text_summary": ("auto", "pooled", "attn"),
    "attn_repeat": ("tile", "interleave"),
    "merge": ("sum", "mul", "weighted"),
    "align": ("linear", "last", "pad"),
    "parallel_text_depth": ("all", "one"),
    "channel_mixer": ("none", "geglu", "einfft"),
    "critic": get_args(Critic),
}


# Width per method at depth 8 that makes 3.5 million parameters with embeddings and head (V = 1024, L = 256, MiniLM).
STUDY_DIM: dict[str, int] = {
    "transformer": 160,
    "attn-xz": 200,
    "mamba-xattn": 200,
    "concat": 232,
    "concat-seq-out": 232,
    "concat-seq-in": 232,
    "text-a": 224,
    "text-b": 200,
    "text-c": 200,
    "text-d": 208,
    "text-skip": 216,
    "text-state": 224,
    "parallel": 160,
    "layer-critic": 192,
    "mamba2-xattn": 192,
    "hybrid": 216,
}
STUDY_DEPTH = 8


def study_model(method: str) -> ModelConfig:
    """Return a method's model of the study: about 3.5 million parameters with embeddings and head, 256 tokens of 1024.

    Raises:
        ValueError: No such method.
    """
    _known(method)
    return ModelConfig(
        method=method,  # pyright: ignore[reportArgumentType]  # checked above
        vocab=1024,
        grid=(16, 16),
        dim=STUDY_DIM[method],
        depth=STUDY_DEPTH,
        text_dim=384,
        text_length=24,
        heads=4,
        dim_head=32,
        head_dim=32,
        text_rank=4,
        d_state=64 if method == "mamba2-xattn" else 16,
        layer_critic_dim=64 if method == "layer-critic" else 0,
    )


def _known(method: str) -> None:
    if method not in METHODS:
        refuse("ModelConfig", "method", f"one of {', '.join(METHODS)}", repr(method), nearest(method, METHODS))


def model_preset(name: str, method: str | None = None) -> ModelConfig:
    """Return a named model: `muse-24x2048`, `muse-12x1024`, `mamba-12x1024`, `study`, or `tiny`.

    Args:
        name: Of the model.
        method: How text is mixed in; None takes the model's own.

    Raises:
        ValueError: No such name or method, or the two do not go together.
    """
    if method is not None:
        _known(method)
    if name == "study":
        return study_model(method or "mamba-xattn")
    if name not in MODELS:
        known = (*MODELS, "study")
        refuse("model_preset", "name", f"one of {', '.join(known)}", repr(name), nearest(name, known))
    model = MODELS[name]
    if method is not None and name.startswith("muse-") and method != "transformer":
        refuse("model_preset", "method", f"transformer for {name}", method, "use mamba-12x1024 or study for others")
    return model if method is None else replace(model, method=method)  # pyright: ignore[reportArgumentType]


MODELS: dict[str, ModelConfig] = {
    "muse-24x2048": ModelConfig(method="transformer", dim=2048, depth=24, self_conditioning=True),
    "muse-12x1024": ModelConfig(method="transformer", dim=1024, depth=12, self_conditioning=True),
    "mamba-12x1024": ModelConfig(method="attn-xz", dim=1024, depth=12),
    "tiny": ModelConfig(
        vocab=32,
        grid=(4, 4),
        dim=16,
        depth=2,
        text_dim=8,
        text_length=6,
        heads=2,
        dim_head=8,
        head_dim=16,
        d_state=4,
        text_rank=2,
    ),
}
