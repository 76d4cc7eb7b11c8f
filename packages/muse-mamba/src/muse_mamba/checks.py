"""One form for every error about an argument: `<function>: <argument> must be <wanted>, got <found>; <what to do>`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn


def refuse(function: str, argument: str, wanted: str, found: object, remedy: str) -> NoReturn:
    """Raise the ValueError that names the argument, what it must be, what it is, and what to do."""
    raise ValueError(f"{function}: {argument} must be {wanted}, got {found}; {remedy}")


def check(owner: Any, name: str, wanted: str, good: bool, remedy: str | None = None) -> None:
    """Refuse a field of a configuration unless `good`."""
    if not good:
        refuse(type(owner).__name__, name, wanted, repr(getattr(owner, name)), remedy or f"change {name}")


def check_choice(owner: Any, name: str, choices: Iterable[str]) -> None:
    """Refuse a field that is none of the choices; the nearest one is named."""
    value, known = getattr(owner, name), tuple(choices)
    if value not in known:
        refuse(type(owner).__name__, name, f"one of {', '.join(known)}", repr(value), nearest(value, known))


def check_whole(owner: Any, *names: str, least: int = 1) -> None:
    """Refuse fields that are no whole numbers of at least `least`."""
    for name in names:
        value = getattr(owner, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        check(owner, name, f"at least {least} and whole", good)


def nearest(name: object, known: Iterable[str]) -> str:
    """Return "did you mean X?" for a misspelt name, or a plain request."""
    close = get_close_matches(str(name), list(known), 1, 0.4)
    return f"did you mean {close[0]}?" if close else "choose one of these"
