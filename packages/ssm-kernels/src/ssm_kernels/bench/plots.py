"""Plots of a report, where matplotlib is installed (the extra ssm-kernels[bench]). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cliffs import PASSES, width
from .rows import ITEM_BYTES, Environment, Row
from .shapes import COSTS, Cost, cost, name_of
from .targets import OURS, PEERS, Comparison, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOW = (
    "no plot: matplotlib is not installed here (pip install 'ssm-kernels[bench]'); `ssm-kernels report` draws it later"
)
COLOURS = (
    *("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray"),
    *("tab:olive", "tab:cyan", "black", "gold", "navy", "lime", "teal", "salmon"),
)
TICKS = (0.5, 1, 2, 4, 8, 16, 32, 64)


def draw_results(rows: Sequence[Row], environment: Environment, path: Path) -> str:
    """Draw the speed-ups of one dtype and, where the GPU's rates are known, the roofline.

    Returns:
        A line that says what was written, or why not.
    """
    dtype = _dtype_shown(rows)
    shown = [c for c in compare(row for row in rows if row.dtype == dtype) if c.part in ("fwd", "bwd")]
    copy, exp2 = environment.get("copy_bytes_per_s"), environment.get("exp2_per_s")
    roofed = isinstance(copy, float) and isinstance(exp2, float)
    if not shown and not roofed:
        return f"no plot in {path.parent}: nothing to compare with and no GPU"
    figure = _figure(13 if roofed else 7, max(4, 1 + 0.32 * len(shown) / 2))
    if figure is None:
        return HOW
    axes = figure.subplots(1, 2 if roofed else 1, squeeze=False)[0]
    _speedups(axes[0], shown, f"{environment['GPU'] or 'CPU'}, {dtype}: times as fast as the fastest peer")
    if isinstance(copy, float) and isinstance(exp2, float):
        _roofline(axes[1], [row for row in rows if row.dtype == dtype and row.source == "run"], copy, exp2)
    return _save(figure, path)


def draw_sweep(rows: Sequence[Row], environment: Environment, path: Path) -> str:
    """Draw time per element over length, a line for each width, ours solid and mamba_ssm dashed.

    Returns:
        A line that says what was written, or why not.
    """
    dtype = _dtype_shown(rows)
    rows = [row for row in rows if row.dtype == dtype]
    states = sorted({row.shape[3] for row in rows}, reverse=True)
    widths = sorted({width(row) for row in rows})
    lengths = sorted({row.shape[2] for row in rows})
    figure = _figure(12, 4.2 * max(1, len(states)))
    if figure is None:
        return HOW
    axes = figure.subplots(max(1, len(states)), 2, squeeze=False)
    for state, pair in zip(states, axes, strict=False):
        for what, axis in zip(PASSES, pair, strict=True):
            for place, channels in enumerate(widths):
                here = [row for row in rows if row.shape[3] == state and width(row) == channels]
                _curves(axis, here, what, f"C{place}", f"B*D = {channels}")
            name = "forward" if what == "fwd_ms" else "backward"
            axis.set(xscale="log", yscale="log", xlabel="length L", ylabel="ns per element of (B, L, D)")
            axis.set_xticks(lengths, map(str, lengths), fontsize="small")
            axis.minorticks_off()
            axis.set_title(
                f"selective_scan {name}, N = {state}, {dtype}, {environment['GPU'] or 'CPU'}", fontsize="medium"
            )
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small", title="ours solid, mamba_ssm dashed")
    return _save(figure, path)


def _dtype_shown(rows: Sequence[Row]) -> str:
    """Return the dtype that a plot is about: bfloat16 if it was measured."""
    dtypes = {row.dtype for row in rows}
    return "bfloat16" if "bfloat16" in dtypes else min(dtypes, default="")


def _figure(wide: float, high: float) -> Figure | None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(wide, high), layout="constrained")


def _save(figure: Figure, path: Path) -> str:
    figure.savefig(path, dpi=80)
    return f"plot: {path}"


def _speedups(axis: Axes, comparisons: Sequence[Comparison], title: str) -> None:
    """Bars, longest first from the top as the rows come; a tick where the target is."""
    sizes = list(dict.fromkeys((c.op, c.shape) for c in comparisons))
    for c in comparisons:
        place = sizes.index((c.op, c.shape)) + (0.2 if c.part == "bwd" else -0.2)
        axis.barh(place, c.ratio, height=0.38, color="tab:blue" if c.part == "fwd" else "tab:cyan")
        if c.must is not None:
            axis.plot([c.must, c.must], [place - 0.19, place + 0.19], color="black", linewidth=2)
    axis.axvline(1, color="grey", linewidth=1)
    names = [f"{op} {name_of(op, shape) or 'x'.join(map(str, shape))}" for op, shape in sizes]
    axis.set_yticks(range(len(sizes)), names, fontsize="small")
    axis.margins(y=0.01)
    axis.set_xscale("log")
    axis.set_xticks(TICKS, map(str, TICKS))
    axis.minorticks_off()
    axis.invert_yaxis()
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("peer / ours; forward dark, backward light, | target")


def _roofline(axis: Axes, rows: Iterable[Row], copy: float, exp2: float) -> None:
    """Exponentials per second over exponentials per byte: under the line is slower than the GPU can."""
    seen: set[str] = set()
    for row in rows:
        work = cost(row.op, row.shape, ITEM_BYTES[row.dtype])
        ours = row.impl == OURS[0]
        compared = ours or row.impl in PEERS[row.op]
        if work is None or row.fwd_ms is None or not work.exponentials or not compared:
            continue
        label = f"{row.op}, {'ours' if ours else 'peer'}"
        axis.plot(
            _intensity(work),
            work.exponentials / row.fwd_ms * 1e3,
            "o" if ours else "x",
            color=COLOURS[list(COSTS).index(row.op)],
            label=None if label in seen else label,
        )
        seen.add(label)
    edge = exp2 / copy
    axis.plot([edge / 100, edge, edge * 30], [exp2 / 100, exp2, exp2], color="black")
    axis.set(xscale="log", yscale="log", xlabel="exponentials per byte", ylabel="exponentials per second, forward")
    axis.set_title(f"roofline: {copy / 1e12:.1f} TB/s, {exp2 / 1e12:.2f} T exp2/s", fontsize="medium")
    axis.grid(alpha=0.3)
    if seen:
        axis.legend(fontsize="x-small")


def _intensity(work: Cost) -> float:
    return work.exponentials / work.moved_bytes


def _curves(axis: Axes, rows: Iterable[Row], what: str, colour: str, label: str) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        time = getattr(row, what)
        if time is not None:
            line = lines.setdefault(row.impl, [])
            line.append((row.shape[2], time * 1e6 / (width(row) * row.shape[2])))
    for impl, line in lines.items():
        peer = impl == "mamba_ssm"
        style = "--" if peer else "-"
        axis.plot(*zip(*sorted(line), strict=True), style, color=colour, marker=".", label=None if peer else label)
