"""Check one case and, where the check is green, time it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.dispatch import why_not_triton
from .case import Case, Tensors, cotangent, error_of, truth_of
from .harness import Timing, measure, peak_bytes
from .rows import Row


def impls_of(case: Case, device: torch.device) -> tuple[str, ...]:
    """Choose what to time of ours: Triton on a GPU (times of its interpreter say nothing), the loop on a CPU."""
    if device.type != "cuda":
        return ("torch", "reference")
    triton = case.triton and why_not_triton(next(iter(case.inputs.values()))) is None
    return ("triton", "torch") if triton else ("torch",)


def time_passes(
    function: Callable[[Tensors], Tensor],
    inputs: Tensors,
    make_cotangent: Callable[[Tensor], Tensor],
    *,
    repeat: int = 20,
    budget_s: float = 1.0,
) -> tuple[Timing, Timing, int | None]:
    """Time forward and backward apart.

    Args:
        function: Computes the output from the inputs.
        inputs: What the gradient is taken of.
        make_cotangent: Makes what the output's gradient is taken against, from the output.
        repeat: As in `measure`.
        budget_s: As in `measure`, for each of the two.

    Returns:
        Timing of the forward pass without autograd, of the backward pass of one forward pass, and the peak memory of
        both together in bytes.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    targets = list(leaves.values())
    device = targets[0].device
    with torch.no_grad():
        against = make_cotangent(function(leaves))
        forward = measure(lambda: function(leaves), device, repeat=repeat, budget_s=budget_s)

    def backward(y: Tensor) -> Timing:  # its graph is freed on return
        def gradients() -> object:
            return torch.autograd.grad(y, targets, against, retain_graph=True)

        return measure(gradients, device, repeat=repeat, budget_s=budget_s)

    back = backward(function(leaves))
    return forward, back, peak_bytes(lambda: torch.autograd.grad(function(leaves), targets, against), device)


def run_case(
    case: Case,
    impls: Sequence[str],
    repeat: int = 20,
    *,
    done: Callable[[], bool] = lambda: False,
    complain: Callable[[str], object] = print,
) -> Iterator[Row]:
    """Check and time one case.

    Args:
        case: What to run.
        impls: Of ours or of the case's peers.
        repeat: Calls that are timed, at most.
        done: Asked before every implementation; the rest is left out when it says yes.
        complain: Told of a peer that fails, and of memory that is not enough; the others run all the same.

    Yields:
        One row per implementation. Where one is less accurate than the case allows, its row has an error_ratio and
        no times.
    """
    if not impls or done():
        return
    truth = truth_of(case)
    for impl in impls:
        if done():
            return
        try:
            yield _run(case, impl, truth, repeat)
        except RuntimeError as error:
            memory = isinstance(error, torch.OutOfMemoryError)
            if not memory and impl not in case.peers:
                raise
            complain(f"{case.op} {case.shape} {case.dtype} {impl}: {'out of memory' if memory else error}; left out")


def _run(case: Case, impl: str, truth: Tensors, repeat: int) -> Row:
    error = error_of(case, impl, truth)
    kept: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "impl": impl, "source": "run"}
    if error > case.limit(impl):
        return Row(**kept, fwd_ms=None, bwd_ms=None, floor_ms=None, error_ratio=error)
    # a GPU is left alone by others; a CPU is not, and one call there says little
    budget_s = 1.0 if next(iter(case.inputs.values())).is_cuda else 4.0
    if impl in case.peers:
        peer = case.peers[impl]
        if not peer.differentiable:
            own = peer.inputs(case.inputs)
            forward = measure(lambda: peer.call(own), next(iter(own.values())).device, repeat=repeat)
            times: dict[str, Any] = {"fwd_ms": forward.median_ms, "bwd_ms": None, "host_us": forward.host_us}
            return Row(**kept, **times, floor_ms=case.floor_ms, error_ratio=error)
        passes = time_passes(peer.call, peer.inputs(case.inputs), cotangent, repeat=repeat, budget_s=budget_s)
    else:
        passes = time_passes(lambda x: case.call(x, impl), case.inputs, cotangent, repeat=repeat, budget_s=budget_s)
    return Row(**kept, **measured(passes), floor_ms=case.floor_ms, error_ratio=error)


def measured(passes: tuple[Timing, Timing, int | None]) -> dict[str, Any]:
    """Return what `time_passes` saw under the names of a row."""
    forward, backward, peak = passes
    return {
        "fwd_ms": forward.median_ms,
        "bwd_ms": backward.median_ms,
        "peak_bytes": peak,
        "host_us": forward.host_us,
    }
