"""What every benchmark script does: parse the command line, check parity, time, print and write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..ops.dispatch import why_not_triton
from ..testing.parity import error_ratio
from .harness import Timing, environment, measure
from .rows import Row, as_table, write_report

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest error of output or gradients that is still reported: two roundings of a half-precision result. A broken
# kernel is off by far more; accuracy to the last rounding is what the tests check.
LIMITS = {"float32": 1e-4, "bfloat16": 2 * 2.0**-7, "float16": 2 * 2.0**-10}


@dataclass
class Case:
    """One operator at one shape.

    Args:
        op: Its name.
        shape: As the benchmark's documentation spells it.
        dtype: Of the sequences: "bfloat16", "float16" or "float32".
        inputs: Every tensor that gets a gradient, by name.
        call: Computes the output from the inputs and the name of an implementation.
        floor_ms: Lower bound of the forward pass on an H100; left out of rows of a CPU.
        triton: The operator has a Triton kernel, which is timed on a GPU.
        peers: Other implementations to time, by name: the same computation on the same inputs in their own layout.
            Each makes its own inputs and returns them with the function of them.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    inputs: dict[str, Tensor]
    call: Callable[[dict[str, Tensor], str], Tensor]
    floor_ms: float
    triton: bool = True
    peers: dict[str, tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Tensor]]] = field(default_factory=dict)


def _everything(inputs: dict[str, Tensor], function: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    """Return the output and all gradients, for the cotangent that follows from the shape alone."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = function(leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), _cotangent(y))
    return {"output": y.detach(), **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}


def _cotangent(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y.device, y.dtype)


def _truth(case: Case) -> dict[str, Tensor]:
    """Compute the case in float64 on its own (rounded) inputs."""
    cotangent_dtype = DTYPES[case.dtype]
    leaves = {name: x.detach().double().requires_grad_() for name, x in case.inputs.items()}
    y = case.call(leaves, "torch")
    cotangent = _cotangent(y.detach().to(cotangent_dtype)).double()
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
    return {"output": y.detach(), **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}


def _worst(result: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Return the largest error ratio; infinity where something is not finite."""
    finite = all(bool(torch.isfinite(x).all()) for x in result.values())
    return max(error_ratio(result[name], truth[name]) for name in truth) if finite else float("inf")


def _time_backward(
    function: Callable[[dict[str, Tensor]], Tensor], leaves: dict[str, Tensor], cotangent: Tensor, repeat: int
) -> Timing:
    """Time the backward pass of one forward pass, which is freed on return."""
    y, targets = function(leaves), list(leaves.values())
    return measure(
        lambda: torch.autograd.grad(y, targets, cotangent, retain_graph=True), cotangent.device, repeat=repeat
    )


def _time(
    case: Case,
    impl: str,
    inputs: dict[str, Tensor],
    function: Callable[[dict[str, Tensor]], Tensor],
    error: float | None,
    repeat: int,
) -> Row:
    """Time forward and backward apart; the memory is that of both together."""
    device = next(iter(inputs.values())).device
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    with torch.no_grad():
        cotangent = _cotangent(function(leaves))
        forward = measure(lambda: function(leaves), device, repeat=repeat)
    backward = _time_backward(function, leaves, cotangent, repeat)
    both = measure(lambda: torch.autograd.grad(function(leaves), list(leaves.values()), cotangent), device, repeat=1)
    return Row(
        op=case.op,
        shape=case.shape,
        dtype=case.dtype,
        impl=impl,
        source="run",
        fwd_ms=forward.median_ms,
        bwd_ms=backward.median_ms,
        floor_ms=case.floor_ms if device.type == "cuda" else None,
        peak_bytes=both.peak_bytes,
        error_ratio=error,
    )


def run_case(case: Case, impls: Sequence[str], repeat: int = 20) -> list[Row]:
    """Check and time one case.

    Returns:
        One row per implementation and peer. Where an implementation is less accurate than `LIMITS`, its row has an
        error_ratio and no times.
    """
    rows, truth = [], _truth(case)
    for impl in impls:
        error = _worst(_everything(case.inputs, lambda x, impl=impl: case.call(x, impl)), truth)
        if error <= LIMITS[case.dtype]:
            rows.append(_time(case, impl, case.inputs, lambda x, impl=impl: case.call(x, impl), error, repeat))
        else:
            kept = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "impl": impl, "source": "run"}
            rows.append(Row(**kept, fwd_ms=None, bwd_ms=None, floor_ms=None, error_ratio=error))
    del truth
    return rows + [_time(case, name, *peer, None, repeat) for name, peer in case.peers.items()]


def _impls(case: Case, device: torch.device) -> tuple[str, ...]:
    """Choose what to time: Triton on a GPU (times of its interpreter say nothing), the loop on a CPU."""
    if device.type != "cuda":
        return ("torch", "reference")
    triton = case.triton and why_not_triton(next(iter(case.inputs.values()))) is None
    return ("torch", "triton") if triton else ("torch",)


def main(
    description: str,
    cases: Callable[[torch.device, str, bool], Iterable[Case]],
    table: Sequence[Row],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a benchmark script.

    Args:
        description: Of the script, for `--help`.
        cases: Makes the cases for a device and a dtype, a few of them if the flag is set, one at a time.
        table: Earlier measurements that the results are shown next to.
        arguments: Of the command line; None takes those of the process.

    Returns:
        Exit code: 0, or 1 if an implementation was not accurate.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the sequences; bfloat16 on a GPU, else float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a few shapes, few repetitions")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    rows: list[Row] = []
    for case in cases(device, dtype, options.quick):
        fresh = run_case(case, _impls(case, device), 5 if options.quick else 20)
        kept = [row for row in table if row.op == case.op and row.shape == case.shape]
        print(as_table([*fresh, *kept]), flush=True)
        rows += [*fresh, *kept]
    write_report(options.out, rows, environment(device))
    red = [row for row in rows if row.source == "run" and row.fwd_ms is None]
    for row in red:
        limit = LIMITS[row.dtype]
        print(f"{row.op} {row.shape} {row.impl}: error ratio {row.error_ratio:.1e} is over {limit:.1e}; not timed")
    return 1 if red else 0
