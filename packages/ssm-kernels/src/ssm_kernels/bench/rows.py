"""One result of a benchmark, the JSON file that holds them, and the table that a person reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Row:
    """Times of one implementation at one shape; None where something was not measured."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    impl: str
    source: Literal["run", "table"]  # measured now, or an earlier measurement kept to compare with
    fwd_ms: float | None
    bwd_ms: float | None
    floor_ms: float | None  # lower bound of the forward pass on an H100
    peak_bytes: int | None = None  # forward and backward, beyond the inputs
    error_ratio: float | None = None  # worst of output and gradients, against float64


def write_report(path: Path, rows: Sequence[Row], environment: dict[str, str | None]) -> None:
    """Write `{"rows": [...], "environment": {...}}`; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": [asdict(row) for row in rows], "environment": environment}
    path.write_text(json.dumps(content, indent=2) + "\n")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def as_table(rows: Sequence[Row]) -> str:
    """Lay the rows out in columns, times in milliseconds and memory in MiB."""
    lines = [("op", "shape", "dtype", "impl", "source", "fwd ms", "bwd ms", "floor ms", "peak MiB", "error")]
    lines += [
        (
            row.op,
            "x".join(map(str, row.shape)),
            row.dtype,
            row.impl,
            row.source,
            _number(row.fwd_ms, ".3f"),
            _number(row.bwd_ms, ".3f"),
            _number(row.floor_ms, ".3f"),
            _number(None if row.peak_bytes is None else row.peak_bytes / 2**20, ".1f"),
            _number(row.error_ratio, ".1e"),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
