"""Time of decoding and of a training step against the number of image tokens, for several methods, weights random."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from ssm_kernels.bench import environment

from .arguments_measure import BenchmarkOptions
from .checks import nearest, refuse
from .config import METHODS, ModelConfig, model_preset
from .decoding import DecodeOptions, decode, decode_step, guided_logits
from .devices import pick_device
from .lengthplot import plot
from .model import TokenModel

TEXT = 16  # tokens of the text


def benchmark_command(options: BenchmarkOptions) -> int:
    """Run `muse-mamba benchmark`."""
    methods = _methods(options.methods)
    lengths = _lengths(options.lengths)
    device = pick_device(options.device)
    if options.graph and device.type != "cuda":
        raise ValueError(f"benchmark: --graph must have a CUDA GPU, got {device.type}; leave it out here")
    rows, machine = [], environment(device)
    for length in lengths:  # what is compared, the methods at one length, is measured one after the other
        for method in methods:
            row = measure(method, length, options, device)
            rows.append(row)
            if not options.json:
                print(_line(row), flush=True)
            if options.out is not None:  # what was measured stays when the machine is taken away
                options.out.write_text(json.dumps(_result(rows, options, machine), indent=1) + "\n")
    result = _result(rows, options, machine)
    if options.plot is not None:
        plot(result, options.plot)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for method, found in result["crossover"].items():
            for what, length in found.items():
                said = f"from {length} tokens on" if length else "at no length measured"
                print(f"{method} is faster than transformer in {what} {said}")
    return 0


def _result(rows: list[dict[str, Any]], options: BenchmarkOptions, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "preset": options.preset,
        "batch": options.batch,
        "decoding_steps": options.steps,
        "precision": options.precision,
        "graph": options.graph,
        "rows": rows,
        "crossover": crossovers(rows),
        "environment": machine,
    }


def _methods(text: str) -> list[str]:
    methods = list(METHODS) if text == "all" else [m.strip() for m in text.split(",")]
    for method in methods:
        if method not in METHODS:
            refuse("benchmark", "methods", f"some of {', '.join(METHODS)}", repr(method), nearest(method, METHODS))
    return methods


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = [0]
    for length in lengths:
        if length < 1 or round(length**0.5) ** 2 != length:
            raise ValueError(f"--lengths: must be square numbers separated by commas, as in 64,256,1024, got {text}")
    return lengths


def measure(method: str, length: int, options: BenchmarkOptions, device: torch.device) -> dict[str, Any]:
    """Time one method at one length; a row without figures says that the memory was not enough."""
    side = round(length**0.5)
    config = replace(model_preset(options.preset, method), grid=(side, side))
    row: dict[str, Any] = {"method": method, "length": length}
    try:
        torch.manual_seed(0)
        with device:
            model = TokenModel(config)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        text = torch.randn(options.batch, TEXT, config.text_dim, device=device)
        mask = torch.ones(options.batch, TEXT, dtype=torch.bool, device=device)
        ids = torch.randint(config.vocab, (options.batch, length), device=device)

        def training() -> None:
            step(model, ids, text, mask, config, options.precision)

        def decoding() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                draw = every_step if options.graph else decode
                draw(model, text, mask, DecodeOptions(steps=options.steps))

        row["training_step_ms"] = timed(recorded(training) if options.graph else training, options.repeats, device)
        model.eval()
        row["decoding_ms"] = timed(recorded(decoding) if options.graph else decoding, options.repeats, device)
    except torch.OutOfMemoryError:
        row["failed"] = "out of memory"
    return row


def step(
    model: TokenModel,
    ids: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor,
    config: ModelConfig,
    precision: str,
) -> None:
    """Run one forward and backward pass with every second token hidden."""
    hidden = ids.clone()
    hidden[:, ::2] = config.vocab
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = model(hidden, text, mask).logits
    torch.nn.functional.cross_entropy(logits[:, ::2].flatten(0, 1).float(), ids[:, ::2].flatten()).backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def every_step(model: TokenModel, text: torch.Tensor, mask: torch.Tensor, options: DecodeOptions) -> torch.Tensor:
    """Return tokens as `decode` does, (B, L), without asking the device whether all are settled."""
    config = model.config
    ids = torch.full((len(text), config.length), config.vocab, device=text.device)
    for number in range(options.steps):
        logits, _ = guided_logits(model, ids, text, mask, options.guidance_at(number))
        ids, _ = decode_step(logits, ids, number, options, hidden=config.vocab, grid=config.grid)
    return ids


def recorded(run: Callable[[], None]) -> Callable[[], None]:
    """Return what replays a call as a CUDA graph; it runs twice before, for kernels to be compiled."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        run()
    return graph.replay


def timed(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Return the median time of a call in ms, after one that is not counted."""
    times = []
    for number in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        if number:
            times.append((time.perf_counter() - start) * 1e3)
    return round(median(times), 3)


def crossovers(rows: list[dict[str, Any]]) -> dict[str, dict[str, int | None]]:
    """Return, per method, the least measured length from which on it is faster than the transformer, or None."""
    base = {row["length"]: row for row in rows if row["method"] == "transformer" and "failed" not in row}
    found: dict[str, dict[str, int | None]] = {}
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "transformer" and base):
        mine = {row["length"]: row for row in rows if row["method"] == method and "failed" not in row}
        found[method] = {}
        for what in ("training_step_ms", "decoding_ms"):
            shared = sorted(set(mine) & set(base), reverse=True)
            least = None
            for length in shared:
                if mine[length][what] >= base[length][what]:
                    break
                least = length
            found[method][what] = least
    return found


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['method']:<16}{row['length']:>6} tokens  {row['failed']}"
    figures = f"training step {row['training_step_ms']:>9.1f} ms  decoding {row['decoding_ms']:>9.1f} ms"
    return f"{row['method']:<16}{row['length']:>6} tokens  {figures}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
