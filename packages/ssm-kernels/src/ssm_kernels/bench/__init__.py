"""Benchmarks of the operators: timing, lower bounds, parity, and one JSON form for the results."""

from .harness import Timing, environment, measure
from .roofline import floor_ms
from .rows import Row, as_table, write_report
from .runner import Case, main, run_case

__all__ = [
    "Case",
    "Row",
    "Timing",
    "as_table",
    "environment",
    "floor_ms",
    "main",
    "measure",
    "run_case",
    "write_report",
]
