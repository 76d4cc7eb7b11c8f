"""Kernel launches that find their kernel once.

Triton looks at every argument of every launch to find the compiled kernel, which takes longer than a small kernel runs.
Here it does so once per case: the caller names what the launch depends on, and the compiled kernel is kept with all
arguments but the tensors bound.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

LIMIT = 4096  # launches that are kept; a program that meets more kinds than this begins anew

_compile_only = ContextVar("compile_only", default=False)
_kept: dict[Hashable, tuple[Any, list[Any], list[int]]] = {}


def launch(
    kernel: Any,
    programs: int,
    key: Hashable,
    tensors: dict[str, Tensor | int | None],
    constants: Callable[[], dict[str, Any]],
) -> None:
    """Run a Triton kernel on a grid of one axis.

    Args:
        kernel: What `triton.jit` made.
        programs: How many.
        key: All that `constants` depends on.
        tensors: Arguments that differ from launch to launch: tensors, and numbers that are not specialised on. Which
            of them are None, their dtypes and their alignment join the key.
        constants: Makes the other arguments and the options; called only for a new key.
    """
    if _compile_only.get():
        kernel.warmup(**tensors, **constants(), grid=(programs,))
        return
    values = tensors.values()
    kinds = tuple([_kind(value) for value in values])
    full = (id(kernel), key, kinds)
    found = _kept.get(full)
    if found is not None:
        compiled, bound, slots = found
        bound = bound.copy()
        for slot, value in zip(slots, values, strict=True):
            bound[slot] = value
        compiled[(programs, 1, 1)](*bound)
        return
    made = constants()
    compiled = kernel[(programs,)](**tensors, **made)
    if compiled is None:  # Triton's interpreter
        return
    if len(_kept) >= LIMIT:
        _kept.clear()
    names = kernel.arg_names
    _kept[full] = compiled, [made.get(name) for name in names], [names.index(name) for name in tensors]


@contextmanager
def compile_only() -> Iterator[None]:
    """Launches compile and run nothing, in this thread: their tensors may be meta tensors, taken as well aligned."""
    token = _compile_only.set(True)
    try:
        yield
    finally:
        _compile_only.reset(token)


def forget() -> None:
    """Drop all kept launches: for a test or a measurement that changes what `constants` depends on besides the key."""
    _kept.clear()


def _kind(value: Tensor | int | None) -> Hashable:
    """Return what Triton would compile another kernel for."""
    return (value.dtype, value.data_ptr() & 15, value.device.index) if isinstance(value, Tensor) else value is None
