"""One result of a benchmark, the JSON file that holds them, and the table that a person reads. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .shapes import cost, name_of

Environment = Mapping[str, str | float | None]
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
    floor_ms: float | None  # lower bound of the forward pass on this GPU
    peak_bytes: int | None = None  # forward and backward, beyond the inputs
    error_ratio: float | None = None  # worst of output and gradients, against float64
    host_us: float | None = None  # of the CPU for a call of the forward pass


def write_report(path: Path, rows: Sequence[Row], environment: Environment) -> None:
    """Write `{"rows": [...], "environment": {...}}`, a row a line, whole or not at all; a missing folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row), separators=(",", ":")) for row in rows)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(f'{{"rows": [\n{lines}\n], "environment": {json.dumps(dict(environment))}}}\n')
    os.replace(fresh, path)


def read_report(path: Path) -> tuple[list[Row], dict[str, str | float | None]]:
    """Read what `write_report` wrote.

    Raises:
        ValueError: The file is not such a report.
    """
    try:
        content = json.loads(path.read_text())
        return [Row(**{**row, "shape": tuple(row["shape"])}) for row in content["rows"]], content["environment"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report of this command: {type(error).__name__}: {error}") from error


def spell(value: float | None, form: str) -> str:
    """Format a number; a dash where there is none."""
    return "-" if value is None else format(value, form)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def gigabytes_per_s(row: Row) -> float | None:
    """Return the bytes that the forward pass must move, over the time it took."""
    work = cost(row.op, row.shape, ITEM_BYTES[row.dtype])
    return None if work is None or row.fwd_ms is None else work.moved_bytes / row.fwd_ms / 1e6


HEAD: tuple[str, ...] = (
    *("op", "model", "shape", "dtype", "impl", "source", "fwd ms", "bwd ms", "floor ms"),
    *("of floor", "GB/s", "peak MiB", "host us", "error"),
)


def as_table(rows: Sequence[Row], *, name_op: bool = True) -> str:
    """Lay the rows out in columns, without the first one if all are of one operator that is named elsewhere.

    Times are in milliseconds, memory in MiB; "of floor" is the lower bound over the time of the forward pass, GB/s
    the bytes that it must move over that time.
    """
    lines = [HEAD]
    for row in rows:
        fraction = None if row.floor_ms is None or row.fwd_ms is None else row.floor_ms / row.fwd_ms
        lines.append(
            (
                row.op,
                name_of(row.op, row.shape),
                "x".join(map(str, row.shape)),
                row.dtype,
                row.impl,
                row.source,
                spell(row.fwd_ms, ".3f"),
                spell(row.bwd_ms, ".3f"),
                spell(row.floor_ms, ".3f"),
                spell(fraction, ".0%"),
                spell(gigabytes_per_s(row), ".0f"),
                spell(None if row.peak_bytes is None else row.peak_bytes / 2**20, ".1f"),
                spell(row.host_us, ".0f"),
                spell(row.error_ratio, ".1e"),
            )
        )
    return align(lines if name_op else [line[1:] for line in lines])
