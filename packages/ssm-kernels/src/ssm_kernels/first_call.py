"""Compile before the first step what a model needs: `warmup`, and `compilations` to see what was compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Warmup:
    """What a warm-up did.

    Attributes:
        kernels: Names of the Triton kernels that were compiled or fetched from Triton's cache on disk, one entry per
            specialisation; empty if all were there, and without a GPU.
        seconds: How long it took, the calls included.
    """

    kernels: tuple[str, ...]
    seconds: float


def warmup(function: Callable[..., Any], *args: Any, backward: bool = True) -> Warmup:
    """Call a model once, forward and backward, so that its first real step compiles nothing.

    Triton compiles a kernel when it first meets a dtype, a state size N, a set of optional arguments or a width D that
    divides differently; batch and length do not matter, so small ones do. Triton keeps what it compiled on disk: later
    processes on the machine fetch it in a fraction of a second.

    Nothing is left behind: gradients, buffers (such as running means) and the random number generators are as before.

    Args:
        function: A module, or any function of tensors.
        *args: Its arguments, of the real dtypes and widths on the real device.
        backward: Also differentiate the outputs by parameters and arguments that require a gradient.

    Returns:
        What was compiled, and in how many seconds.
    """
    start = time.perf_counter()
    buffers = dict(function.named_buffers()) if isinstance(function, nn.Module) else {}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    leaves = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
    if isinstance(function, nn.Module):
        leaves += [parameter for parameter in function.parameters() if parameter.requires_grad]
    with compilations() as kernels, torch.random.fork_rng(), torch.set_grad_enabled(backward):
        results = [t for t in _tensors(function(*args)) if t.requires_grad]
        if backward and results and leaves:
            torch.autograd.grad(results, leaves, [torch.ones_like(t) for t in results], allow_unused=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
    return Warmup(tuple(kernels), time.perf_counter() - start)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the names of the Triton kernels that are compiled (or fetched from disk) inside the `with`."""
    found: list[str] = []
    try:
        from triton import knobs
    except ImportError:
        yield found
        return
    previous = knobs.runtime.jit_cache_hook

    met: set[tuple[str, str]] = set()  # one that is still being compiled is announced at each of its launches

    def note(**details: Any) -> Any:
        kind = str(details["fn"].name), str(details["key"])
        if kind not in met:
            met.add(kind)
            found.append(kind[0])
        return previous(**details) if previous is not None else None

    knobs.runtime.jit_cache_hook = note
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = previous


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for part in tree for t in _tensors(part)] if isinstance(tree, tuple | list) else []
