"""Time a training step and the upscaling of one picture, with random weights and pixels, and measure their memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch

from .attention import use_eager_attention, use_pytorch_norms
from .benchmark import PeakMemory
from .config import ModelConfig
from .graphs import DTYPES, record
from .loss import pixel_loss
from .model import HybridSR
from .recipes import TrainConfig

Mode = Literal["eager", "compile", "graph"]
Plain = Literal["nothing", "attention", "attention and norms"]
WARM_UP = 3  # runs that are not counted: compilation, allocation


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a network is run.

    Attributes:
        config: The network.
        device: Where.
        precision: "no" is float32; "bf16" and "fp16" are autocast.
        mode: "eager", through "compile", or replayed from a CUDA "graph".
        plain: What is plain PyTorch instead of ssm-kernels' operators: window attention, and norms besides.
        repeats: Timed runs; the median counts.
    """

    config: ModelConfig
    device: torch.device
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    mode: Mode = "eager"
    plain: Plain = "nothing"
    repeats: int = 10

    def build(self) -> HybridSR:
        """Return the network with fixed random weights."""
        torch.manual_seed(0)
        model = HybridSR(self.config).to(self.device)
        if self.plain != "nothing":
            use_eager_attention(model)
        if self.plain == "attention and norms":
            use_pytorch_norms(model)
        return model

    def autocast(self) -> torch.autocast:
        """Return the precision's context."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "no", cache_enabled=False)


def training_speed(setup: Setup, cfg: TrainConfig) -> dict[str, Any]:
    """Time an optimizer step: forward, L1 loss, backward, clipping, fused AdamW.

    Args:
        setup: The network and how it runs.
        cfg: Gives the batch (`micro_batch`) and the side of the crops.

    Returns:
        `ms` a step (median), `samples_per_s`, `peak_bytes`: the most that one step takes beyond weights and moments,
        always measured eagerly or compiled, since a recorded graph keeps its memory; None where the system does not
        tell.
    """
    model = setup.build().train()
    network: Callable[[torch.Tensor], torch.Tensor] = model
    if setup.mode == "compile":
        network = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    scale, side, batch = setup.config.scale, cfg.patch, cfg.micro_batch
    lr = torch.rand(batch, 3, side, side, device=setup.device)
    hr = torch.rand(batch, 3, scale * side, scale * side, device=setup.device)

    def step() -> None:
        with setup.autocast():
            y = network(lr)
        pixel_loss("l1", y.float(), hr).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # gradients, moments
        step()
    with PeakMemory(setup.device) as memory:
        step()
    if setup.mode == "graph":
        record(model, cfg, setup.device)
    ms = milliseconds(step, setup.device, setup.repeats)
    return {"ms": round(ms, 3), "samples_per_s": round(1e3 * batch / ms, 2), "peak_bytes": memory.peak}


def inference_speed(setup: Setup, height: int, width: int) -> dict[str, Any]:
    """Time the upscaling of one picture that is in the device's memory.

    Args:
        setup: The network and how it runs.
        height: Rows of the low-resolution picture.
        width: Columns of it.

    Returns:
        `ms` (median), `megapixels_per_s` of output, and `peak_bytes` beyond the weights and the input (eager or
        compiled), None where the system does not tell.
    """
    model = setup.build().eval()
    network = torch.compile(model) if setup.mode == "compile" else model
    x = torch.rand(1, 3, height, width, device=setup.device)

    def run() -> torch.Tensor:
        with torch.inference_mode(), setup.autocast():
            return network(x)

    run()
    with PeakMemory(setup.device) as memory:
        run()
    ms = milliseconds(_recorded(run) if setup.mode == "graph" else run, setup.device, setup.repeats)
    pixels = height * width * setup.config.scale**2
    return {"ms": round(ms, 3), "megapixels_per_s": round(pixels / ms / 1e3, 3), "peak_bytes": memory.peak}


def _recorded(run: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """Record a function as a CUDA graph and return its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of a call, each awaited."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
