"""Run the rows of the study side by side, each in a process of its own, then time the networks one by one.

DIR/study-config.json says how, DIR/rows/ holds what is done, DIR/study.json everything together, DIR/*.svg the plots.
DIR/pictures/ holds the pictures that all rows of a seed train on, while there are rows to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from .ahead import make_ahead
from .checkpoint import replace_text
from .rows import PICTURES, Job, base_config, find_job, jobs
from .schedule import row_file, run_rows
from .sources import is_stream, open_pictures

if TYPE_CHECKING:
    import torch

    from .recipes import TrainConfig

TIMED_BATCH = {"cuda": 256, "cpu": 16}


def run_study(
    folder: Path,
    settings: dict[str, Any],
    *,
    names: list[str],
    seeds: Sequence[int],
    parallel: int,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Do what is not done yet and collect.

    Args:
        folder: Of the study; rows that are done are not done again.
        settings: Recipe, data, steps, ... : what all rows share.
        names: Rows; empty for all.
        seeds: Of the repetitions of each.
        parallel: Rows at a time.
        minutes: After which rows that run are stopped and no others begin; None for no limit.

    Returns:
        What study.json holds: {"rows": [...], "failed": [...], "settings", "environment"}.

    Raises:
        ValueError: A row is unknown, the folder is of another study, or no picture is held out to score on.
    """
    chosen = [find_job(name) for name in names] if names else jobs()
    chosen = with_needs(chosen)
    waiting = [(job, seed) for seed in seeds for job in chosen]
    waiting = [(job, seed) for job, seed in waiting if not row_file(folder, job.name, seed).is_file()]
    if waiting:
        check_data(base_config(settings, seeds[0]))
    keep_settings(folder, settings)
    make_pictures(folder, settings, {seed for _, seed in waiting})
    failed = run_rows(folder, waiting, parallel, minutes)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    return collect(folder, settings, failed)


def check_data(base: TrainConfig) -> None:
    """Refuse pictures of which none are held out to score on, before anything is trained."""
    if base.data is not None and is_stream(base.data):
        from .stream import held_split

        missing, remedy = held_split(base.data) is None, "add shards whose names begin with validation or test"
    else:
        missing = not open_pictures(base.data, max(base.model.image), verbose=False)[1]
        remedy = "put some into its folder val/CLASS"
    if missing:
        raise ValueError(f"study: data must have held-out pictures to score on, got none in {base.data}; {remedy}")


def make_pictures(folder: Path, settings: dict[str, Any], seeds: set[int]) -> None:
    """Make the pictures of every step once for all rows of a seed; those of a stream or a device are left to them."""
    for seed in sorted(seeds):
        base = base_config(settings, seed)
        if not base.resident and (base.data is None or not is_stream(base.data)):
            make_ahead(replace(base, ahead=str(folder / PICTURES)), workers=min(32, os.cpu_count() or 1))


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what the study is about, or see that it is the same."""
    file = folder / "study-config.json"
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise ValueError(f"--out: {folder} is a study with other settings; give those, or another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"--out: {folder} cannot be written: {error}; choose another folder") from error


def with_needs(chosen: list[Job]) -> list[Job]:
    """Put before each row the rows that it waits for, and those that they wait for."""
    found: dict[str, Job] = {}
    for job in chosen:
        for one in [*with_needs([find_job(name) for name in job.needs]), job]:
            found.setdefault(one.name, one)
    return list(found.values())


def collect(folder: Path, settings: dict[str, Any], failed: list[str]) -> dict[str, Any]:
    """Time the networks of all rows, one at a time, and write study.json and the plots."""
    import torch
    from ssm_kernels.bench import environment

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for file in sorted((folder / "rows").glob("*.json")):
        row = json.loads(file.read_text())
        rows += row.get("rounds") or [row]
    rows = [row | time_row(folder, row["config"], device) for row in rows]
    result = {
        "rows": rows,
        "failed": failed,
        "settings": settings,
        "environment": {**environment(device), "threads": os.cpu_count()},
    }
    replace_text(folder / "study.json", json.dumps(result, indent=1) + "\n")
    draw(rows, folder)
    return result


def time_row(folder: Path, config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the latency of a network for a batch; equal ones are timed once.

    Masks do not change it, as `benchmark --keep` shows. DIR/times.json keeps what was timed.
    """
    from .benchmark import time_network
    from .config import config_from_dict
    from .models import make_network

    key = hashlib.sha256(json.dumps([device.type, config], sort_keys=True).encode()).hexdigest()[:16]
    file = folder / "times.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    if key not in known:
        batch = TIMED_BATCH.get(device.type, 16)
        cuda = device.type == "cuda"
        timing = time_network(
            make_network(config_from_dict(config)),
            batch=batch,
            device=str(device),
            precision="bf16" if cuda else "fp32",
            graph=cuda,
        )
        known[key] = {"latency_ms": round(timing.milliseconds, 4), "latency_batch": batch, "timed_on": device.type}
        known[key]["peak_bytes"] = timing.peak_bytes
        replace_text(file, json.dumps(known, indent=1))
    return known[key]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each method: means over seeds, and the spread of the accuracy."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["method"]].append(row)
    lines = []
    for method, same in groups.items():
        top1 = [row["top1"] for row in same]
        line = {"method": method, "seeds": len(same), "top1": mean(top1)}
        line["top1_std"] = stdev(top1) if len(top1) > 1 else 0.0
        for name in ("sparsity", "parameters", "total_macs", "latency_ms", "seconds"):
            line[name] = mean(row[name] for row in same)
        lines.append(line)
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """Return the study as text, one method a line."""
    lines = [f"{'method':<28}{'seeds':>6}{'top-1 %':>15}{'zeros':>8}{'params k':>10}{'M MACs':>9}{'ms':>9}"]
    for line in summary(rows):
        top1 = f"{line['top1']:.2f} +- {line['top1_std']:.2f}"
        lines.append(
            f"{line['method']:<28}{line['seeds']:>6}{top1:>15}{100 * line['sparsity']:>7.1f}%"
            f"{line['parameters'] / 1e3:>10.0f}{line['total_macs'] / 1e6:>9.1f}{line['latency_ms']:>9.2f}"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """Plot accuracy against sparsity and against latency, with the spread over seeds, if matplotlib is there."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None or not rows:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = summary(rows)
    masked = [line for line in lines if line["sparsity"] > 0 or line["method"] == "dense"]
    whole = [line for line in lines if line["sparsity"] == 0]  # a mask changes no latency
    for shown, name, label, file in (
        (masked, "sparsity", "share of zeros among the weights that may be pruned", "accuracy-sparsity.svg"),
        (whole, "latency_ms", "milliseconds a batch", "accuracy-latency.svg"),
    ):
        figure, axes = plt.subplots(figsize=(10, 6))
        for number, (series, points) in enumerate(_series(shown).items()):
            points.sort(key=lambda line: line[name])
            where = [line[name] for line in points]
            marker, colour = "osD^vPX*"[number // 10 % 8], f"C{number % 10}"
            axes.errorbar(
                where,
                [line["top1"] for line in points],
                yerr=[line["top1_std"] for line in points],
                marker=marker,
                color=colour,
                capsize=3,
                linewidth=1,
                label=series,
            )
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}):  # text as text; no chance
            figure.savefig(folder / file, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def _series(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Put methods that differ by the number at their end together."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        found[re.sub(r"-\d+$", "", line["method"])].append(line)
    return dict(found)
