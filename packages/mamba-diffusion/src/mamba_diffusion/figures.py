"""Charts, through matplotlib, which is imported here only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _pyplot() -> Any:
    """Return a way to make figures without a screen.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("charts need matplotlib; pip install 'mamba-diffusion[data]'") from error
    return Figure


def bars(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw bars with intervals: panels by figure, in each [mean, low, high] by name."""
    figure = _pyplot()(figsize=(2.6 * len(panels), 3.2), layout="constrained")
    for number, (title, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for place, (mean, low, high) in enumerate(values.values()):
            axes.bar(place, mean, color=f"C{place}", width=0.6)
            axes.plot([place, place], [low, high], color="black")
        axes.set_xticks(range(len(values)), [name[-14:] for name in values], fontsize=7)
        axes.set_title(title, fontsize=9)
        lows = [v[1] for v in values.values()]
        highs = [v[2] for v in values.values()]
        room = max(highs) - min(lows) or abs(max(highs)) or 1.0  # two equal figures still have a scale
        axes.set_ylim(min(0, *lows) if min(lows) < room else min(lows) - 0.3 * room, max(highs) + 0.1 * room)
    figure.savefig(path, dpi=120)


def lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, **labels: str) -> None:
    """Draw curves (x, y) by name on logarithmic axes where the labels end in "(log)"."""
    figure = _pyplot()(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in curves.items():
        axes.plot(x, y, marker="o", markersize=3, label=name)
    for axis in ("x", "y"):
        label = labels.get(axis, "")
        getattr(axes, f"set_{axis}label")(label.removesuffix(" (log)"))
        if label.endswith("(log)"):
            getattr(axes, f"set_{axis}scale")("log")
    axes.set_title(labels.get("title", ""), fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
