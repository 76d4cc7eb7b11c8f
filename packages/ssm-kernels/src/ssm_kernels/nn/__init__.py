"""Modules that two or more of the packages use: state-space mixers and window attention."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bidirectional import BidirectionalMamba
    from .mamba import Mamba
    from .s4 import S4
    from .s4d import S4D
    from .s5 import S5
    from .sliding_window import SlidingWindowAttention
    from .ss2d import SS2D
    from .window import OverlappingWindowAttention, WindowAttention

__all__ = [
    "S4",
    "S4D",
    "S5",
    "SS2D",
    "BidirectionalMamba",
    "Mamba",
    "OverlappingWindowAttention",
    "SlidingWindowAttention",
    "WindowAttention",
]

_HOME = {
    "S4D": "s4d",
    "S5": "s5",
    "S4": "s4",
    "BidirectionalMamba": "bidirectional",
    "Mamba": "mamba",
    "OverlappingWindowAttention": "window",
    "SS2D": "ss2d",
    "SlidingWindowAttention": "sliding_window",
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
