"""What the configurations of all families refuse, in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from .config import ModelConfig


def tuples(config: ModelConfig, *names: str) -> None:
    """Make tuples of lists."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list):
            object.__setattr__(config, name, tuple(value))


def shared_checks(config: ModelConfig) -> None:
    """Refuse what no family takes."""
    if len(config.image) != 2 or not all(whole(x) for x in config.image):
        refuse(config, "image", "two whole numbers, height and width", config.image)
    if not 0 <= config.drop_path < 1:
        refuse(config, "drop_path", "in [0, 1)", config.drop_path)
    if not 0 < config.crop_pct <= 1:
        refuse(config, "crop_pct", "above 0 and at most 1", config.crop_pct)
    for name in ("mean", "std"):
        if len(getattr(config, name)) != config.channels:
            refuse(config, name, f"one number for each of {config.channels} channels", getattr(config, name))
    if config.labels and len(config.labels) != config.classes:
        wanted = f"a list of classes={config.classes} names, as the head has outputs"
        refuse(config, "labels", wanted, f"{len(config.labels)} names", "give the class list of these weights")


def check_widths(config: ModelConfig, known: set[str], least: Mapping[str, int] | None = None) -> None:
    """Refuse widths of unknown axes, and those that are too small."""
    for name, value in config.widths.items():
        if name not in known:
            close = get_close_matches(name, sorted(known), n=1)
            refuse(config, "widths", "names of this network's axes", repr(name), f"did you mean {(close or ['-'])[0]}?")
        floor = (least or {}).get(name.rpartition(".")[2], 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < floor:
            refuse(config, f"widths[{name}]", f"a whole number of at least {floor}", value)


def whole(value: object) -> bool:
    """Say whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def whole_numbers(config: ModelConfig, least: int, *names: str) -> None:
    """Refuse fields that are no whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            refuse(config, name, f"a whole number of at least {least}", value)


def choices(config: ModelConfig, *, family: str, **kinds: Any) -> None:
    """Refuse another family, and fields outside of their literal types."""
    if config.family != family:
        refuse(config, "family", repr(family), repr(config.family))
    for name, kind in kinds.items():
        if getattr(config, name) not in get_args(kind):
            refuse(config, name, f"one of {', '.join(get_args(kind))}", repr(getattr(config, name)))


def refuse(config: ModelConfig, name: str, wanted: str, found: object, remedy: str = "") -> None:
    """Raise a ValueError in one line."""
    kind = type(config).__name__
    raise ValueError(f"{kind}: {name} must be {wanted}, got {found}" + (f"; {remedy}" if remedy else ""))
