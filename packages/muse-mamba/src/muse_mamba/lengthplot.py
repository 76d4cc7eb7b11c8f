"""A plot of what `benchmark` measured: time of a training step and of decoding against the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PANELS = (("training_step_ms", "training step, ms"), ("decoding_ms", "decoding, ms"))


def plot(result: Mapping[str, Any], file: Path) -> None:
    """Save both times of every method, on logarithmic axes; the transformer is the thick line.

    Args:
        result: What `muse-mamba benchmark` writes.
        file: PNG.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, (name, title) in zip(axes, PANELS, strict=True):
        for place, method in enumerate(methods):
            rows = sorted((r for r in result["rows"] if r["method"] == method and name in r), key=lambda r: r["length"])
            width = 3 if method == "transformer" else 1.3
            axis.loglog([r["length"] for r in rows], [r[name] for r in rows], "o-", ms=3, lw=width, color=f"C{place}")
        lengths = sorted({row["length"] for row in result["rows"]})
        axis.set_xticks(lengths, [str(length) for length in lengths], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("image tokens", fontsize=9)
        axis.grid(alpha=0.3)
    figure.legend(axes[0].lines, methods, loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
