"""Modules that two or more of the packages use: state-space mixers and window attention."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bidirectional import BidirectionalMamba
    from .mamba import Mamba
    from .ss2d import SS2D
    from .window import OverlappingWindowAttention, WindowAttention

__all__ = ["SS2D", "BidirectionalMamba", "Mamba", "OverlappingWindowAttention", "WindowAttention"]

_HOME = {
    "BidirectionalMamba": "bidirectional",
    "Mamba": "mamba",
    "OverlappingWindowAttention": "window",
    "SS2D": "ss2d",
    "WindowAttention": "window",
}


def __getattr__(name: str) -> Any:
    """Import a module when it is first used."""
    if name in _HOME:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
