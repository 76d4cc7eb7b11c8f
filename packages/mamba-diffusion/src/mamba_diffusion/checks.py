"""One form for every error about an argument: `<function>: <argument> must be <wanted>, got <found>; <what to do>`."""

from __future__ import annotations

from typing import NoReturn


def refuse(function: str, argument: str, wanted: str, found: object, remedy: str) -> NoReturn:
    """Raise the ValueError that names the argument, what it must be, what it is, and what to do."""
    raise ValueError(f"{function}: {argument} must be {wanted}, got {found}; {remedy}")
