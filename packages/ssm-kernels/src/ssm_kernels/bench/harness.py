"""Timing of one function on a GPU or a CPU, and what the numbers depend on."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any current GPU (50 MiB on an H100)


@dataclass(frozen=True)
class Timing:
    """Median time of one call in milliseconds, and the memory it needs beyond what was there; None on a CPU."""

    median_ms: float
    peak_bytes: int | None


def measure(function: Callable[[], object], device: torch.device, *, repeat: int = 20, budget_s: float = 2.0) -> Timing:
    """Call a function until its time is known, after a warm-up that is not counted.

    On a GPU every call starts with a cold L2 cache and is timed by CUDA events; writing the cache full also keeps the
    GPU busy while the call is launched, so that the launch itself is not measured.

    Args:
        function: Called without arguments; its result is dropped.
        device: Where it runs.
        repeat: Calls that are timed, at most.
        budget_s: Fewer calls, but at least three, if they would take longer than this many seconds.
    """
    function()
    start = time.perf_counter()
    function()
    _wait(device)
    once = time.perf_counter() - start
    repeat = max(3, min(repeat, int(budget_s / max(once, 1e-9))))
    if device.type == "cuda":
        times = _cuda_times(function, device, repeat)
    else:
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            function()
            times.append((time.perf_counter() - start) * 1e3)
    return Timing(statistics.median(times), _peak_bytes(function, device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda_times(function: Callable[[], object], device: torch.device, repeat: int) -> list[float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    for start, stop in marks:
        flush.zero_()
        start.record()
        function()
        stop.record()
    _wait(device)
    return [start.elapsed_time(stop) for start, stop in marks]


def _peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    _wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def environment(device: torch.device) -> dict[str, str | None]:
    """Return what times depend on: GPU and driver (None on a CPU), torch, triton, and the commit of this checkout."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    on_gpu = device.type == "cuda"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = _output(query) if on_gpu else None
    return {
        "GPU": torch.cuda.get_device_name(device) if on_gpu else None,
        "driver": driver.splitlines()[0] if driver else None,
        "torch": torch.__version__,
        "triton": triton,
        "git": _output(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]),
    }


def _output(command: list[str]) -> str | None:
    """Return what a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
