"""The options of the verbs as dataclasses, and command lines generated from them. Importing this imports no torch."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jsonargparse import ArgumentParser

Options = TypeVar("Options", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How pictures are made.

    Attributes:
        negative: What is not wanted in the pictures.
        num: Pictures of each prompt.
        steps: Passes of the model; more is slower.
        seed: Of all random choices: the same seed draws the same pictures on the same machine.
        guidance: How much the prompt counts; 1 is fastest and vaguest.
        guidance_ramp: Let the guidance rise from 1 over the steps.
        sample_temperature: Of the distribution that tokens are drawn from; 0 takes the likeliest.
        mask_temperature: Of the noise on what is settled first; falls to 0.
        top_k: Draw from the k likeliest codes only; 0 from all.
        order: What is settled first.
        model: A run's model/ folder; the shipped model if not given.
        tokenizer: A tokenizer's model/ folder; the shipped one if not given.
        text_encoder: minilm, or the name or folder of the encoder that the model was trained with.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        enlarge: Repeat every pixel so many times on both sides.
        out: Folder for the pictures.
        overwrite: Replace existing files.
        json: Print JSON.
    """

    negative: str | None = None
    num: int = 4
    steps: int = 16
    seed: int = 0
    guidance: float = 3.0
    guidance_ramp: bool = False
    sample_temperature: float = 1.0
    mask_temperature: float = 2.0
    top_k: int = 0
    order: Literal["confidence", "halton", "random"] = "confidence"
    model: Path | None = None
    tokenizer: Path | None = None
    text_encoder: str = "minilm"
    device: str = "auto"
    enlarge: int = 4
    out: Path = Path("out")
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        for name in ("num", "steps", "enlarge"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "guidance", "sample_temperature", "mask_temperature", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')}: must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SamplingOptions):
    """Options of `muse-mamba generate`."""


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(SamplingOptions):
    """Options of `muse-mamba inpaint`.

    Attributes:
        image: The picture.
        mask: White where it shall be drawn anew.
    """

    image: Path | None = None
    mask: Path | None = None

    def __post_init__(self) -> None:
        """Refuse missing pictures."""
        super().__post_init__()
        _needs(self, "image", "mask")


@dataclass(frozen=True, kw_only=True)
class OutpaintOptions(SamplingOptions):
    """Options of `muse-mamba outpaint`.

    Attributes:
        image: The picture.
        share: Side of the picture as a share of the result's side.
    """

    image: Path | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse missing pictures and shares that leave nothing to draw."""
        super().__post_init__()
        _needs(self, "image")
        if not 0 < self.share < 1:
            raise ValueError(f"--share: must be between 0 and 1, got {self.share}")


@dataclass(frozen=True, kw_only=True)
class VariationOptions(SamplingOptions):
    """Options of `muse-mamba variation`.

    Attributes:
        image: The picture.
        strength: Share of the picture that is drawn anew.
    """

    image: Path | None = None
    strength: float = 0.6

    def __post_init__(self) -> None:
        """Refuse missing pictures and strengths without a meaning."""
        super().__post_init__()
        _needs(self, "image")
        if not 0 < self.strength <= 1:
            raise ValueError(f"--strength: must be above 0 and at most 1, got {self.strength}")


def _needs(options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing; give a picture")
        if not getattr(options, name).is_file():
            raise ValueError(f"--{name}: must be a picture, {getattr(options, name)} is no file; check the path")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of `muse-mamba encode`.

    Attributes:
        out: New or empty folder for the packed pictures and captions.
        data: Folder of pictures, or emoji-stamps (openmoji, Noto emoji and stamps); openmoji alone if not given.
        root: Where Debian's packages are installed, or unpacked with dpkg -x.
        size: Side of drawings in pixels.
        text_encoder: minilm, or the name or folder of an encoder of transformers.
        text_length: Most tokens of a caption.
        tokenizer: A tokenizer's model/ folder to carry along.
        no_perceptual: Leave out the backbone of the perceptual loss.
        json: Print JSON.
    """

    out: Path | None = None
    data: str | None = None
    root: Path = Path("/")
    size: int = 64
    text_encoder: str = "minilm"
    text_length: int = 24
    tokenizer: Path | None = None
    no_perceptual: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be packed."""
        if self.out is None:
            raise ValueError("--out is missing; give a new folder")
        if self.size < 8 or self.text_length < 1:
            raise ValueError(f"--size: must be at least 8 and --text-length 1, got {self.size} and {self.text_length}")


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `muse-mamba info`.

    Attributes:
        preset: The model or tokenizer.
        method: How text is mixed in.
        json: Print JSON.
    """

    preset: str = "study"
    method: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `muse-mamba benchmark`.

    Attributes:
        methods: Names separated by commas, or all.
        preset: The model whose sizes are timed; weights are random.
        lengths: Image tokens, squares separated by commas.
        batch: Pictures at a time.
        steps: Passes of the model per picture.
        repeats: Timed runs after one to warm up; the median counts.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        precision: Of the arithmetic.
        out: File for the JSON rows.
        overwrite: Replace it.
        json: Print JSON.
    """

    methods: str = "transformer,mamba-xattn,attn-xz,mamba2-xattn"
    preset: str = "study"
    lengths: str = "64,256,1024"
    batch: int = 4
    steps: int = 8
    repeats: int = 3
    device: str = "auto"
    precision: Literal["no", "bf16"] = "no"
    out: Path | None = None
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        for name in ("batch", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of `muse-mamba study`.

    Attributes:
        out: Folder of the study; every run has a folder in it.
        data: Packed folder with a tokenizer in it.
        tokenizer: A tokenizer's model/ folder; that of the data if not given.
        methods: Names separated by commas, or all.
        seeds: Numbers separated by commas.
        steps: Of every run.
        parallel: Runs side by side on one device.
        minutes: Start no further run after so many; what is left is done when the command is given again.
        recipe: Named run whose sizes are used.
        prompts: Held-out captions that are drawn and judged.
        report_only: Train nothing; write table, plot and sheet of what is there.
        extra: Fields for every run, as in "--model.direction causal"; in quotes.
    """

    out: Path | None = None
    data: str | None = None
    tokenizer: Path | None = None
    methods: str = "all"
    seeds: str = "0,1"
    steps: int = 6_000
    parallel: int = 4
    minutes: float | None = None
    recipe: str = "study"
    prompts: int = 50
    report_only: bool = False
    extra: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.out is None:
            raise ValueError("--out is missing; give the folder of the study")
        for name in ("steps", "parallel", "prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `muse-mamba evaluate`.

    Attributes:
        data: Packed folder, or folder of pictures with captions, that the pictures are compared with.
        split: Which of its pictures: those held out, looked at in training, or trained on.
        model: A run's model/ folder; the shipped model if not given.
        tokenizer: A tokenizer's model/ folder; the shipped one if not given.
        tokenizer_only: Measure reconstructions instead of generated pictures.
        sizes: Sides in pixels for reconstructions, separated by commas.
        num: Most pictures; 0 for all.
        steps: Passes of the model per picture.
        guidance: How much captions count.
        seed: Of all random choices.
        text_encoder: Of captions that are not packed.
        inception: Weights of the Inception network of FID; without them there is no FID.
        clip: Folder of a CLIP model for the CLIP score; without it there is none.
        no_features: Leave out everything that needs EfficientNet-Lite0.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        out: File for the JSON; printed if not given.
        overwrite: Replace it.
    """

    data: str | None = None
    split: Literal["held-out", "validation", "train"] = "held-out"
    model: Path | None = None
    tokenizer: Path | None = None
    tokenizer_only: bool = False
    sizes: str = "64"
    num: int = 0
    steps: int = 16
    guidance: float = 3.0
    seed: int = 0
    text_encoder: str = "minilm"
    inception: Path | None = None
    clip: Path | None = None
    no_features: bool = False
    device: str = "auto"
    out: Path | None = None
    overwrite: bool = False


def parse_options(
    verb: str,
    argv: Sequence[str],
    options: type[Options],
    *,
    description: str,
    positional: tuple[str, str, str] | None = None,
) -> tuple[Options, Any]:
    """Parse the arguments of a verb.

    Args:
        verb: For the usage line.
        argv: Arguments after the verb.
        options: Dataclass; every field is an option `--name` of its type, help and default (a switch if boolean).
        description: First lines of the help.
        positional: Name, number ("*" or "?") and help of the arguments without a name; if the name is a field it sets
            that field.

    Returns:
        The options, and the positional value where its name is no field (else None).

    Raises:
        ValueError: Anything is wrong, in one line. `--help` prints and raises SystemExit(0).
    """
    hints = get_type_hints(options)
    parser = _make_parser(verb, description, hints)
    helps = _attribute_helps(options)
    if positional is not None:
        name, number, text = positional
        parser.add_argument(name, nargs=number, type=str, help=text)
    own = get_annotations(options)
    ordered = sorted(fields(options), key=lambda f: f.name not in own)  # before those that it shares with other verbs
    for f in ordered:
        if positional is not None and f.name == positional[0]:
            continue
        flag = "--" + f.name.replace("_", "-")
        if hints[f.name] is bool:
            parser.add_argument(flag, action="store_true", help=helps[f.name])
        else:
            assert f.default is not MISSING
            text = helps[f.name] if f.default is None else f"{helps[f.name]} Default: {f.default}."
            parser.add_argument(flag, type=hints[f.name], default=f.default, help=text, metavar=_metavar(hints[f.name]))
    names = [f.name for f in ordered]
    values = parser.parse_args(_with_dashes(argv)).as_dict()
    chosen = {name: values[name] for name in names if name in values and values[name] is not None}
    rest = values[positional[0]] if positional is not None and positional[0] not in names else None
    return options(**chosen), rest


def _with_dashes(argv: Sequence[str]) -> list[str]:
    """Accept --top_k for --top-k, as the fields are called in the trainer's files; texts stay as they are."""
    flags = [item.partition("=") for item in argv]
    return [(a.replace("_", "-") if a.startswith("--") and " " not in a else a) + equals + b for a, equals, b in flags]


def _make_parser(verb: str, description: str, hints: dict[str, Any]) -> ArgumentParser:
    from argparse import HelpFormatter

    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(_one_line(message, hints)) from ex

    return OneLineParser(prog=f"muse-mamba {verb}", description=description, formatter_class=HelpFormatter)


def _one_line(message: str, hints: dict[str, Any]) -> str:
    """Say what an option must be, instead of the parser's lines about types."""
    text = " ".join(message.split())
    key, value = _between(text, 'Parser key "', '"'), text.rpartition(": ")[2]
    if key in hints:
        return f"--{key.replace('_', '-')}: must be {_wanted(hints[key])}, got {value}"
    return f"{text}; see --help"


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


def _metavar(hint: Any) -> str | None:
    """Name the value in the help: choices spelled out, else the kind."""
    kinds = {Path: "PATH", int: "N", float: "X", str: "NAME"}
    if get_origin(hint) is Literal:
        return "{" + ",".join(str(x) for x in get_args(hint)) + "}"
    if get_origin(hint) in (Union, types.UnionType):
        return "|".join(_metavar(part) or "" for part in get_args(hint) if part is not type(None))
    return kinds.get(hint)


def _wanted(hint: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(x) for x in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_wanted(part) for part in get_args(hint) if part is not type(None))
    return plain.get(hint, str(hint))


def _attribute_helps(options: type) -> dict[str, str]:
    """Read the help of every field from the docstrings of the class and its bases."""
    from docstring_parser import parse

    helps: dict[str, str] = {}
    for base in reversed(options.__mro__[:-1]):
        for item in parse(base.__doc__ or "").params:
            helps[item.arg_name] = " ".join((item.description or "").split())
    return helps
