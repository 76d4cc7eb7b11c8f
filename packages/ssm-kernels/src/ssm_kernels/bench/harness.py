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
FLUSHES = 20  # about 2 ms on an H100, in which the host launches what is timed
FLUSH_S = 1e-4  # of one, at least
COVER = 3  # times what a launch took just before: hosts that others use too are slow now and then
MOST_FLUSHES = 200


@dataclass(frozen=True)
class Timing:
    """Medians of one call: milliseconds, memory beyond what was there, microseconds of host time; None on a CPU."""

    median_ms: float
    peak_bytes: int | None
    host_us: float | None = None


def measure(function: Callable[[], object], device: torch.device, *, repeat: int = 20, budget_s: float = 2.0) -> Timing:
    """Call a function until its time is known, after a warm-up that is not counted.

    On a GPU every call starts with a cold L2 cache and is timed by CUDA events; writing the cache full, many times,
    also keeps the GPU busy while the call is launched: a launch is not measured unless it takes more than 20 ms, or
    three times as long as the one before (`host_us` tells how long it took).

    Args:
        function: Called without arguments; its result is dropped.
        device: Where it runs.
        repeat: Calls that are timed, at most.
        budget_s: Fewer calls, if they would take longer than this many seconds; one, if three would.
    """
    function()
    wait(device)
    start = time.perf_counter()
    peak = peak_bytes(function, device)
    once = time.perf_counter() - start
    if budget_s < 3 * once:
        return Timing(once * 1e3, peak)
    repeat = max(3, min(repeat, int(budget_s / max(once, 1e-9))))
    if device.type == "cuda":
        times, host = _cuda_times(function, device, repeat)
        return Timing(statistics.median(times), peak, statistics.median(host))
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return Timing(statistics.median(times), peak)


def wait(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda_times(function: Callable[[], object], device: torch.device, repeat: int) -> tuple[list[float], list[float]]:
    """Return milliseconds on the device and microseconds on the host, of every call."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    before = time.perf_counter()
    function()
    launch = time.perf_counter() - before
    wait(device)
    flushes = min(MOST_FLUSHES, max(FLUSHES, int(COVER * launch / FLUSH_S)))
    host = []
    for start, stop in marks:
        for _ in range(flushes):
            flush.zero_()
        start.record()
        before = time.perf_counter()
        function()
        host.append((time.perf_counter() - before) * 1e6)
        stop.record()
    wait(device)
    return [start.elapsed_time(stop) for start, stop in marks], host


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Call once and return the memory that it needs beyond what was there; None on a CPU."""
    if device.type != "cuda":
        function()
        return None
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def environment(device: torch.device) -> dict[str, str | None]:
    """Return what times depend on: GPU and driver (None on a CPU), torch, triton, and the commit of this checkout."""
    on_gpu = device.type == "cuda"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = _output(query) if on_gpu else None
    return {
        "GPU": torch.cuda.get_device_name(device) if on_gpu else None,
        "driver": driver.splitlines()[0] if driver else None,
        "torch": torch.__version__,
        "triton": installed("triton"),
        "git": _output(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]),
    }


def installed(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    """Return what a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
