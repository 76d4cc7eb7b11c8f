"""What a sweep says: where time does not follow size, and where somebody else is faster. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .rows import Row, align, spell

Pass = Literal["fwd_ms", "bwd_ms"]
PASSES: tuple[Pass, ...] = ("fwd_ms", "bwd_ms")
TOLERANCE = 1.5  # of the growth of time over the growth of size


@dataclass(frozen=True)
class Cliff:
    """Two neighbours of a sweep between which time grows much faster than size, or falls."""

    impl: str
    what: Pass
    before: tuple[int, ...]
    after: tuple[int, ...]
    factor: float  # time per element after, over that before; below 1 / tolerance only where the time itself falls

    def __str__(self) -> str:
        sizes = " -> ".join("x".join(map(str, shape)) for shape in (self.before, self.after))
        return f"{self.impl} {self.what.removesuffix('_ms')} {sizes}: time per element times {self.factor:.2f}"


def width(row: Row) -> int:
    """Return B * D."""
    return row.shape[0] * row.shape[1]


def elements(row: Row) -> int:
    """Return B * D * L."""
    return width(row) * row.shape[2]


def find_cliffs(rows: Iterable[Row], tolerance: float = TOLERANCE) -> list[Cliff]:
    """Compare neighbours along the length and along the width of a sweep.

    More work takes more time, and no more per element: small sizes are bound by the launch, so time per element falls
    and then stays. A cliff is a step up of time per element by more than `tolerance`, or a larger size that takes
    less than the smaller one's time by that factor (so the smaller one was a bump).
    """
    found = []
    lines: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.fwd_ms is not None:
            kind = (row.impl, row.dtype, row.shape[3])
            lines.setdefault((*kind, "length", width(row)), []).append(row)
            lines.setdefault((*kind, "width", row.shape[2]), []).append(row)
    for line in lines.values():
        line.sort(key=elements)
        for before, after in pairwise(line):
            for what in PASSES:
                cliff = _step(before, after, what, tolerance)
                found += [] if cliff is None else [cliff]
    return found


def _step(before: Row, after: Row, what: Pass, tolerance: float) -> Cliff | None:
    first, second = getattr(before, what), getattr(after, what)
    if first is None or second is None or elements(before) == elements(after):
        return None
    factor = (second / first) / (elements(after) / elements(before))
    if factor > tolerance or second * tolerance < first:
        return Cliff(after.impl, what, before.shape, after.shape, factor)
    return None


def ratios(rows: Sequence[Row], what: Pass, ours: str, peer: str = "mamba_ssm") -> dict[tuple[int, ...], float]:
    """Return the peer's time over ours at every size that has both."""
    times: dict[str, dict[tuple[int, ...], float]] = {ours: {}, peer: {}}
    for row in rows:
        value = getattr(row, what)
        if row.impl in times and value is not None:
            times[row.impl][row.shape] = value
    return {shape: times[peer][shape] / time for shape, time in times[ours].items() if shape in times[peer]}


def grids(rows: Sequence[Row], ours: str) -> Iterator[tuple[str, str]]:
    """Yield a title and a table for each number of states and each pass.

    A cell is our time in milliseconds, and in brackets the peer's time over ours where the peer ran.
    """
    for dtype in dict.fromkeys(row.dtype for row in rows):
        of_dtype = [row for row in rows if row.dtype == dtype]
        for state in sorted({row.shape[3] for row in of_dtype}, reverse=True):
            here = [row for row in of_dtype if row.shape[3] == state]
            for what in PASSES:
                name = "forward" if what == "fwd_ms" else "backward"
                yield f"{name}, N = {state}, {dtype}", _grid(here, what, ours)


def _grid(rows: Sequence[Row], what: Pass, ours: str) -> str:
    compared = ratios(rows, what, ours)
    lengths = sorted({row.shape[2] for row in rows})
    cells: dict[tuple[int, int], str] = {}
    for row in rows:
        if row.impl == ours:
            ratio = compared.get(row.shape)
            text = spell(getattr(row, what), ".3f") + ("" if ratio is None else f" ({ratio:.2f})")
            cells[width(row), row.shape[2]] = text
    lines = [("B*D \\ L", *map(str, lengths))]
    for channels in sorted({width(row) for row in rows}):
        lines.append((str(channels), *(cells.get((channels, length), "") for length in lengths)))
    return align(lines)


def verdict(rows: Sequence[Row], ours: str) -> str:
    """Say in lines where we are slower than the peer, and where our time is not smooth."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        of_dtype = [row for row in rows if row.dtype == dtype]
        for what in PASSES:
            compared = ratios(of_dtype, what, ours)
            slower = {shape: ratio for shape, ratio in compared.items() if ratio < 1}
            name = f"{dtype} {what.removesuffix('_ms')}"
            if compared:
                lines.append(f"{name}: slower than mamba_ssm at {len(slower)} of {len(compared)} sizes")
            lines += [f"  {'x'.join(map(str, shape))}: {ratio:.2f}" for shape, ratio in slower.items()]
    steps = find_cliffs(row for row in rows if row.impl == ours)
    lines.append(f"cliffs of {ours}: {len(steps) or 'none'}")
    return "\n".join([*lines, *(f"  {step}" for step in steps)])
