"""What a person looks at after a study: a table, a plot, a sheet of pictures of the same prompts and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

COLUMNS = (
    ("parameters", "parameters", "{:,.0f}"),
    ("loss", "loss / ln V", "{:.4f}"),
    ("caption_gap", "caption gap, nats", "{:+.4f}"),
    ("loss_at_1", "loss / ln V, all hidden", "{:.4f}"),
    ("R@5", "R@5", "{:.0%}"),
    ("flat_share", "flat pictures", "{:.0%}"),
    ("unique_codes", "codes used", "{:.0f}"),
)


def by_method(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group rows by method, best mean loss first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return dict(sorted(groups.items(), key=lambda item: mean(row["loss"] for row in item[1])))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: means over seeds, and the largest distance of a seed from the mean loss."""
    head = ["method", "seeds", *(title for _, title, _ in COLUMNS), "loss, largest deviation"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, group in by_method(rows).items():
        losses = [row["loss"] for row in group]
        spread = max(abs(loss - mean(losses)) for loss in losses)
        cells = [_mean(group, name, form) for name, _, form in COLUMNS]
        lines.append("| " + " | ".join([method, str(len(group)), *cells, f"{spread:.4f}"]) + " |")
    return "\n".join(lines) + "\n"


def _mean(group: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    values = [row[name] for row in group if name in row]
    return form.format(mean(values)) if values else "-"


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> bool:
    """Save loss and caption gap of every method; every seed is a dot. False without matplotlib."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("agg")
    from matplotlib import pyplot

    groups = by_method(rows)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.34 * len(groups) + 1.4), sharey=True, layout="constrained")
    for axis, name, title in zip(
        axes,
        ("loss", "caption_gap"),
        ("held-out loss / ln V (less is better)", "caption gap, nats (more is better)"),
        strict=True,
    ):
        for place, group in enumerate(groups.values()):
            values = [row[name] for row in group]
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, markersize=5)
            axis.plot([mean(values)], [place], "|", color="black", markersize=12)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return True


def sheet(folders: Mapping[str, Path], file: Path, count: int) -> bool:
    """Save one row a method, one column a prompt, originals on top. False without pictures."""
    from PIL import Image, ImageDraw

    found = {name: folder for name, folder in folders.items() if (folder / "pictures.png").is_file()}
    if not found:
        return False
    first = next(iter(found.values()))
    captions = json.loads((first / "captions.json").read_text())[:count]
    strips = {"original": first / "originals.png"} | {m: f / "pictures.png" for m, f in sorted(found.items())}
    rows = {name: np.asarray(Image.open(path).convert("RGB")) for name, path in strips.items()}
    side = next(iter(rows.values())).shape[0]
    scale = max(1, 64 // side)
    cell, left, top = side * scale, 110, 14 + 12 * 2
    canvas = Image.new("RGB", (left + cell * len(captions), top + cell * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        words = caption.split()
        lines = [" ".join(words[:2]), " ".join(words[2:4])]
        for line, part in enumerate(lines):
            pen.text((left + column * cell + 2, 4 + 12 * line), part[: cell // 6], fill="black")
    for row, (name, pixels) in enumerate(rows.items()):
        strip = Image.fromarray(pixels[:, : side * len(captions)])
        canvas.paste(strip.resize((strip.width * scale, cell), Image.Resampling.NEAREST), (left, top + row * cell))
        pen.text((4, top + row * cell + cell // 2 - 6), name, fill="black")
    canvas.save(file)
    return True
