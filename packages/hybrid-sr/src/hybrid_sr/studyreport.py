"""What comes out of a study: study.json, a table, the plot of quality against cost, the plot of the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .study import ALL, SETTINGS, write
from .studyrows import BASE, ROWS

TABLE, PLOT, CURVES = "table.md", "study.png", "curves.png"


def report(folder: Path) -> list[Path]:
    """Write study.json, table.md and (where matplotlib is installed) the plots; return the files.

    Raises:
        ValueError: No run is done.
    """
    rows = [json.loads(file.read_text()) for file in sorted((folder / "rows").glob("*.json"))]
    if not rows:
        raise ValueError(f"--out: must be a study with a finished run, got {folder}; train some first")
    speed = [json.loads(file.read_text()) for file in sorted((folder / "speed").glob("*.json"))]
    result = {
        "rows": [_slim(row) for row in rows],
        "speed": [_slim(row) for row in speed],
        "settings": json.loads((folder / SETTINGS).read_text()),
        "environment": rows[0]["environment"],
    }
    write(folder / ALL, result)
    (folder / TABLE).write_text(table(summary(result)))
    files = [folder / ALL, folder / TABLE]
    return files + draw(result, folder)


def _slim(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with device and commit in place of the environment: rows of several machines may come together."""
    environment = row["environment"]
    return {name: value for name, value in row.items() if name != "environment"} | {
        "gpu": environment.get("GPU"),
        "commit": (environment.get("git") or "")[:7],
    }


def summary(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one line a network, in the order of the study: means over seeds, half the range, and its speed.

    Lines hold `method`, `seeds`, `parameters`, `macs`, `scan_ops`, `psnr_y`, `psnr_spread` (half the distance of the
    best and the worst seed, dB; None of a single one), `ssim_y`, `ssim_spread`, `difference` (dB to the base, mean over
    common seeds), `difference_spread` (half their range), and None or figures under `train_samples_per_s`,
    `train_peak_bytes`, `megapixels_per_s` and `peak_bytes`.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {row.name: [] for row in ROWS}
    for row in result["rows"]:
        groups.setdefault(row["method"], []).append(row)
    base = {row["seed"]: row["psnr_y"] for row in groups[BASE]}
    speed = {row["method"]: row for row in result["speed"]}
    lines = []
    for method, rows in groups.items():
        if not rows:
            continue
        line: dict[str, Any] = {"method": method, "seeds": len(rows)}
        line |= {name: rows[0][name] for name in ("parameters", "macs", "scan_ops")}
        for name, short in (("psnr_y", "psnr"), ("ssim_y", "ssim")):
            values = [row[name] for row in rows]
            line |= {name: mean(values), f"{short}_spread": _half_range(values)}
        common = [row["psnr_y"] - base[row["seed"]] for row in rows if row["seed"] in base]
        line |= {"difference": mean(common) if common else None, "difference_spread": _half_range(common)}
        lines.append(line | _speed(speed.get(method)))
    return lines


def _half_range(values: Sequence[float]) -> float | None:
    return (max(values) - min(values)) / 2 if len(values) > 1 else None


def _speed(row: Mapping[str, Any] | None) -> dict[str, Any]:
    names = ("train_samples_per_s", "train_peak_bytes", "megapixels_per_s", "peak_bytes")
    if row is None:
        return dict.fromkeys(names)
    fastest = row.get("graph", row["eager"])
    training, inference = fastest["training"], fastest["inference"]
    values = (training["samples_per_s"], row["eager"]["training"]["peak_bytes"])
    return dict(
        zip(names, (*values, inference["megapixels_per_s"], row["eager"]["inference"]["peak_bytes"]), strict=True)
    )


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the study as Markdown, one network a line."""
    head = (
        "network",
        "parameters",
        "MACs + scan, G",
        "training, crops/s",
        "training memory, GB",
        "inference, MP/s",
        "inference memory, GB",
        "PSNR, dB",
        "to the base, dB",
        "SSIM",
        "seeds",
    )
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        cells = [
            line["method"],
            f"{line['parameters']:,}",
            f"{line['macs'] / 1e9:.1f} + {line['scan_ops'] / 1e9:.1f}",
            _number(line["train_samples_per_s"], 1, 0),
            _number(line["train_peak_bytes"], 1e9, 2),
            _number(line["megapixels_per_s"], 1, 1),
            _number(line["peak_bytes"], 1e9, 2),
            _with_spread(line["psnr_y"], line["psnr_spread"], 3),
            ""
            if line["difference"] is None
            else _with_spread(line["difference"], line["difference_spread"], 3, sign="+"),
            _with_spread(line["ssim_y"], line["ssim_spread"], 4),
            str(line["seeds"]),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def _with_spread(value: float, spread: float | None, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}" + ("" if spread is None else f" +- {spread:.{digits}f}")


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Save the plots; return their files, none without matplotlib."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        return []
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    lines = summary(result)
    timed = [line for line in lines if line["train_samples_per_s"]]
    timed = timed if len(timed) > 2 else []  # two points show nothing
    figure, axes = pyplot.subplots(1, 1 + bool(timed), figsize=(6 + 5 * bool(timed), 0.3 * len(lines) + 1.5))
    left = axes[0] if timed else axes
    for place, line in enumerate(lines):
        values = [row["psnr_y"] for row in result["rows"] if row["method"] == line["method"]]
        left.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, markersize=5)
        left.plot([line["psnr_y"]], [place], "|", color="black", markersize=12)
    left.set_yticks(range(len(lines)), [line["method"] for line in lines], fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("PSNR on luma, dB; a dot a seed")
    left.grid(axis="x", alpha=0.3)
    if timed:
        axes[1].plot([line["train_samples_per_s"] for line in timed], [line["psnr_y"] for line in timed], "o")
        for line in timed:
            place = (line["train_samples_per_s"], line["psnr_y"])
            axes[1].annotate(line["method"], place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes[1].set_xlabel("training, crops a second")
        axes[1].set_ylabel("PSNR on luma, dB")
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=130)
    pyplot.close(figure)
    draw_curves(result, folder / CURVES)
    return [folder / PLOT, folder / CURVES]


def curve_differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return every network's PSNR curve minus the base's of the same seed, mean over their common seeds."""
    curves = {(row["method"], row["seed"]): row["curve"]["psnr_y"] for row in rows}
    found: dict[str, list[list[float]]] = {}
    for (method, seed), curve in curves.items():
        if (BASE, seed) in curves:
            found.setdefault(method, []).append([a - b for a, b in zip(curve, curves[BASE, seed], strict=True)])
    return {row.name: [mean(at) for at in zip(*found[row.name], strict=True)] for row in ROWS if row.name in found}


def draw_curves(result: Mapping[str, Any], file: Path) -> None:
    """Save the base's PSNR curves, one a seed, and the differences of the others to it."""
    from matplotlib import pyplot

    rows = result["rows"]
    steps = rows[0]["curve"]["step"]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5))
    for row in rows:
        if row["method"] == BASE:
            axes[0].plot(steps, row["curve"]["psnr_y"], "k-o", markersize=3, alpha=0.6)
    axes[0].set_title(f"{BASE}: PSNR of the curve's photos, dB; a line a seed", fontsize=9)
    styles = ("-", "--", ":")
    for number, (method, values) in enumerate(curve_differences(rows).items()):
        axes[1].plot(steps, values, styles[number // 10 % 3], label=method, linewidth=1.2)
    axes[1].set_title("difference to it, dB", fontsize=9)
    if axes[1].lines:
        axes[1].legend(fontsize=6, ncols=2)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
