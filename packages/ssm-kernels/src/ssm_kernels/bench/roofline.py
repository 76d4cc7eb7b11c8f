"""The time below which no implementation can be: bytes that must move once, or exponentials that must be made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

EXP2_PER_CLOCK = 16  # of one multiprocessor's special-function units, on every NVIDIA GPU from Volta to Hopper


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches: bytes per second (read plus written) and exponentials per second."""

    copy_bytes_per_s: float
    exp2_per_s: float


# Measured on one H100 80GB (torch 2.11, triton 3.6): a copy kernel over 4 GB, and a kernel of nothing but exp2
H100 = Rates(3.0e12, 4.13e12)


def floor_ms(moved_bytes: float, exponentials: float = 0.0, rates: Rates = H100) -> float:
    """Return the lower bound in milliseconds.

    Args:
        moved_bytes: Inputs read once plus outputs written once.
        exponentials: Evaluations of exp; one special-function operation each.
        rates: Of the GPU; an H100 if not given.
    """
    return 1e3 * max(moved_bytes / rates.copy_bytes_per_s, exponentials / rates.exp2_per_s)


def rates_of(device: torch.device) -> Rates | None:
    """Return what this device reaches; None for a CPU.

    An H100 has the figures measured once, so that its floors do not change from run to run. Elsewhere a copy is timed,
    and the exponentials follow from multiprocessors and clock (1 % above what was measured on an H100).
    """
    if device.type != "cuda":
        return None
    about = torch.cuda.get_device_properties(device)
    if "H100" in about.name:
        return H100
    return Rates(_copy_rate(device), about.multi_processor_count * EXP2_PER_CLOCK * about.clock_rate * 1e3)


def _copy_rate(device: torch.device, size: int = 2**30) -> float:
    """Time the copy of `size` bytes and return bytes read plus written per second, the best of ten."""
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return 2 * size / (min(times) * 1e-3)
