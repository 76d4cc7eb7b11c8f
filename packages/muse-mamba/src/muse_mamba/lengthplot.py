"""Plot and table of what `benchmark` measured: time of a training step and of decoding against the number of tokens."""

from __future__ import annotations

import math
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
    from matplotlib.ticker import LogFormatter

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
        axis.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.8)))
        axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.8)))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("image tokens", fontsize=9)
        axis.grid(alpha=0.3)
    figure.legend(axes[0].lines, methods, loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def table(result: Mapping[str, Any]) -> str:
    """Return a Markdown table: a row a method, a column a length, ms of a training step / of decoding.

    Rows are sorted by the training step at the greatest length.
    """
    found = {(row["method"], row["length"]): row for row in result["rows"] if "failed" not in row}
    lengths = sorted({length for _, length in found})
    methods = dict.fromkeys(method for method, _ in found)
    last = {method: found.get((method, lengths[-1]), {}).get("training_step_ms", math.inf) for method in methods}
    lines = [["image tokens", *map(str, lengths)], ["---"] * (1 + len(lengths))]
    for method in sorted(methods, key=last.__getitem__):
        rows = [found.get((method, length)) for length in lengths]
        cells = [f"{row['training_step_ms']:.1f} / {row['decoding_ms']:.1f}" if row else "-" for row in rows]
        lines.append([method, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
