"""The kernels of a first call are compiled side by side, those of its backward while the forward still goes on.

Triton compiles a kernel when it is first launched, one after the other, and the scans' largest take some seconds each.
So the first call of a kind runs forward and backward on meta tensors, where a launch does nothing but compile, in
threads: Triton's compiler spends most of its time outside Python. Nothing depends on it: what it leaves undone is
compiled by the launch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
    jobs = ThreadPoolExecutor(max_workers=2)
    first = jobs.submit(_compile, forward, device)
    if backward is not None:
        later = jobs.submit(_compile, backward, device)
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


def _compile(function: Callable[[], Any], device: torch.device) -> None:
    """Run a function whose launches compile, all of them at the same time."""
    from triton import AsyncCompileMode

    with torch.cuda.device(device), compile_only(), ThreadPoolExecutor() as pool, AsyncCompileMode(pool):
        function()
