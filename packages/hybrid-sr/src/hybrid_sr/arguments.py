"""The options of the verbs as dataclasses, and command lines generated from them. Importing this imports no torch."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from .config import DEFAULT_PRESET, PRESETS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jsonargparse import ArgumentParser

Options = TypeVar("Options", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which network runs, where and how.

    Attributes:
        scale: Upscaling factor; weights for 2 and 4 ship, 3 is 4 made smaller unless weights are given.
        weights: A run's model/ folder, a .safetensors file or a published .pth; the shipped weights if not given.
        preset: Network of a weights file that does not say, or of the shipped weights.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        precision: Of the network's arithmetic.
        tile: Largest side of a tile in input pixels (a multiple of 16), "full" for whole pictures, "auto" by memory.
        overlap: Pixels that neighbouring tiles share (a multiple of 16).
        self_ensemble: Average over 8 flips and turns: a little better, 8 times slower.
        max_megapixels: Refuse larger input pictures.
        json: Print JSON.
    """

    scale: Literal[2, 3, 4] = 4
    weights: Path | None = None
    preset: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tile: int | Literal["auto", "full"] = "auto"
    overlap: int = 32
    self_ensemble: bool = False
    max_megapixels: float = 128.0
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what no picture can change."""
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"--preset: must be one of {', '.join(PRESETS)}, got {self.preset}")
        if not self.max_megapixels > 0:
            raise ValueError(f"--max-megapixels: must be above 0, got {self.max_megapixels:g}")
        if isinstance(self.tile, int) and (self.tile < 64 or self.tile % 16):
            raise ValueError(f"--tile: must be a multiple of 16, at least 64, or auto or full, got {self.tile}")
        if self.overlap < 0 or self.overlap % 16 or (isinstance(self.tile, int) and self.overlap > self.tile // 2):
            raise ValueError(f"--overlap: must be a multiple of 16, at most half a tile, got {self.overlap}")


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions(NetworkOptions):
    """Options of `hybrid-sr upscale`.

    Attributes:
        out: Folder for the results, or a file for a single picture; else beside the picture (FOLDER_x4 for a folder).
        format: Of the results; "same" keeps the format of every input. PNG and TIFF keep 16 bits.
        overwrite: Replace existing files.
        sample: Instead of your own picture: make a packaged photo (coffee, astronaut, china, ...) small, upscale it,
            and compare with the original.
        original: The true high-resolution picture of a single input; prints the gain over bicubic.
        compare: Also write an .html page for a single input: bicubic and the result under a bar that is dragged.
        backend: What runs the network; onnxruntime takes an .onnx file of `hybrid-sr export` as --weights.
        compile: Run the network through torch.compile, for many pictures: it takes minutes before the first one.
    """

    out: Path | None = None
    format: Literal["png", "jpg", "webp", "tiff", "same"] = "png"
    overwrite: bool = False
    sample: str | None = None
    original: Path | None = None
    compare: bool = False
    backend: Literal["torch", "onnxruntime"] = "torch"
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuse what an ONNX file cannot do."""
        super().__post_init__()
        if self.backend == "onnxruntime" and self.compile:
            raise ValueError("--compile: must go with --backend torch, got onnxruntime; leave one of them out")
        if self.backend == "onnxruntime" and (self.precision != "fp32" or self.device not in ("auto", "cpu")):
            raise ValueError(
                f"--backend onnxruntime: runs in fp32 on the CPU, got --precision {self.precision} --device "
                f"{self.device}; leave both out"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(NetworkOptions):
    """Options of `hybrid-sr evaluate`.

    Attributes:
        data: Folder of high-resolution pictures; else the photos that installed packages carry.
        lr: Folder of ready-made low-resolution pictures of the same names; else made by MATLAB bicubic.
        set: One set of packaged photos.
    """

    data: Path | None = None
    lr: Path | None = None
    set: Literal["scikit-image", "scikit-learn", "foolbox"] | None = None


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `hybrid-sr info`.

    Attributes:
        preset: The network.
        scale: Upscaling factor.
        height: Rows of the input picture that operations are counted for.
        width: Columns of it.
        weights: Instead: say name by name what a .safetensors or .pth file holds, ours or published.
        json: Print JSON.
    """

    preset: str = DEFAULT_PRESET
    scale: int = 4
    height: int = 192
    width: int = 320
    weights: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `hybrid-sr benchmark`.

    Attributes:
        preset: The network; its weights are random, which does not change the speed.
        scale: Upscaling factor.
        height: Rows of the input picture.
        width: Columns of it.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        precision: Of the network's arithmetic.
        repeats: Timed runs after one to warm up; the median counts.
        json: Print JSON.
    """

    preset: str = DEFAULT_PRESET
    scale: int = 4
    height: int = 180
    width: int = 320
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    repeats: int = 5
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes without a pixel."""
        for name in ("height", "width", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")


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
    """Accept --self_ensemble for --self-ensemble, as the fields are called in the trainer's files."""
    flags = [item.partition("=") for item in argv]
    return [(a.replace("_", "-") if a.startswith("--") else a) + equals + b for a, equals, b in flags]


def _make_parser(verb: str, description: str, hints: dict[str, Any]) -> ArgumentParser:
    from argparse import HelpFormatter

    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(_one_line(message, hints)) from ex

    return OneLineParser(prog=f"hybrid-sr {verb}", description=description, formatter_class=HelpFormatter)


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
