"""The kernels of a first call are compiled side by side, those of its backward while the forward still goes on.

Triton compiles a kernel when it is first launched, one after the other, and the scans' largest take some seconds each.
So the first call of a kind runs forward and backward on meta tensors, where a launch does nothing but compile, in
threads: Triton's compiler spends most of its time outside Python. The same threads load what they compiled, for which
Triton has the C compiler build a launcher each. What is done in Python would hold up the forward, so the backward
begins when half of the forward's kernels are ready. Nothing depends on any of this: what is left undone is done by the
launch itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .launch import compile_only

LIMIT = 4096  # kinds that are remembered; a program that meets more begins anew

_met: set[Hashable] = set()
_pending: set[Future[None]] = set()


def first_call(kind: Hashable, like: Tensor) -> bool:
    """Whether this is the first call of a kind, on a device that kernels are compiled for.

    Args:
        kind: What decides about compilation, or most of it: a kind that is taken for another one costs time only.
        like: A tensor on the device of the call.
    """
    if kind in _met or not like.is_cuda:
        return False
    if len(_met) >= LIMIT:
        _met.clear()
    _met.add(kind)
    return True


def compile_ahead(device: torch.device, forward: Callable[[], Any], backward: Callable[[], Any] | None) -> None:
    """Compile what `forward` launches, and begin to compile what `backward` does.

    Args:
        device: Whose kernels.
        forward: Runs the launchers of the forward on meta tensors (see `as_meta`).
        backward: Runs those of the backward, None if nobody will ask for it.
    """
    jobs, half_way = ThreadPoolExecutor(max_workers=2), threading.Event()
    first = jobs.submit(_compile, forward, device, half_way)
    first.add_done_callback(lambda _: half_way.set())  # also after a failure
    if backward is not None:
        later = jobs.submit(_compile_after, half_way, backward, device)
        _pending.add(later)
        later.add_done_callback(_pending.discard)
    jobs.shutdown(wait=False)
    wait([first])  # a failure is left to the launch, which meets it again and tells it to the caller


def wait_for_compilation() -> None:
    """Wait until nothing is being compiled ahead: for a backward, which would compile the same again."""
    if _pending:
        wait(list(_pending))


def as_meta(tree: Any) -> Any:
    """Return tensors, also in tuples, as meta tensors of their shapes, strides and dtypes; all else as it is."""
    if isinstance(tree, Tensor):
        return torch.empty_strided(tree.shape, tree.stride(), dtype=tree.dtype, device="meta")
    return tuple(as_meta(part) for part in tree) if isinstance(tree, tuple) else tree


class _Pool(ThreadPoolExecutor):
    """Threads that compile kernels and load them."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._load, partial(fn, *args, **kwargs))

    def _load(self, compiles: Callable[[], Any]) -> Any:
        kernel = compiles()
        with torch.cuda.device(self.device):
            _ = kernel.run  # made on demand
        return kernel


def _compile(function: Callable[[], Any], device: torch.device, half_way: threading.Event | None = None) -> None:
    """Run a function whose launches compile, all of them at the same time; tell when half of them are ready."""
    from triton import AsyncCompileMode

    with torch.cuda.device(device), compile_only(), _Pool(device) as pool, AsyncCompileMode(pool) as mode:
        function()
        if half_way is not None:
            ready = as_completed(mode.raw_futures)
            for _ in range((len(mode.raw_futures) + 1) // 2):
                next(ready)
            half_way.set()


def _compile_after(begin: threading.Event, function: Callable[[], Any], device: torch.device) -> None:
    """Wait, then compile."""
    begin.wait()
    _compile(function, device)
