"""What a network is made of: one frozen dataclass for each family, and the members of both as functions.

Importing this module does not import torch. Sizes of pictures are (height, width) in pixels, widths count channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

from .configchecks import check_widths, choices, refuse, shared_checks, tuples, whole, whole_numbers

Mixer = Literal["mamba", "mamba2", "s4", "s4d", "s5"]
Gate = Literal["none", "output", "inner"]
Stem = Literal["patch", "mobilenet"]
TokenConv = Literal["causal", "depthwise2d"]
Init = Literal["fixed", "official"]
Attention = Literal["window", "shifted", "band", "neighbourhood"]
ConvBlocks = Literal["full", "separable"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True, kw_only=True)
class VimConfig:
    """Vision Mamba. The defaults are Vim-T.

    Attributes:
        family: Tells the two families apart in a file.
        image: Size that the position embedding is made for.
        channels: Of the picture.
        classes: Outputs of the head; 0 has no head.
        patch: Side of a patch in pixels.
        stride: Pixels between patches; below `patch` they overlap.
        dim: Width of the residual stream.
        depth: Blocks.
        expand: Inner width of a block over `dim`, unless `widths` says otherwise.
        d_state: States for each inner channel, unless `widths` says otherwise.
        d_conv: Taps of the convolutions.
        dt_rank: Rank of the projections that make the steps; 0 is dim / 16, rounded up.
        mixer: The state-space model of a block.
        step_scale: Factor of the steps of s4, s4d and s5, which runs the same filter at another resolution.
        average: Halve the sum of the two directions (all published models do).
        se: Squeeze-and-excitation over the tokens: of a mixer's output, of its inner channels, or nowhere.
        se_ratio: Channels over the squeezed width.
        se_class_token: Let the class token take part in the squeeze.
        token_conv: Convolution before the scan: along the tokens, or 3 x 3 on their grid, past the class token.
        stem: What makes the tokens: one convolution of patches, or inverted residuals.
        gates: A factor for every inner channel before out_proj, which is trained towards zero and can be folded away.
        drop_path: Highest rate of stochastic depth.
        norm_eps: Added to the mean square in the norms.
        init: "official" repeats Vim's slip of starting the backward steps at 0.69; "fixed" starts both alike.
        widths: Sizes that differ from the default, by name: "layers.3.inner", "layers.3.state" and "layers.3.state_b"
            (0 leaves the direction out); "stem", what the channels of stem="mobilenet" follow from in place of `dim`.
        mean: Of the pictures, subtracted from values in [0, 1].
        std: Divides the rest.
        crop_pct: Side of the centre that is classified over the side that a picture is resized to.
        labels: Names of the classes; empty if nobody knows them.
        domain: What pictures it was trained on.
    """

    family: Literal["vim"] = "vim"
    image: tuple[int, int] = (224, 224)
    channels: int = 3
    classes: int = 1000
    patch: int = 16
    stride: int = 16
    dim: int = 192
    depth: int = 24
    expand: int = 2
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 0
    mixer: Mixer = "mamba"
    step_scale: float = 1.0
    average: bool = True
    se: Gate = "none"
    se_ratio: int = 4
    se_class_token: bool = True
    token_conv: TokenConv = "causal"
    stem: Stem = "patch"
    gates: bool = False
    drop_path: float = 0.0
    norm_eps: float = 1e-5
    init: Init = "fixed"
    widths: dict[str, int] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 1.0
    labels: tuple[str, ...] = ()
    domain: str = ""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built. Lists become tuples, so that a configuration read from JSON is equal."""
        tuples(self, "image", "mean", "std", "labels")
        whole_numbers(self, 1, "channels", "patch", "stride", "dim", "depth", "expand", "d_state", "se_ratio")
        whole_numbers(self, 0, "classes", "dt_rank")
        if not 2 <= self.d_conv <= 8:
            refuse(self, "d_conv", "in 2..8", self.d_conv)
        if not self.step_scale > 0:
            refuse(self, "step_scale", "above 0", self.step_scale)
        shared_checks(self)
        choices(self, family="vim", mixer=Mixer, se=Gate, token_conv=TokenConv, stem=Stem, init=Init)
        if min(self.image) < self.patch:
            refuse(self, "image", f"at least one patch of {self.patch} pixels", self.image, "take a smaller patch")
        if self.stem == "mobilenet" and (self.patch & (self.patch - 1) or self.patch < 2 or self.stride != self.patch):
            refuse(self, "patch", "a power of two, and stride the same, for stem='mobilenet'", self.patch)
        if self.mixer != "mamba" and (self.token_conv != "causal" or self.widths):
            remedy = "start from a network that is not cut"
            refuse(self, "mixer", "'mamba' with widths or token_conv='depthwise2d'", repr(self.mixer), remedy)
        known = {f"layers.{i}.{axis}" for i in range(self.depth) for axis in ("inner", "state", "state_b")}
        check_widths(self, known | ({"stem"} if self.stem == "mobilenet" else set()), least={"state": 0, "state_b": 0})
        for i in range(self.depth):
            if self.state(i) == (0, 0):
                refuse(self, "widths", f"one direction of block {i} at least", "no states in both")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid_of(self.image, self.patch, self.stride)

    @property
    def rank(self) -> int:
        """Rank of the projections that make the steps."""
        return self.dt_rank or math.ceil(self.dim / 16)

    @property
    def stem_width(self) -> int:
        """Channels that the last convolutions of stem="mobilenet" have; the earlier ones follow from them."""
        return self.widths.get("stem", self.dim)

    def inner(self, layer: int) -> int:
        """Inner channels of a block."""
        return self.widths.get(f"layers.{layer}.inner", self.expand * self.dim)

    def state(self, layer: int) -> tuple[int, int]:
        """States for each channel of the forward and the backward direction of a block; 0 is no such direction."""
        names = (f"layers.{layer}.state", f"layers.{layer}.state_b")
        ahead, back = (self.widths.get(name, self.d_state) for name in names)
        return ahead, back

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class MambaVisionConfig:
    """MambaVision. The defaults are MambaVision-T.

    Attributes:
        family: Tells the two families apart in a file.
        image: Usual size of a picture; others work too.
        channels: Of the picture.
        classes: Outputs of the head; 0 has no head.
        dim: Width of the first stage; every later one is twice as wide.
        in_dim: Width inside the stem.
        depths: Blocks of the four stages.
        heads: Attention heads of the four stages (the first two have none to use them).
        windows: Side of the windows of the four stages (the first two have none).
        stem_strides: Of the stem's two convolutions.
        mlp_ratio: Hidden width of the feed-forward parts over the stage's width.
        d_state: States for each channel of the scan.
        d_conv: Taps of the convolutions beside the scan.
        mixer: The state-space model of the first half of a stage's blocks.
        step_scale: Factor of the steps of s4, s4d and s5, which runs the same filter at another resolution.
        dt_bias_twice: Add the step's bias twice, as all published weights need; False suits new training.
        layer_scale: First value of the factors of both residual branches in stages 3 and 4; 0 has none.
        attention: Of the second half of a stage's blocks: inside windows, inside windows that every other block
            shifts by half, over a band of the raster, or over each token's neighbourhood.
        reach: Tokens that band and neighbourhood see: |i - j| <= reach, or a square of that side (odd).
        conv_blocks: Stages 1 and 2: full 3 x 3 convolutions, or depthwise and pointwise ones.
        se: Squeeze-and-excitation on the output of the state-space mixers ("output"), or nowhere.
        se_ratio: Channels over the squeezed width.
        gates: Factors for hidden channels, heads and mixer channels, trained towards zero, foldable.
        drop_path: Highest rate of stochastic depth.
        widths: Sizes that differ from the default, by name: "levels.0.blocks.1.inner" (conv blocks),
            "levels.2.blocks.0.hidden", ".x" and ".z" (halves of a scan mixer), ".heads".
        mean: Of the pictures, subtracted from values in [0, 1].
        std: Divides the rest.
        crop_pct: Side of the centre that is classified over the side that a picture is resized to.
        labels: Names of the classes; empty if nobody knows them.
        domain: What pictures it was trained on.
    """

    family: Literal["mambavision"] = "mambavision"
    image: tuple[int, int] = (224, 224)
    channels: int = 3
    classes: int = 1000
    dim: int = 80
    in_dim: int = 32
    depths: tuple[int, ...] = (1, 3, 8, 4)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    windows: tuple[int, ...] = (8, 8, 14, 7)
    stem_strides: tuple[int, int] = (2, 2)
    mlp_ratio: float = 4.0
    d_state: int = 8
    d_conv: int = 3
    mixer: Mixer = "mamba"
    step_scale: float = 1.0
    dt_bias_twice: bool = True
    layer_scale: float = 0.0
    attention: Attention = "window"
    reach: int = 7
    conv_blocks: ConvBlocks = "full"
    se: Gate = "none"
    se_ratio: int = 4
    gates: bool = False
    drop_path: float = 0.0
    widths: dict[str, int] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 1.0
    labels: tuple[str, ...] = ()
    domain: str = ""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built. Lists become tuples, so that a configuration read from JSON is equal."""
        tuples(self, "image", "depths", "heads", "windows", "stem_strides", "mean", "std", "labels")
        whole_numbers(self, 1, "channels", "dim", "in_dim", "d_state", "reach", "se_ratio")
        whole_numbers(self, 0, "classes")
        for name in ("depths", "heads", "windows"):
            if len(getattr(self, name)) != 4 or not all(whole(x) for x in getattr(self, name)):
                refuse(self, name, "four whole numbers of at least 1, one per stage", getattr(self, name))
        if len(self.stem_strides) != 2 or not set(self.stem_strides) <= {1, 2}:
            refuse(self, "stem_strides", "two numbers, 1 or 2", self.stem_strides)
        for stage in (2, 3):
            if self.stage_dim(stage) % self.heads[stage]:
                wanted = f"divisors of the stages' widths, here of {self.stage_dim(stage)}"
                refuse(self, "heads", wanted, self.heads)
            if self.stage_dim(stage) % 2:
                refuse(self, "dim", "such that a scan mixer can split its stage in halves", self.dim)
        if not 2 <= self.d_conv <= 8:
            refuse(self, "d_conv", "in 2..8", self.d_conv)
        if not self.mlp_ratio > 0 or not self.step_scale > 0 or self.layer_scale < 0:
            refuse(self, "mlp_ratio and step_scale", "above 0, and layer_scale at least 0", self.mlp_ratio)
        if self.attention == "neighbourhood" and self.reach % 2 == 0:
            refuse(self, "reach", "odd for attention='neighbourhood'", self.reach)
        shared_checks(self)
        choices(self, family="mambavision", mixer=Mixer, attention=Attention, conv_blocks=ConvBlocks, se=Gate)
        if self.se == "inner":
            refuse(self, "se", "'none' or 'output'", "'inner'", "only Vim has the other place")
        check_widths(self, self._width_names())

    def stage_dim(self, stage: int) -> int:
        """Width of a stage."""
        return self.dim << stage

    def is_attention(self, stage: int, block: int) -> bool:
        """Whether a block of stage 2 or 3 attends: the last half of them, rounded down."""
        return block >= math.ceil(self.depths[stage] / 2)

    def width(self, stage: int, block: int, axis: str) -> int:
        """Size of one axis of a block: "inner", "hidden", "heads", "x" or "z"."""
        default = {
            "inner": self.stage_dim(stage),
            "hidden": int(self.stage_dim(stage) * self.mlp_ratio),
            "heads": self.heads[stage],
            "x": self.stage_dim(stage) // 2,
            "z": self.stage_dim(stage) // 2,
        }[axis]
        return self.widths.get(f"levels.{stage}.blocks.{block}.{axis}", default)

    def _width_names(self) -> set[str]:
        names = set()
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                axes = ("inner",) if stage < 2 else ("hidden", "heads") if self.is_attention(stage, block) else None
                names |= {f"levels.{stage}.blocks.{block}.{axis}" for axis in axes or ("hidden", "x", "z")}
        return names

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class CnnConfig:
    """A small plain convolutional network, for comparison.

    Attributes:
        family: Tells the families apart in a file.
        image: Usual size of a picture.
        channels: Of the picture.
        classes: Outputs of the head.
        dims: Widths of the convolutions.
        drop_path: Not used; 0.
        widths: Not used; empty.
        mean: Of the pictures, subtracted from values in [0, 1].
        std: Divides the rest.
        crop_pct: Side of the centre that is classified over the side that a picture is resized to.
        labels: Names of the classes; empty if nobody knows them.
        domain: What pictures it was trained on.
    """

    family: Literal["cnn"] = "cnn"
    image: tuple[int, int] = (32, 32)
    channels: int = 3
    classes: int = 10
    dims: tuple[int, ...] = (32, 64, 128)
    drop_path: float = 0.0
    widths: dict[str, int] = field(default_factory=dict)
    mean: tuple[float, ...] = HALF_MEAN
    std: tuple[float, ...] = HALF_STD
    crop_pct: float = 1.0
    labels: tuple[str, ...] = ()
    domain: str = ""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built. Lists become tuples, so that a configuration read from JSON is equal."""
        tuples(self, "image", "dims", "mean", "std", "labels")
        whole_numbers(self, 1, "channels")
        whole_numbers(self, 0, "classes")
        if not self.dims or not all(whole(x) for x in self.dims):
            refuse(self, "dims", "whole numbers of at least 1", self.dims)
        shared_checks(self)
        choices(self, family="cnn")
        check_widths(self, set())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as config.json holds them."""
        return _plain(asdict(self))


ModelConfig: TypeAlias = VimConfig | MambaVisionConfig | CnnConfig
FAMILIES: dict[str, type[VimConfig] | type[MambaVisionConfig] | type[CnnConfig]] = {
    "vim": VimConfig,
    "mambavision": MambaVisionConfig,
    "cnn": CnnConfig,
}


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Build a configuration from what `to_dict` returned.

    Raises:
        ValueError: The family or a field is unknown, or a value is refused.
    """
    family = values.get("family")
    if family not in FAMILIES:
        raise ValueError(f"config: family must be one of {', '.join(FAMILIES)}, got {family!r}; check config.json")
    kind = FAMILIES[str(family)]
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            raise ValueError(f"{kind.__name__}: unknown field {name!r}{hint}")
    return kind(**values)


def grid_of(image: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """Return rows and columns of patches of a picture."""
    return (image[0] - patch) // stride + 1, (image[1] - patch) // stride + 1


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
