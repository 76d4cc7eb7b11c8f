"""Time and memory of samples and of training steps on this machine, over numbers of queries."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ssm_kernels.bench import environment

from .config import preset as make_config
from .device import is_out_of_memory, pick_device
from .model import SparseField
from .predict import Prediction, sample_fields
from .process import at_time, flow_loss
from .samplers import SamplerConfig

BATCH = 64  # fields of a training step


def benchmark(
    names: list[str],
    *,
    sensors: int,
    grids: list[tuple[int, ...]],
    steps: int,
    train: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    repeats: int = 3,
) -> dict[str, Any]:
    """Time networks with random weights.

    Args:
        names: Of presets.
        sensors: Ni.
        grids: Shapes whose product is Nq.
        steps: Of Heun, for samples.
        train: Time an optimizer-free training step (prepare, forward, backward) of 64 fields instead.
        device: As for `pick_device`.
        precision: "fp32" or "bf16".
        repeats: Timed runs, after one that is not counted.

    Returns:
        "rows": preset, sensors, queries, parameters, ms (median), peak_bytes (of a GPU, weights included, else None)
        or error; "environment".

    Raises:
        ValueError: Unknown preset or device.
    """
    where = pick_device(device)
    rows = []
    for name in names:
        model = SparseField(make_config(name)).to(where).train(train)
        for grid in grids:
            queries = int(torch.tensor(grid).prod())
            row = {"preset": name, "sensors": sensors, "queries": queries, "train": train, "precision": precision}
            row["parameters"] = sum(p.numel() for p in model.parameters())
            rows.append(row | _time(model, sensors, queries, steps, where, precision, repeats))
    return {"rows": rows, "steps": steps, "environment": environment(where)}


def _time(
    model: SparseField, sensors: int, queries: int, steps: int, device: torch.device, precision: str, repeats: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    fields = BATCH if model.training else 1
    make = lambda n, c: torch.rand(fields, n, c, generator=generator).to(device)  # noqa: E731
    config = model.config
    coords, values, places = make(sensors, config.dims), make(sensors, config.channels), make(queries, config.dims)
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(repeats + 1):
            _wait(device)
            start = time.perf_counter()
            if model.training:
                _step(model, coords, values, places, precision)
            else:
                how = Prediction(sampler=SamplerConfig(steps=steps), bf16=precision == "bf16")
                sample_fields(model, coords, values, places, how)
            _wait(device)
            times.append((time.perf_counter() - start) * 1e3)
    except (RuntimeError, MemoryError, ValueError) as error:
        if not is_out_of_memory(error) and not isinstance(error, ValueError):
            raise
        return {"ms": None, "peak_bytes": None, "error": str(error).splitlines()[0][:200]}
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"ms": round(median(times[1:]), 3), "peak_bytes": peak}


def _step(model: SparseField, coords: torch.Tensor, values: torch.Tensor, places: torch.Tensor, precision: str) -> None:
    given = model.prepare(coords, values, places)
    noise = torch.randn_like(given.base)
    data = torch.zeros_like(noise)
    t = torch.rand(len(noise), device=noise.device)
    with torch.autocast(noise.device.type, torch.bfloat16, enabled=precision == "bf16"):
        velocity = model(at_time(data, noise, t), t, given)
    flow_loss(velocity, data, noise, given.spread).backward()
    model.zero_grad()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_rows(files: list[Path]) -> dict[str, Any]:
    """Return what `benchmark` returned in earlier runs, their rows together.

    Raises:
        ValueError: A file cannot be read, or the runs differ in the number of steps.
    """
    try:
        found = [json.loads(file.read_text()) for file in files]
        rows = [row for record in found for row in record["rows"]]
        steps = {record["steps"] for record in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--read: must be JSON files of --out, got {error}") from error
    if len(steps) > 1 or not rows:
        raise ValueError(f"--read: the files must have rows of one number of steps, got {sorted(steps)}")
    return {**found[0], "rows": rows}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw times over queries, a curve for each preset and number of sensors."""
    from .figures import lines

    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted(rows, key=lambda r: r["queries"]):
        if row["ms"] is not None:
            x, y = curves.setdefault(f"{row['preset']}, {row['sensors']:,} sensors", ([], []))
            x.append(row["queries"])
            y.append(row["ms"])
    title = "training step" if rows[0]["train"] else "one sample"
    lines(curves, path, x="queries (log)", y="ms (log)", title=title)


def crossover(rows: list[dict[str, Any]], ours: str, other: str) -> int | None:
    """Return the smallest number of queries at which `ours` is the faster one, or at which the other does not run."""
    found = []
    for row in rows:
        if row["preset"] != ours or row["ms"] is None:
            continue
        rival = next((r for r in rows if r["preset"] == other and r["queries"] == row["queries"]), None)
        if rival is not None and (rival["ms"] is None or rival["ms"] > row["ms"]):
            found.append(row["queries"])
    return min(found) if found else None
