"""One model at several resolutions and with several samplers, against truths that really are as fine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import nan
from pathlib import Path
from typing import Any

import torch

from .evaluate import evaluate_baseline, evaluate_model, finite, predict_part
from .fieldset import Part
from .model import SparseField
from .pictures import row, write_rows
from .predict import Prediction
from .samplers import Sampler

RESULTS = (
    *("metrics_comparison.txt", "metrics_comparison.json", "multiscale_comparison.png", "performance_chart.png"),
)
REFERENCE = "rbf"  # a classical method at every resolution


def multiscale(
    model: SparseField,
    parts: list[Part],
    device: torch.device,
    asked: Prediction,
    resolutions: list[int],
    samplers: list[Sampler],
    *,
    own_support: bool = False,
) -> dict[str, Any]:
    """Measure a model at every resolution with every sampler, at equal numbers of network evaluations.

    Args:
        model: On the device.
        parts: With truths at the resolutions.
        device: Where it runs.
        asked: Samples, and Heun's steps; the samplers with one evaluation a step take twice as many.
        resolutions: Points along each axis.
        samplers: Names.
        own_support: Sensors measure cells of each resolution's own grid, instead of the parts' own, coarser ones.

    Returns:
        By resolution and sampler (and "rbf") what `evaluate_model` returns, and the best sampler by PSNR of the mean.
    """
    found: dict[str, Any] = {}
    for resolution in resolutions:
        these = _supported(parts, resolution, own_support)
        here = {
            name: evaluate_model(model, these, device, _with(asked, name), resolution=resolution) for name in samplers
        }
        best = max(here, key=lambda name: here[name]["mean"]["psnr_mean"][0])
        here[REFERENCE] = evaluate_baseline(REFERENCE, these, resolution)
        found[str(resolution)] = {"results": here, "best": best}
    return found


def _supported(parts: list[Part], resolution: int, own: bool) -> list[Part]:
    return [part.on_grid(resolution) for part in parts] if own else parts


def _with(asked: Prediction, sampler: Sampler) -> Prediction:
    steps = asked.sampler.steps if sampler == "heun" else 2 * asked.sampler.steps
    return replace(asked, sampler=replace(asked.sampler, sampler=sampler, steps=steps))


def text_of(found: dict[str, Any], asked: Prediction) -> str:
    """Return the figures as text."""
    lines = [f"{asked.samples} samples, {asked.sampler.evaluations} network evaluations each", ""]
    names = ("psnr", "psnr_mean", "ssim_mean", "xsi", "crps", "coverage")
    lines.append(f"{'resolution':<12}{'sampler':<10}" + "".join(f"{n:>12}" for n in names))
    for resolution, here in found.items():
        for sampler, result in here["results"].items():
            cells = "".join(f"{result['mean'].get(n, [nan])[0]:>12.4f}" for n in names)  # no CRPS of one sample
            lines.append(f"{resolution:<12}{sampler:<10}{cells}")
        lines.append(f"best at {resolution}: {here['best']} (PSNR of the mean)\n")
    return "\n".join(lines) + "\n"


def write_multiscale(
    out: Path,
    found: dict[str, Any],
    model: SparseField,
    parts: list[Part],
    device: torch.device,
    asked: Prediction,
    settings: dict[str, Any],
    *,
    own_support: bool = False,
) -> None:
    """Write the four files of `RESULTS` into a folder; `own_support` as `multiscale` had it."""
    from .figures import lines

    (out / RESULTS[0]).write_text(text_of(found, asked))
    record = {**settings, "asked": asdict(asked), "parts": [part.name for part in parts], "resolutions": found}
    (out / RESULTS[1]).write_text(json.dumps(finite(record), indent=1) + "\n")
    one = replace(asked, samples=1)
    samplers = [name for name in next(iter(found.values()))["results"] if name != REFERENCE]
    rows = []
    for resolution in map(int, found):
        (part,) = _supported(parts[:1], resolution, own_support)
        fields = [predict_part(model, part, device, _with(one, name), resolution)[0] for name in samplers]  # pyright: ignore[reportArgumentType]
        truth = part.fine[resolution]
        rows.append(row([truth, *fields], truth))
    write_rows(rows, out / RESULTS[2])
    sides = [int(r) for r in found]
    curves = {
        name: (sides, [found[str(r)]["results"][name]["mean"]["psnr_mean"][0] for r in sides])
        for name in (*samplers, REFERENCE)
    }
    lines(curves, out / RESULTS[3], x="points along each axis", y="PSNR of the mean, dB", title="multiscale")
