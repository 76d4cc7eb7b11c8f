"""Speed and memory of a network on this machine."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ssm_kernels.bench import environment

from .config import preset as make_config
from .model import HybridSR
from .upscaling import Precision, is_out_of_memory, network_runner, pick_device


def benchmark(
    preset: str,
    *,
    scale: int,
    height: int,
    width: int,
    device: str = "auto",
    precision: Precision = "fp32",
    repeats: int = 5,
) -> dict[str, Any]:
    """Time one network on one picture, random weights and pixels.

    Args:
        preset: Name of the network.
        scale: s.
        height: Rows of the input.
        width: Columns of the input.
        device: As for `pick_device`.
        precision: Of the network's arithmetic.
        repeats: Timed runs, after one that is not counted (compilation, allocation).

    Returns:
        What was asked for, and `ms` (median), `ms_min`, `output_megapixels_per_s`, `peak_bytes` (memory beyond the
        weights; on a CPU the growth of the process, None where the system does not tell) and `environment`.

    Raises:
        ValueError: Unknown preset or device, or the memory is not enough.
    """
    where = pick_device(device)
    torch.manual_seed(0)
    model = HybridSR(make_config(preset, scale)).to(where).eval()
    run = network_runner(model, where, precision, self_ensemble=False)
    x = torch.rand(1, 3, height, width)
    try:
        with PeakMemory(where) as memory:
            run(x)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"benchmark: out of memory at {width}x{height}; take a smaller picture") from error
    times = []
    for _ in range(repeats):
        _wait(where)
        start = time.perf_counter()
        run(x)
        _wait(where)
        times.append((time.perf_counter() - start) * 1e3)
    pixels = height * width * scale**2
    return {
        "preset": preset,
        "scale": scale,
        "height": height,
        "width": width,
        "device": str(where),
        "precision": precision,
        "repeats": repeats,
        "ms": round(median(times), 3),
        "ms_min": round(min(times), 3),
        "output_megapixels_per_s": round(pixels / median(times) / 1e3, 4),
        "peak_bytes": memory.peak,
        "environment": {**environment(where), "cpu": _cpu_name(), "threads": torch.get_num_threads()},
    }


class PeakMemory:
    """Measure the largest memory in use inside a `with` block, beyond what was in use before it.

    On CUDA the allocator's own count; on Linux the resident memory of the process, whose high-water mark is reset;
    elsewhere `peak` stays None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _reset_high_water()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is None:
            return
        cuda = self.device.type == "cuda"
        now = torch.cuda.max_memory_allocated(self.device) if cuda else _status("VmHWM")
        self.peak = None if now is None else max(0, now - self._before)


def _reset_high_water() -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key: str) -> int | None:
    """Return a line of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values[key].split()[0]) * 1024 if key in values else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
