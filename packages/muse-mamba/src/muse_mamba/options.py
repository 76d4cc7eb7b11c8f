"""The command lines and YAML files of the trainers, generated from their configurations. No torch is imported here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from .runconfig import RunConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True, kw_only=True)
class Trainer(Generic[Config]):
    """What a command line is generated from.

    Attributes:
        prog: As the user typed it.
        config: Type of the configuration.
        part: Name of its field that holds the network's configuration, and that configuration's type.
        recipes: Names of the runs.
        recipe: Returns a run by its name and text method (None: its own).
    """

    prog: str
    config: type[Config]
    part: tuple[str, Any]
    recipes: Sequence[str]
    recipe: Callable[[str, str | None], Config]


@dataclass(frozen=True, kw_only=True)
class Order(Generic[Config]):
    """What the command line asks for: the run, where it goes, and whether it goes on."""

    config: Config
    out: Path
    resume: bool


def parse(trainer: Trainer[Config], argv: Sequence[str] | None = None) -> Order[Config]:
    """Read the command line; `--help` and `--print_config` print and exit 0, every mistake is one line and exit 2.

    Args:
        trainer: What to generate it from.
        argv: Arguments after the program's name; None takes the process's.
    """
    try:
        arguments = _spell_out_switches(trainer, list(sys.argv[1:] if argv is None else argv))
        name, base = _base(trainer, arguments)
        parser = _parser(trainer, name, base)
        values = parser.parse_args(arguments).as_dict()
        return _order(trainer, values, name, base)
    except ValueError as mistake:
        fail(trainer.prog, mistake)


def fail(prog: str, mistake: object, code: int = 2) -> NoReturn:
    """Print one line on stderr and exit."""
    line = " ".join(str(mistake).split())
    print(f"{prog}: {line}", file=sys.stderr)
    raise SystemExit(code)


def _spell_out_switches(trainer: Trainer[Any], arguments: list[str]) -> list[str]:
    """Let `--compile` alone mean `--compile true`, for every yes-or-no field."""
    switches = {f"--{f.name}" for f in fields(trainer.config) if f.type == "bool"}
    spelled = []
    for place, argument in enumerate(arguments):
        spelled.append(argument)
        if argument in switches and arguments[place + 1 : place + 2] not in (["true"], ["false"]):
            spelled.append("true")
    return spelled


def _base(trainer: Trainer[Config], arguments: list[str]) -> tuple[str | None, Config | None]:
    """Return the preset's name and the run whose values are the defaults; None if only `--help` is asked for."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--method"):
        scout.add_argument(option)
    scout.add_argument("--help", "-h", action="store_true")
    try:
        found, _ = scout.parse_known_args(arguments)
    except argparse.ArgumentError as mistake:
        raise ValueError(str(mistake)) from mistake
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    method = found.method
    if found.config is not None:
        file = _read_yaml(found.config)
        name = name or file.get("preset")
        method = method or file.get("method") or _mapping(file.get("model")).get("method")
    if name is None:
        if found.help:
            return None, None
        known = ", ".join(trainer.recipes)
        example = f"{trainer.prog} {trainer.recipes[-1]} --out runs/a"
        raise ValueError(f"the preset is missing; give it first, one of {known}, as in: {example}")
    return name, trainer.recipe(name, method)


def _read_yaml(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        return _mapping(yaml.safe_load(Path(path).read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parser(trainer: Trainer[Config], name: str | None, base: Config | None) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            fail(trainer.prog, f"{message}; see {trainer.prog} --help")

    usage = f"{trainer.prog} PRESET --out DIR [--resume] [--config FILE] [--field value ...]"
    parser = OneLineParser(prog=trainer.prog, usage=usage, description=trainer.config.__doc__)
    described = f"named run whose values the rest changes: {', '.join(trainer.recipes)}"
    parser.add_argument("preset", nargs="?", default=name, help=described)
    parser.add_argument("--config", action="config", help="YAML file, as --print_config writes it")
    parser.add_argument("--out", help="folder of the run; a new or empty one without --resume")
    parser.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint in --out")
    if trainer.part[0] == "model":
        parser.add_argument("--method", type=str, help="how text is mixed in; sets model.method and what goes with it")
    parser.add_class_arguments(trainer.config, None)
    if base is not None:
        parser.set_defaults(base.to_dict())
    return parser


def _order(trainer: Trainer[Config], values: dict[str, Any], name: str | None, base: Config | None) -> Order[Config]:
    if base is None or not values["out"]:
        raise ValueError("--out is missing; give the folder of the run, as in --out runs/a")
    if values["preset"] not in (None, name):
        raise ValueError(f"the preset {values['preset']} must come first, as in: {trainer.prog} {name} --out runs/a")
    part, kind = trainer.part
    network = kind.from_dict(values[part])
    method = values.get("method")
    if method is not None and network.method != method:
        raise ValueError(f"--method {method} contradicts model.method {network.method}; give one of them")
    chosen = {f.name: values[f.name] for f in fields(trainer.config) if f.name != part}
    config = trainer.config(**{part: network}, **chosen)
    return Order(config=config, out=Path(values["out"]), resume=values["resume"])
