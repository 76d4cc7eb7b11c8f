"""Benchmarks of the operators: timing, lower bounds, parity, and one JSON form for the results.

`ssm-kernels bench` runs them. Importing this does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case, Peer
    from .harness import Timing, environment, measure
    from .roofline import floor_ms
    from .rows import Row, as_table, read_report, write_report
    from .runner import run_case

__all__ = [
    "Case",
    "Peer",
    "Row",
    "Timing",
    "as_table",
    "environment",
    "floor_ms",
    "measure",
    "read_report",
    "run_case",
    "write_report",
]

_HOME = {
    **dict.fromkeys(("Case", "Peer"), "case"),
    **dict.fromkeys(("Timing", "environment", "measure"), "harness"),
    "floor_ms": "roofline",
    **dict.fromkeys(("Row", "as_table", "read_report", "write_report"), "rows"),
    "run_case": "runner",
}


def __getattr__(name: str) -> Any:
    """Import a part when it is first used."""
    if name in _HOME:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
