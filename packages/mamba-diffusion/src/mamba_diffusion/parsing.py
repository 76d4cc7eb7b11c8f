"""Command lines of the verbs, generated from dataclasses of options. Importing this imports no torch."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, fields
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jsonargparse import ArgumentParser

Options = TypeVar("Options", bound="DataclassInstance")


def parse_options(
    verb: str,
    argv: Sequence[str],
    options: type[Options],
    *,
    description: str,
    positional: tuple[str, str, str] | None = None,
    without: tuple[str, ...] = (),
) -> tuple[Options, Any]:
    """Parse the arguments of a verb.

    Args:
        verb: For the usage line.
        argv: Arguments after the verb.
        options: Dataclass; every field is an option `--name` of its type, help and default (a switch if boolean).
        description: First lines of the help.
        positional: Name, number ("*" or "?") and help of the arguments without a name; if the name is a field it sets
            that field.
        without: Fields that say nothing to this verb: they are no options.

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
    known = [f for f in fields(options) if f.name not in without]
    ordered = sorted(known, key=lambda f: f.name not in own)  # before those that it shares with other verbs
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
    """Accept --noise_std for --noise-std, as the fields are called in the trainer's files; texts stay as they are."""
    flags = [item.partition("=") for item in argv]
    return [(a.replace("_", "-") if a.startswith("--") and " " not in a else a) + equals + b for a, equals, b in flags]


def _make_parser(verb: str, description: str, hints: dict[str, Any]) -> ArgumentParser:
    from argparse import HelpFormatter

    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ValueError(_one_line(message, hints)) from ex

    name = f"mamba-diffusion {verb}"  # an option that is shortened could mean another one in the next version
    return OneLineParser(prog=name, description=description, formatter_class=HelpFormatter, allow_abbrev=False)


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
