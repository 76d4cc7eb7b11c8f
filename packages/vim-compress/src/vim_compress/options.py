"""The command line and YAML file of the trainer, generated from `TrainConfig`. Importing this does not import torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import ModelConfig, config_from_dict
from .recipes import RECIPES, TrainConfig, recipe
from .sparsity import SparsityConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USAGE = "vim-compress train PRESET --out DIR [--resume] [--from FOLDER] [--config FILE] [--field value ...]"


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
    print(f"vim-compress train: {line}", file=sys.stderr)
    raise SystemExit(code)


def _spell_out_switches(arguments: list[str]) -> list[str]:
    """Let `--compile` alone mean `--compile true`, for every yes-or-no field."""
    switches = {f"--{f.name}" for f in fields(TrainConfig) if f.type == "bool"}
    switches |= {f"--sparsity.{f.name}" for f in fields(SparsityConfig) if f.type == "bool"}
    spelled = []
    for place, argument in enumerate(arguments):
        spelled.append(argument)
        if argument in switches and arguments[place + 1 : place + 2] not in (["true"], ["false"]):
            spelled.append("true")
    return spelled


def _base(arguments: list[str]) -> tuple[str | None, TrainConfig | None]:
    """Return the preset's name and the run whose values are the defaults; None if only `--help` is asked for."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("--config")
    scout.add_argument("--from")
    scout.add_argument("--help", "-h", action="store_true")
    try:
        found, _ = scout.parse_known_args(arguments)
    except argparse.ArgumentError as mistake:
        raise ValueError(str(mistake)) from mistake
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if found.config is not None:
        name = name or _read_yaml(found.config).get("preset")
    if name is None:
        if found.help:
            return None, None
        known = ", ".join(RECIPES)
        raise ValueError(
            f"the preset is missing; give it first, one of {known}, as in: vim-compress train tiny --out runs/a"
        )
    base, saved = recipe(name), vars(found)["from"]
    if saved is None:
        return name, base
    from .weights import shipped, shipped_models

    folder = shipped(saved) if not Path(saved).exists() and saved in shipped_models() else Path(saved)
    return name, replace(base, model=_saved_config(folder), init=str(folder))


def _saved_config(folder: Path) -> ModelConfig:
    try:
        return config_from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--from {folder} is no folder of a saved network: {error}; give a model/ folder") from error


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
            fail(f"{message}; see vim-compress train --help")

    parser = OneLineParser(prog="vim-compress train", usage=USAGE, description="Train a classifier.")
    described = f"named run whose values the rest changes: {', '.join(RECIPES)}"
    parser.add_argument("preset", nargs="?", default=name, help=described)
    parser.add_argument("--config", action="config", help="YAML file, as --print_config writes it")
    parser.add_argument("--out", help="folder of the run; a new or empty one without --resume")
    parser.add_argument("--from", help="folder of a saved network, or name of weights that ship: what to start with")
    parser.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint in --out")
    parser.add_class_arguments(TrainConfig, None, skip={"model", "sparsity"})
    parser.add_class_arguments(SparsityConfig, "sparsity")
    if base is not None:
        parser.add_class_arguments(type(base.model), "model")
        parser.set_defaults(base.to_dict())
    return parser


def _order(values: dict[str, Any], name: str | None, base: TrainConfig | None) -> Order:
    if base is None or not values["out"]:
        raise ValueError("--out is missing; give the folder of the run, as in --out runs/a")
    if values["preset"] not in (None, name):
        raise ValueError(f"the preset {values['preset']} must come first, as in: vim-compress train tiny --out runs/a")
    parts = {"model": config_from_dict(values["model"]), "sparsity": SparsityConfig(**values["sparsity"])}
    chosen = {f.name: values[f.name] for f in fields(TrainConfig) if f.name not in parts}
    return Order(config=TrainConfig(**parts, **chosen), out=Path(values["out"]), resume=values["resume"])
