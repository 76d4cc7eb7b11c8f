"""The command line and YAML file of the trainer, generated from `TrainConfig`. Importing this does not import torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import ModelConfig
from .recipes import RECIPES, TrainConfig, recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USAGE = "hybrid-sr train PRESET --out DIR [--resume] [--scale N] [--config FILE] [--field value ...]"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for: the run, where it goes, and whether it goes on."""

    config: TrainConfig
    out: Path
    resume: bool


def parse(argv: Sequence[str] | None = None) -> Order:
    """Read the command line; `--help` and `--print_config` print and exit 0, every mistake is one line and exit 2.

    Args:
        argv: Arguments after the program's name; None takes the process's.
    """
    arguments = _spell_out_switches(list(sys.argv[1:] if argv is None else argv))
    try:
        name, base = _base(arguments)
        parser = _parser(name, base)
        values = parser.parse_args(arguments).as_dict()
        return _order(values, name, base)
    except ValueError as mistake:
        fail(mistake)


def fail(mistake: object, code: int = 2) -> NoReturn:
    """Print one line on stderr and exit."""
    line = " ".join(str(mistake).split())
    print(f"hybrid-sr train: {line}", file=sys.stderr)
    raise SystemExit(code)


def _spell_out_switches(arguments: list[str]) -> list[str]:
    """Let `--compile` alone mean `--compile true`, for every yes-or-no field of `TrainConfig`."""
    switches = {f"--{f.name}" for f in fields(TrainConfig) if f.type == "bool"}
    spelled = []
    for place, argument in enumerate(arguments):
        spelled.append(argument)
        if argument in switches and arguments[place + 1 : place + 2] not in (["true"], ["false"]):
            spelled.append("true")
    return spelled


def _base(arguments: list[str]) -> tuple[str | None, TrainConfig | None]:
    """Return the preset's name and the run whose values are the defaults; None if only `--help` is asked for."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--scale"):
        scout.add_argument(option)
    scout.add_argument("--help", "-h", action="store_true")
    try:
        found, _ = scout.parse_known_args(arguments)
    except argparse.ArgumentError as mistake:
        raise ValueError(str(mistake)) from mistake
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    scale = found.scale
    if found.config is not None:
        file = _read_yaml(found.config)
        name = name or file.get("preset")
        scale = scale or file.get("scale") or _mapping(file.get("model")).get("scale")
    if name is None:
        if found.help:
            return None, None
        known = ", ".join(RECIPES)
        raise ValueError(
            f"the preset is missing; give it first, one of {known}, as in: hybrid-sr train tiny --out runs/a"
        )
    if scale is not None and not str(scale).isdigit():
        raise ValueError(f"--scale must be a whole number, got {scale}; 2, 3 and 4 are usual")
    return name, recipe(name) if scale is None else recipe(name, int(scale))


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        return _mapping(yaml.safe_load(Path(path).read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _parser(name: str | None, base: TrainConfig | None) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            fail(f"{message}; see hybrid-sr train --help")

    parser = OneLineParser(prog="hybrid-sr train", usage=USAGE, description="Train a super-resolution network.")
    described = f"named run whose values the rest changes: {', '.join(RECIPES)}"
    parser.add_argument("preset", nargs="?", default=name, help=described)
    parser.add_argument("--config", action="config", help="YAML file, as --print_config writes it")
    parser.add_argument("--out", help="folder of the run; a new or empty one without --resume")
    parser.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint in --out")
    parser.add_argument("--scale", type=int, help="upscaling factor of the preset, 4 if not given")
    parser.add_class_arguments(TrainConfig, None)
    if base is not None:
        parser.set_defaults(base.to_dict())
    return parser


def _order(values: dict[str, Any], name: str | None, base: TrainConfig | None) -> Order:
    if base is None or not values["out"]:
        raise ValueError("--out is missing; give the folder of the run, as in --out runs/a")
    if values["preset"] not in (None, name):
        raise ValueError(f"the preset {values['preset']} must come first, as in: hybrid-sr train tiny --out runs/a")
    scale, model = values["scale"], ModelConfig.from_dict(values["model"])
    if scale is not None and scale != model.scale:
        raise ValueError(f"--scale {scale} contradicts model.scale {model.scale} of the file; give one of them")
    chosen = {f.name: values[f.name] for f in fields(TrainConfig) if f.name != "model"}
    return Order(config=TrainConfig(model=model, **chosen), out=Path(values["out"]), resume=values["resume"])
