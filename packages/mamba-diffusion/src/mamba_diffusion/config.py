"""What a network is made of: one frozen dataclass, and the named networks as functions.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

Kind = Literal["v1", "v2", "v4", "ours"]
Mixer = Literal["legacy", "mamba", "mamba2"]
Order = Literal["given", "hilbert"]
Smoothness = Literal["rough", "medium", "smooth", "mixed"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a network's parameters and its output. Lengths are shares of the domain's side.

    Attributes:
        kind: "v1" (forward stack, one cross-attention), "v2" (forward and backward stacks, perceiver), "v4" (a
            transformer in place of v1's stack), or "ours".
        channels: C of the field.
        dims: Coordinates: 1, 2 or 3.
        width: Width of a token.
        layers: Of the stack; v2 takes half of them in each direction, so an even number.
        mixer: Of v1 and v2: the origin's linear time-invariant block ("legacy"), or real selective Mamba-1 or
            Mamba-2 layers. "ours" always has bidirectional Mamba-1 layers.
        heads: Of every attention.
        iterations: Of the perceiver (v2), or of the decoder (ours).
        d_state: State variables per channel.
        fourier: Random frequencies of the coordinate features.
        fourier_std: Their standard deviation, cycles per domain.
        fourier_cap: Largest frequency, cycles per domain; None for none.
        dropout: In every feed-forward part; the attentions of v1, v2 and v4 have it too.
        order: Tokens as they are given, or along a Hilbert curve, in training and in inference.
        standardise: Bring every channel to mean 0, standard deviation 1 of the training data, stored with the weights.
        periodic: Which axes wrap around, in the order of the coordinates; empty for none.
        latents: Of ours.
        neighbours: Sensors that a query looks at directly, and that its kriging uses.
        anchor_neighbours: Anchors (noisy points) that a query looks at directly.
        anchors: Most noisy points that all others see; with more queries, those evenly spread along the curve.
        smoothness: Of the Matern covariance whose kriging ours starts from: rough 1/2, medium 3/2, smooth 5/2; mixed
            weighs rough and medium by how well either predicts the sensors from each other.
        length: Its correlation length.
        nugget: Of the kriging, relative to the variance; a tenth of it for the medium one of mixed.
        noise_length: Correlation length of the starting noise; 0 makes it white.
        unit: Of the values it was trained on, taken from the data; empty for pictures in [0, 1].
    """

    kind: Kind = "ours"
    channels: int = 3
    dims: int = 2
    width: int = 96
    layers: int = 3
    mixer: Mixer = "mamba"
    heads: int = 6
    iterations: int = 2
    d_state: int = 16
    fourier: int = 32
    fourier_std: float = 3.0
    fourier_cap: float | None = 8.0
    dropout: float = 0.0
    order: Order = "hilbert"
    standardise: bool = True
    periodic: tuple[bool, ...] = ()
    latents: int = 64
    neighbours: int = 16
    anchor_neighbours: int = 8
    anchors: int = 1024
    smoothness: Smoothness = "mixed"
    length: float = 0.5
    nugget: float = 1e-3
    noise_length: float = 0.02
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse values that cannot be built. Lists become tuples, so that a configuration from JSON is equal."""
        if isinstance(self.periodic, list):
            object.__setattr__(self, "periodic", tuple(self.periodic))
        for name, kind in (("kind", Kind), ("mixer", Mixer), ("order", Order), ("smoothness", Smoothness)):
            if getattr(self, name) not in get_args(kind):
                _refuse(name, f"one of {', '.join(get_args(kind))}", getattr(self, name))
        self._check_numbers()
        if self.kind == "v2" and self.layers % 2:
            wanted = "even, half of them run forward and half backward"
            _refuse("layers", wanted, self.layers, f"take {self.layers - 1} or {self.layers + 1}")
        if self.kind == "ours" and self.mixer != "mamba":
            _refuse("mixer", "mamba for kind='ours'", self.mixer, "v1 and v2 have the others")
        if self.width % self.heads:
            _refuse("width", f"a multiple of heads={self.heads}", self.width, "change width or heads")
        if self.kind != "ours" and self.width % 2:
            _refuse("width", "even", self.width, "the time embedding is half sine, half cosine")
        if self.periodic and len(self.periodic) != self.dims:
            _refuse("periodic", f"empty or one value an axis, {self.dims}", self.periodic)

    def _check_numbers(self) -> None:
        for name in ("channels", "width", "layers", "heads", "iterations", "d_state", "fourier", "neighbours"):
            _whole(name, getattr(self, name), 1)
        for name, least in (("latents", 1), ("anchor_neighbours", 1), ("anchors", 1), ("dims", 1)):
            _whole(name, getattr(self, name), least)
        if self.dims > 3:
            _refuse("dims", "1, 2 or 3", self.dims)
        for name in ("fourier_std", "length", "nugget"):
            if not getattr(self, name) > 0:
                _refuse(name, "above 0", getattr(self, name))
        if self.noise_length < 0 or not 0 <= self.dropout < 1:
            name = "noise_length" if self.noise_length < 0 else "dropout"
            _refuse(name, "at least 0" if name == "noise_length" else "in [0, 1)", getattr(self, name))
        if self.fourier_cap is not None and not self.fourier_cap > 0:
            _refuse("fourier_cap", "above 0, or None", self.fourier_cap)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each axis is periodic."""
        return self.periodic or (False,) * self.dims

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as `config.json` holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from what `to_dict` returned.

        Raises:
            ValueError: A field is unknown, or a value is refused.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
                raise ValueError(f"ModelConfig: unknown field {name!r}{hint}")
        return cls(**values)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        _refuse(name, f"a whole number of at least {least}", value)


