"""The package's speed in one run on one GPU: `python -m hybrid_sr.speed --out FILE [--photos DIR] [--weights DIR]`.

Hybrids against attention only at equal size, a training step and inference; "HAT-light eager" has the attention and the
norms of PyTorch alone, "HAT-light fused" those of ssm-kernels. Upscaling to 4K whole and in tiles; what half precision
costs in PSNR; torch.compile. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ssm_kernels import window_attention
from ssm_kernels.bench import environment
from torch import Tensor

from .attention import eager_window_attention
from .benchmark import PeakMemory
from .config import preset
from .evaluate import folder_images
from .metrics import psnr_y
from .model import HybridSR
from .recipes import recipe
from .resize import imresize, modcrop
from .study import write
from .timing import Plain, Setup, inference_speed, training_speed
from .upscaling import Precision, Tile, upscale
from .weights import load_model

BATCH = 16
INPUT = 180, 320  # rows and columns; 1280 x 720 at x4
INPUT_4K = 540, 960  # 3840 x 2160 at x4
SHAPES = {  # images of 64 x 64 pixels, heads, head dim, key window; as in the peers' table
    "HAT-light": (8, 6, 10, 16),
    "HAT": (8, 6, 30, 16),
    "OCAB": (8, 6, 30, 24),
}
NETWORKS: tuple[tuple[str, str, Plain], ...] = (  # all of about equal size
    ("hybrid", "contrast-no-pe-no-cab", "nothing"),
    ("hybrid with CAB", "contrast-baseline", "nothing"),
    ("HAT-light fused", "hat-light", "nothing"),
    ("HAT-light eager attention", "hat-light", "attention"),
    ("HAT-light eager", "hat-light", "attention and norms"),
)
Measurement = Callable[[], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; return 0, or 2 without a GPU. A measurement that fails leaves its error in its place."""
    parser = argparse.ArgumentParser(prog="python -m hybrid_sr.speed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; what it holds is not measured again")
    parser.add_argument("--photos", type=Path, help="folder of originals for the PSNR of half precision")
    parser.add_argument("--weights", type=Path, help="x4 weights for that and for 4K; the shipped ones if not given")
    parser.add_argument("--only", default="", help="comma-separated; measure what has one of these in its name")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("hybrid_sr.speed: must have a CUDA GPU; hybrid-sr benchmark measures elsewhere", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    results: dict[str, Any] = {"environment": environment(device)}
    if options.out.is_file():
        import json

        results |= json.loads(options.out.read_text())
    for name, measure in measurements(device, options.photos, options.weights):
        wanted = any(part in name for part in options.only.split(","))
        if not wanted or "error" not in results.get(name, {"error": ""}):
            continue
        begun = time.monotonic()
        try:
            results[name] = measure()
        except (RuntimeError, ValueError) as error:
            results[name] = {"error": " ".join(str(error).split())[:500]}
        write(options.out, results)
        print(f"{name} ({time.monotonic() - begun:.0f} s): {results[name]}", flush=True)
        torch.cuda.empty_cache()
    return 0


def measurements(device: torch.device, photos: Path | None, weights: Path | None) -> Iterator[tuple[str, Measurement]]:
    """Yield everything that is measured, by name; what takes longest to prepare comes last."""
    for name, shape in SHAPES.items():
        yield f"attention {name}", lambda shape=shape: attention_times(*shape, device)
    networks = [(label, Setup(config=preset(name, 4), device=device, plain=plain)) for label, name, plain in NETWORKS]
    for label, setup in networks:
        for mode in ("eager", "graph"):
            yield f"{mode}: {label}", lambda setup=setup, mode=mode: network_times(replace(setup, mode=mode))
    if photos is not None:
        yield "half precision", lambda: half_precision(device, weights, photos)
    for precision in ("fp32", "bf16", "fp16"):
        for tile in ("full", 512, 256, 128):
            yield f"4K {precision} tile {tile}", lambda t=tile, p=precision: upscale_times(device, weights, t, p)
    for label, setup in networks[:3]:
        yield f"compile: {label}", lambda setup=setup: network_times(replace(setup, mode="compile"))


def network_times(setup: Setup) -> dict[str, Any]:
    """Return the speed of a training step at batch 16, crops of 64, and of one picture to 1280 x 720, bfloat16."""
    cfg = replace(recipe("ship"), model=setup.config, global_batch=BATCH, micro_batch=BATCH)
    return {"training": training_speed(setup, cfg), "inference": inference_speed(setup, *INPUT)}


def attention_times(images: int, heads: int, dim: int, key_window: int, device: torch.device) -> dict[str, Any]:
    """Return milliseconds on the GPU of window attention with bias, bfloat16, forward and backward.

    "eager" and "fused" go from picture to picture. "eager core" is products and softmax alone, on windows that are cut
    and a bias that is looked up already: what the peers' tables of eager attention hold.
    """
    torch.manual_seed(0)
    q, k, v, g = torch.randn(4, images, 64, 64, heads, dim, device=device, dtype=torch.bfloat16).unbind()
    table = torch.randn((16 + key_window - 1) ** 2, heads, device=device, dtype=torch.bfloat16)
    inputs = [x.requires_grad_() for x in (q, k, v, table)]
    result: dict[str, Any] = {}
    for name, function in (("eager", eager_window_attention), ("fused", window_attention)):

        def forward(function: Callable[..., Tensor] = function) -> Tensor:
            return function(q, k, v, window=16, key_window=key_window, bias_table=table)

        y = forward()
        result[f"{name} forward ms"] = gpu_milliseconds(forward)
        result[f"{name} backward ms"] = gpu_milliseconds(
            lambda y=y: torch.autograd.grad(y, inputs, g, retain_graph=True)
        )
    windows, pixels = images * 16, key_window**2
    cut = torch.randn(windows, heads, 256, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
    keys, values = (
        torch.randn(windows, heads, pixels, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    bias = torch.randn(heads, 256, pixels, device=device, dtype=torch.bfloat16)

    def core() -> Tensor:
        return ((cut * dim**-0.5) @ keys.mT + bias).softmax(-1) @ values

    y = core()
    grad = torch.randn_like(y)
    result["eager core forward ms"] = gpu_milliseconds(core)
    result["eager core backward ms"] = gpu_milliseconds(
        lambda: torch.autograd.grad(y, (cut, keys, values), grad, retain_graph=True)
    )
    return result


def gpu_milliseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Return the median time of a call on the GPU, without the host's part."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # about 10 ms, in which the host gets ahead
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(median(times), 4)


def upscale_times(device: torch.device, weights: Path | None, tile: Tile, precision: Precision) -> dict[str, Any]:
    """Return the speed of `upscale` from 960 x 540 to 3840 x 2160, from and to arrays in the host's memory."""
    model = load_model(weights, scale=4, device=device)
    image = np.random.default_rng(0).integers(0, 256, (*INPUT_4K, 3), dtype=np.uint8)

    def run() -> NDArray:
        return upscale(model, image, tile=tile, precision=precision)

    run()
    with PeakMemory(device) as memory:
        run()
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    pixels = 16 * INPUT_4K[0] * INPUT_4K[1]
    return {
        "ms": round(1e3 * median(times), 1),
        "megapixels_per_s": round(pixels / median(times) / 1e6, 2),
        "peak_bytes": memory.peak,
    }


def half_precision(device: torch.device, weights: Path | None, photos: Path) -> dict[str, Any]:
    """Return PSNR in float32 and the difference that half precision makes, dB: mean and largest over the photos."""
    model: HybridSR = load_model(weights, scale=4, device=device)
    figures: dict[str, list[float]] = {"fp32": [], "bf16": [], "fp16": []}
    for _, image in folder_images(photos, max_megapixels=128):
        original = modcrop(image, 4)
        lr = imresize(original, 1 / 4)
        for precision, values in figures.items():
            values.append(psnr_y(upscale(model, lr, precision=precision), original, crop=4))  # pyright: ignore[reportArgumentType]
    result: dict[str, Any] = {"photos": len(figures["fp32"]), "fp32 dB": round(float(np.mean(figures["fp32"])), 4)}
    for precision in ("bf16", "fp16"):
        difference = np.subtract(figures[precision], figures["fp32"])
        result[f"{precision} mean difference dB"] = round(float(difference.mean()), 5)
        result[f"{precision} largest difference dB"] = round(float(np.abs(difference).max()), 5)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
