"""Modules that two or more of the packages use: state-space mixers and window attention."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bidirectional import BidirectionalMamba
    from .bidirectional_mamba2 import BidirectionalMamba2
    from .gated_norm import GatedRMSNorm
    from .layer_norm import LayerNorm, RMSNorm
    from .mamba import Mamba
    from .mamba2 import Mamba2
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
    "BidirectionalMamba2",
    "GatedRMSNorm",
    "LayerNorm",
    "Mamba",
    "Mamba2",
    "OverlappingWindowAttention",
    "RMSNorm",
    "SlidingWindowAttention",
    "WindowAttention",
]

_HOME = {
    "S4D": "s4d",
    "S5": "s5",
    "S4": "s4",
    "BidirectionalMamba": "bidirectional",
    "BidirectionalMamba2": "bidirectional_mamba2",
    "GatedRMSNorm": "gated_norm",
    "LayerNorm": "layer_norm",
    "Mamba": "mamba",
    "Mamba2": "mamba2",
    "OverlappingWindowAttention": "window",
    "RMSNorm": "layer_norm",
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
