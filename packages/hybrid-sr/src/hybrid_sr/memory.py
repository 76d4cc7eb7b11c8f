"""How much memory is free, and how large a tile it allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .tiling import GRID, SMALLEST_TILE

# Peak bytes per input pixel and channel of width on a CPU, rounded up; docs/upscaling.md has the measurement.
CPU_BYTES_PER_CHANNEL = 160
UNKNOWN_WIDTH = 180  # channels assumed for a network without a configuration
PROBE_SIDES = (64, 128)  # pixels
LARGEST_AUTO_TILE = 512  # pixels; larger tiles gain little and take memory and, on a CPU, time
SHARE = 0.5  # of the free memory that tiles may take; the result and the rest of the machine need some too
FALLBACK = 4 << 30  # bytes, where the system does not tell


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device, as far as the system tells.

    On a CPU this is the smaller of what the machine and the process's control group (container) have left.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    return int(min(_machine_memory(), _group_memory(Path("/sys/fs/cgroup"))))


def auto_tile(height: int, width: int, *, bytes_per_pixel: float, free: int, largest: int = LARGEST_AUTO_TILE) -> int:
    """Return the side of the tile that `--tile auto` takes, a multiple of GRID.

    The whole picture if it is at most `largest` high and wide and fits into SHARE of `free`, else the largest side
    that fits.

    Args:
        height: Of the input, in pixels.
        width: Of the input, in pixels.
        bytes_per_pixel: Peak memory of the network per input pixel.
        free: Bytes.
        largest: Limit of the side, in pixels.
    """
    side = max(-(-height // GRID), -(-width // GRID)) * GRID
    pixels = free * SHARE / bytes_per_pixel
    if side <= largest and height * width <= pixels:
        return max(SMALLEST_TILE, side)
    return max(SMALLEST_TILE, min(int(pixels**0.5) // GRID * GRID, largest))


def network_bytes_per_pixel(model: nn.Module, device: torch.device, run: Callable[[Tensor], Tensor]) -> float:
    """Return the peak memory of a network per input pixel, in bytes.

    Measured on a CUDA device by running two small inputs; elsewhere a constant times the network's width.

    Args:
        model: Its `config.dim` is the width.
        device: Where it runs.
        run: Upscales (1, 3, h, w) with the model, in the precision that will be used.
    """
    if device.type != "cuda":
        width = getattr(getattr(model, "config", None), "dim", UNKNOWN_WIDTH)
        return float(CPU_BYTES_PER_CHANNEL * width)
    peaks = []
    for side in PROBE_SIDES:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(torch.zeros(1, 3, side, side))
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    small, large = PROBE_SIDES
    return max(1.0, (peaks[1] - peaks[0]) / (large**2 - small**2))


def _machine_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _total_memory() // 2
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else _total_memory() // 2


def _total_memory() -> int:
    names = getattr(os, "sysconf_names", {})  # absent on Windows
    if "SC_PHYS_PAGES" not in names:
        return 2 * FALLBACK
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_memory(root: Path) -> float:
    """Bytes that a container's limit leaves; infinite without one. File cache counts as free, it is given back."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), int((root / used).read_text())
            stat = (root / used).with_name("memory.stat").read_text().split()
        except (OSError, ValueError):
            continue
        if most != "max":
            return max(0, int(most) - now + int(stat[stat.index(cache) + 1] if cache in stat else 0))
    return float("inf")