def _refuse(name: str, wanted: str, found: object, remedy: str = "") -> None:
    raise ValueError(f"ModelConfig: {name} must be {wanted}, got {found}; {remedy or f'change {name}'}")


def _seed(kind: Kind, *, width: int, layers: int, mixer: Mixer = "mamba", order: Order = "hilbert") -> ModelConfig:
    """Front end, heads and dropout that the seed's models share; raw values in [0, 1] only for the legacy ones."""
    return ModelConfig(
        kind=kind,
        width=width,
        layers=layers,
        mixer=mixer,
        heads=8,
        fourier=256,
        fourier_std=10.0,
        fourier_cap=None,
        dropout=0.1,
        order=order,
        standardise=mixer != "legacy",
        noise_length=0.0,
    )


def v1_legacy() -> ModelConfig:
    """The origin's V1: six time-invariant blocks forward, one cross-attention without a residual. 28,574,819."""
    return _seed("v1", width=512, layers=6, mixer="legacy", order="given")


def v2_legacy() -> ModelConfig:
    """The origin's V2: four such blocks forward, four backward, a perceiver of two iterations. 10,930,563."""
    return _seed("v2", width=256, layers=8, mixer="legacy", order="given")


def v1() -> ModelConfig:
    """V1 with real selective Mamba layers. 13,328,387."""
    return _seed("v1", width=512, layers=6)


def v2() -> ModelConfig:
    """V2 with real selective Mamba layers, 4 forward and 4 backward. 5,878,019."""
    return _seed("v2", width=256, layers=8)


def v2_mamba2() -> ModelConfig:
    """V2 with Mamba-2 layers: one decay a head, 64 state variables."""
    return ModelConfig.from_dict({**v2().to_dict(), "mixer": "mamba2", "d_state": 64})


def v4() -> ModelConfig:
    """The transformer baseline: six pre-norm layers in place of V1's stack. 5,662,211."""
    return _seed("v4", width=256, layers=6)


def v4_small() -> ModelConfig:
    """A transformer like V4 with as many parameters as `ours` (971,139), for the benchmark. 976,387."""
    return ModelConfig.from_dict({**v4().to_dict(), "width": 128, "layers": 4, "fourier": 32})


def ours() -> ModelConfig:
    """Kriging first, then a flow for what it misses: Hilbert order, AdaLN, latents, cost linear in the queries."""
    return ModelConfig()


def ours_scalar() -> ModelConfig:
    """`ours` for one smooth channel, such as a temperature."""
    return ModelConfig(channels=1)


def tiny() -> ModelConfig:
    """A network for tests and first tries: every part of `ours`, 16 channels wide."""
    return ModelConfig(
        width=16, layers=1, heads=2, iterations=1, d_state=4, fourier=4, latents=4, neighbours=6, anchor_neighbours=4
    )


def tiny_v2() -> ModelConfig:
    """`v2` for tests and first tries."""
    small = {"width": 16, "layers": 2, "heads": 2, "iterations": 1, "d_state": 4, "fourier": 8, "dropout": 0.0}
    return ModelConfig.from_dict({**v2().to_dict(), **small, "fourier_std": 3.0})


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "ours": ours,
    "ours-scalar": ours_scalar,
    "v1": v1,
    "v2": v2,
    "v2-mamba2": v2_mamba2,
    "v4": v4,
    "v4-small": v4_small,
    "v1-legacy": v1_legacy,
    "v2-legacy": v2_legacy,
    "tiny": tiny,
    "tiny-v2": tiny_v2,
}
DEFAULT_PRESET = "ours"
SEED_CLAIMS = {"v1-legacy": 15_000_000, "v1": 15_000_000, "v2-legacy": 7_000_000, "v2": 7_000_000}


def preset(name: str) -> ModelConfig:
    """Return the configuration of a named network.

    Raises:
        ValueError: No such name; the message lists them.
    """
    if name not in PRESETS:
        close = get_close_matches(name.lower().replace("_", "-"), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"preset: unknown name {name!r}; {hint}known are {', '.join(PRESETS)}")
    return PRESETS[name]()
