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
class ClassifyOptions:
    """Options of `vim-compress classify`.

    Attributes:
        weights: A run's model/ folder, what `prune` wrote, the name of shipped weights, or a file; default: shipped.
        preset: Network of a weights file that does not say.
        classes: Text file with one class a line, for weights that do not name theirs.
        best: Classes that are listed.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        json: Print JSON.
    """

    weights: Path | None = None
    preset: str | None = None
    classes: Path | None = None
    best: int = 3
    device: str = "auto"
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        _at_least("best", self.best, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `vim-compress evaluate`.

    Attributes:
        weights: As for classify.
        preset: Network of a weights file that does not say.
        masks: File of masks that the weights are evaluated under.
        data: As for train: a folder of classes, a packed file, fashion-mnist; default: the emoji that are held out.
        quantize: Evaluate with smaller numbers in the matrix products; fp8 and 2:4 need a GPU.
        merge: Share of the tokens of a Vim that is merged away after each of merge_layers, at most 0.5.
        merge_layers: Blocks, separated by commas; default: every third.
        device: auto, cpu, cuda, ...
        json: Print JSON.
    """

    weights: Path | None = None
    preset: str | None = None
    masks: Path | None = None
    data: str | None = None
    quantize: Literal["none", "int8-weights", "int8", "fp8", "2:4"] = "none"
    merge: float = 0.0
    merge_layers: str | None = None
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Options of `vim-compress prune`.

    Attributes:
        weights: The trained network: a run's model/ folder, the name of shipped weights, or a file.
        preset: Network of a weights file that does not say.
        out: New folder for the smaller network.
        target: parameters, macs or latency with a value: latency=0.5x, latency=12ms, macs=0.9G, parameters=3.5M.
        axes: Kinds of axes to cut, separated by commas (vim: inner, state, or alone one of blocks, directions,
            residual; mambavision: inner, hidden, heads, x, z).
        importance: What decides which units go; taylor needs data.
        spread: The same share of every axis, or the most important units of all.
        multiple: Sizes are rounded up to a multiple of this; 0 takes 16 channels, 2 states, 1 head.
        data: Pictures for taylor, as for train.
        batches: Of 64 pictures each, for taylor.
        batch: Pictures at a time when latency is measured.
        device: Where latency is measured: auto, cpu, cuda, ...
        precision: In which it is measured.
        repeats: Timed runs; the median counts.
        json: Print JSON.
        overwrite: Replace the folder.
    """

    weights: Path | None = None
    preset: str | None = None
    out: Path | None = None
    target: str = "parameters=0.5x"
    axes: str | None = None
    importance: Literal["magnitude", "taylor", "gates", "random"] = "magnitude"
    spread: Literal["uniform", "global"] = "uniform"
    multiple: int = 0
    data: str | None = None
    batches: int = 8
    batch: int = 32
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    repeats: int = 10
    json: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for name in ("batches", "batch", "repeats"):
            _at_least(name, getattr(self, name), 1)
        _at_least("multiple", self.multiple, 0)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `vim-compress export`.

    Attributes:
        weights: As for classify.
        preset: Network of a weights file that does not say.
        out: File ending in .onnx, .pt2 (torch.export) or .safetensors; or a new folder, for config.json and weights in
            half precision, as they ship.
        batch: Pictures at a time; 0 leaves it open.
        overwrite: Replace the file or folder.
    """

    weights: Path | None = None
    preset: str | None = None
    out: Path | None = None
    batch: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `vim-compress report`.

    Attributes:
        run: Folder of a training run, or of a study.
        out: HTML file; default: report.html in that folder.
        overwrite: Replace the file.
    """

    run: str | None = None
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of `vim-compress study`.

    Attributes:
        out: Folder of the study; what is done in it is not done again.
        rows: Experiments, separated by commas; all of them if not given (--rows list names them).
        data: As for train; fashion-mnist if not given.
        recipe: Named run that every row shares.
        steps: Of each training, instead of the recipe's.
        global_batch: Pictures per step, instead of the recipe's.
        workers: Loader processes of each row, instead of the recipe's.
        seeds: Repetitions of every row.
        first_seed: Of the first repetition; the others follow it.
        jobs: Rows that run side by side.
        max_minutes: Stop after this many minutes with what is done by then; None sets no limit.
        json: Print JSON.
    """

    out: Path | None = None
    rows: str | None = None
    data: str | None = None
    recipe: str = "study"
    steps: int | None = None
    global_batch: int | None = None
    workers: int | None = None
    seeds: int = 2
    first_seed: int = 10
    jobs: int = 1
    max_minutes: float | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for name in ("seeds", "jobs"):
            _at_least(name, getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `vim-compress info`.

    Attributes:
        network: A preset, a folder with a saved network, or the name of weights that ship.
        height: Rows of the picture that operations are counted for; 0 takes the network's.
        width: Columns of it.
        json: Print JSON.
    """

    network: str = "vim_tiny_patch16_224"
    height: int = 0
    width: int = 0
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `vim-compress benchmark`.

    Attributes:
        network: A preset, a folder with a saved network, or a name in timm's registry; several separated by commas.
        sizes: Sides of square pictures, separated by commas, each optionally with its batch: 224:256,1248:8.
        batch: Pictures at a time where `sizes` does not say.
        keep: Also time each Vim with this share of its inner channels, cut and masked; 0 does not.
        attention: Also time each MambaVision with attention across its windows: some of shifted, band, neighbourhood,
            separated by commas.
        mixer: Also time each Vim and MambaVision with other state-space models in its blocks: some of mamba2, s4, s4d,
            s5, separated by commas.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, ...
        precision: Of weights and activations.
        modes: Of running, separated by commas: eager, graph (CUDA graph), compiled.
        repeats: Timed runs after two to warm up; the median counts.
        out: Also write the JSON to this file.
        overwrite: Replace the file.
        json: Print JSON.
    """

    network: str = "vim_tiny_patch16_224"
    sizes: str | None = None
    batch: int = 32
    keep: float = 0.0
    attention: str = ""
    mixer: str = ""
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    modes: str = "eager"
    repeats: int = 10
    out: Path | None = None
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        for name in ("batch", "repeats"):
            _at_least(name, getattr(self, name), 1)
        if not 0 <= self.keep < 1:
            raise ValueError(f"--keep: must be in [0, 1), got {self.keep}")
        _among("modes", self.modes, "eager", "graph", "compiled")
        if self.attention:
            _among("attention", self.attention, "shifted", "band", "neighbourhood")
        if self.mixer:
            _among("mixer", self.mixer, "mamba2", "s4", "s4d", "s5")


def _among(name: str, value: str, *known: str) -> None:
    unknown = sorted(set(value.split(",")) - set(known))
    if unknown:
        raise ValueError(f"--{name}: must be among {', '.join(known)}, got {', '.join(map(repr, unknown))}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"--{name}: must be at least {least}, got {value}")


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
    """Accept --with_lines for --with-lines, as the fields are called in the trainer's files."""
    flags = [item.partition("=") for item in argv]
    return [(a.replace("_", "-") if a.startswith("--") else a) + equals + b for a, equals, b in flags]


def _make_parser(verb: str, description: str, hints: dict[str, Any]) -> ArgumentParser:
    from argparse import HelpFormatter

    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(_one_line(message, hints)) from ex

    return OneLineParser(prog=f"vim-compress {verb}", description=description, formatter_class=HelpFormatter)


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
