"""Two models on the same parts, sensors and seeds, and whether their difference is more than chance."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .evaluate import check_model, evaluate_model, finite, predict_part
from .fieldset import Part
from .metrics import Interval, bootstrap, ratio_reduction
from .model import SparseField
from .pictures import row, write_rows
from .predict import Prediction

FIGURES = ("psnr", "ssim", "relative_l2", "xsi", "psnr_mean", "ssim_mean", "relative_l2_mean", "xsi_mean", "crps")
REDUCED = frozenset({"relative_l2", "xsi", "relative_l2_mean", "xsi_mean", "crps"})  # less is better
CHARTED = ("psnr", "ssim", "xsi", "psnr_mean", "crps")
MOST_ROWS = 4  # parts in the picture
RESULTS = ("comparison_results.txt", "comparison_results.json", "v1_vs_v2_comparison.png", "improvement_chart.png")


def compare(
    a: SparseField, b: SparseField, parts: list[Part], device: torch.device, asked: Prediction
) -> dict[str, Any]:
    """Measure both models and their differences.

    Args:
        a: First model.
        b: Second model.
        parts: What they are measured on.
        device: Where they run.
        asked: Samples and how; part n has the same seed in both.

    Returns:
        "a" and "b" as `evaluate_model` returns them; "difference": b - a, mean and 95 % paired bootstrap interval;
        "reduction": 1 - b / a of what is better small, likewise.

    Raises:
        ValueError: A model was trained on something else than the parts.
    """
    for name, model in (("--a", a), ("--b", b)):
        check_model(model, parts, name)
    results = {"a": evaluate_model(a, parts, device, asked), "b": evaluate_model(b, parts, device, asked)}
    columns = {k: {name: _column(results[k], name) for name in FIGURES} for k in ("a", "b")}
    known = [name for name in FIGURES if len(columns["a"][name])]
    difference = {name: bootstrap(columns["b"][name] - columns["a"][name]) for name in known}
    reduction = {name: ratio_reduction(columns["a"][name], columns["b"][name]) for name in known if name in REDUCED}
    named = {"difference": difference, "reduction": reduction}
    parameters = {k: sum(p.numel() for p in m.parameters()) for k, m in (("a", a), ("b", b))}
    return {**results, **{k: {n: list(x) for n, x in v.items()} for k, v in named.items()}, "parameters": parameters}


def _column(result: dict[str, Any], name: str) -> np.ndarray:
    return np.array([part[name] for part in result["rows"] if name in part], np.float64)


def text_of(result: dict[str, Any], names: dict[str, str], asked: Prediction) -> str:
    """Return a comparison as text."""
    count = len(result["a"]["rows"])
    lines = [f"a: {names['a']} ({result['parameters']['a']:,} parameters)"]
    lines += [f"b: {names['b']} ({result['parameters']['b']:,} parameters)"]
    lines += [f"{count} parts, {asked.samples} samples, {asked.sampler.sampler} {asked.sampler.steps} steps", ""]
    lines.append(f"{'':<18}{'a':>12}{'b':>12}{'b - a':>12}{'95 % interval':>24}{'reduction':>12}{'95 % interval':>20}")
    for name, found in result["difference"].items():
        means = [result[k]["mean"][name][0] for k in ("a", "b")]
        d = Interval(*found)
        line = f"{name:<18}{means[0]:>12.4f}{means[1]:>12.4f}{d.mean:>+12.4f}{f'{d.low:+.4f} to {d.high:+.4f}':>24}"
        if name in result["reduction"]:
            r = Interval(*result["reduction"][name])
            line += f"{r.mean:>12.1%}{f'{r.low:.1%} to {r.high:.1%}':>20}"
        lines.append(line)
    lines += ["", "_mean: of the mean of the samples, else of one sample. The speckle index is a share of the range;"]
    lines += ["a constant field has none, so read it beside PSNR and SSIM."]
    return "\n".join(lines) + "\n"


def write_comparison(
    out: Path,
    result: dict[str, Any],
    models: dict[str, SparseField],
    names: dict[str, str],
    parts: list[Part],
    device: torch.device,
    asked: Prediction,
) -> None:
    """Write the four files of `RESULTS` into a folder."""
    (out / RESULTS[0]).write_text(text_of(result, names, asked))
    settings = {"models": names, "asked": asdict(asked), "parts": [part.name for part in parts]}
    (out / RESULTS[1]).write_text(json.dumps(finite({**settings, **result}), indent=1) + "\n")
    rows = []
    for number, part in enumerate(parts[:MOST_ROWS]):
        seeded = Prediction(**{**vars(asked), "seed": asked.seed + number, "samples": 1})
        sparse = np.full_like(part.flat, np.nan)
        sparse[part.sensors] = part.flat[part.sensors]
        fields = [predict_part(models[k], part, device, seeded)[0] for k in ("a", "b")]
        rows.append(row([sparse.reshape(part.values.shape), part.values, *fields], part.values))
    write_rows(rows, out / RESULTS[2])
    chart(result, names, out / RESULTS[3])


def chart(result: dict[str, Any], names: dict[str, str], path: Path) -> None:
    """Draw means of both models with their bootstrap intervals, one panel a figure."""
    from .figures import bars

    shown = [n for n in CHARTED if n in result["difference"] and isfinite(result["difference"][n][0])]
    bars({n: {names[k]: result[k]["mean"][n] for k in ("a", "b")} for n in shown}, path)
