"""Speed and memory of a network on this machine, beside timm's networks if asked for."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .checks import refuse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """How fast a network is.

    Attributes:
        milliseconds: For a batch, median.
        least: For a batch, the shortest.
        peak_bytes: Beyond the weights; None where the system does not tell.
    """

    milliseconds: float
    least: float
    peak_bytes: int | None


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        refuse("device", "device", "auto, cpu, cuda, cuda:1 or mps", name, f"not there: {str(error).splitlines()[0]}")
    return device


def runner(model: nn.Module, precision: str, *, compiled: bool, graph: bool, x: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs a network on `x`, prepared as it would be served.

    Args:
        model: In eval mode on the device of `x`; its weights are cast.
        precision: "fp32", "bf16" or "fp16".
        compiled: Run through torch.compile.
        graph: Record a CUDA graph once and replay it, which takes the host out of the time. Only on CUDA.
        x: Pictures.
    """
    from .saved import freeze, keep_single

    if precision != "fp32":
        if hasattr(model, "config"):
            keep_single(model, DTYPES[precision])
        else:
            model.to(DTYPES[precision])
    x = x.to(DTYPES[precision])
    if x.device.type == "cuda":  # what convolutions on tensor cores want
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x = x.contiguous(memory_format=torch.channels_last)
    freeze(model)
    call: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model

    def plain() -> Tensor:
        with torch.inference_mode():
            return call(x)

    if not graph or x.device.type != "cuda":
        return plain
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            plain()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        y = plain()

    def replay() -> Tensor:
        recorded.replay()
        return y

    return replay


def time_network(
    model: nn.Module,
    *,
    batch: int,
    image: tuple[int, int] | None = None,
    channels: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    repeats: int = 10,
    compiled: bool = False,
    graph: bool = False,
) -> Timing:
    """Time a network on random pictures.

    Args:
        model: Any classifier; ours know `image` and `channels` themselves.
        batch: Pictures at a time.
        image: Height and width.
        channels: Of the pictures.
        device: As for `pick_device`.
        precision: "fp32", "bf16" or "fp16": the type of weights and activations.
        repeats: Timed runs after two that are not counted.
        compiled: Run through torch.compile.
        graph: Replay a CUDA graph.

    Raises:
        ValueError: The memory is not enough, or there is no such device.
    """
    where = pick_device(device)
    config: Any = getattr(model, "config", None)
    height, width = image or config.image
    x = torch.randn(batch, channels or config.channels, height, width, device=where)
    model = model.to(where).eval()
    try:
        with PeakMemory(where) as memory:
            run = runner(model, precision, compiled=compiled, graph=graph, x=x)
            run()
        run()
        times = [_timed(run, where) for _ in range(repeats)]
    except torch.OutOfMemoryError as error:
        raise ValueError(f"benchmark: out of memory at {batch} pictures of {width}x{height}; lower --batch") from error
    return Timing(median(times), min(times), memory.peak)


def _timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Return the milliseconds of one run."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun)


def compare(
    models: Sequence[tuple[str, Callable[[], nn.Module]]],
    *,
    sizes: Sequence[tuple[tuple[int, int], int]],
    channels: int,
    device: str,
    precision: str,
    repeats: int,
    modes: Sequence[str] = ("eager",),
) -> dict[str, Any]:
    """Time several networks at several sizes in one run.

    Args:
        models: Names, and functions that build the network for a size of pictures given by `sizes`.
        sizes: ((height, width), batch) each.
        channels: Of the pictures.
        device: As for `pick_device`.
        precision: As for `time_network`.
        repeats: As for `time_network`.
        modes: "eager", "graph" (CUDA graph), "compiled".

    Returns:
        {"rows": [{model, image, batch, mode, precision, ms, images_per_s, peak_bytes, parameters}], "environment"}.
        A network that cannot run at a size has "error" in place of the times.
    """
    from ssm_kernels.bench import environment

    where = pick_device(device)
    rows = []
    for image, batch in sizes:
        for name, make in models:
            for mode in modes:
                row: dict[str, Any] = {"model": name, "image": list(image), "batch": batch, "mode": mode}
                row |= {"precision": precision}
                try:
                    model = make()
                    if hasattr(model, "set_input_size"):
                        model.set_input_size(image)  # pyright: ignore[reportCallIssue]
                    row["parameters"] = sum(p.numel() for p in model.parameters())
                    timing = time_network(
                        model,
                        batch=batch,
                        image=image,
                        channels=channels,
                        device=str(where),
                        precision=precision,
                        repeats=repeats,
                        compiled=mode == "compiled",
                        graph=mode == "graph",
                    )
                    row["ms"], row["ms_min"] = round(timing.milliseconds, 4), round(timing.least, 4)
                    row["images_per_s"] = round(1e3 * batch / timing.milliseconds, 2)
                    row["peak_bytes"] = timing.peak_bytes
                except (ValueError, RuntimeError, AssertionError) as error:
                    row["error"] = " ".join(str(error).split())[:200]
                rows.append(row)
                if where.type == "cuda":
                    torch.cuda.empty_cache()
    return {"rows": rows, "environment": {**environment(where), "cpu": cpu_name(), "threads": torch.get_num_threads()}}


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
            torch.cuda.synchronize(self.device)
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


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
