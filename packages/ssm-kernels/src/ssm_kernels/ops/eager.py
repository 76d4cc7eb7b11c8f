"""Operators without PyTorch's dispatcher: a call through it takes the host longer than many a kernel runs.

Whoever looks on sees the registered operator: a compiler, an export, fake or wrapped tensors, a transform, a mode that
counts operators. A plain call goes to the implementation at once, with the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

F = TypeVar("F", bound=Callable[..., Any])
PLAIN = Tensor, torch.nn.Parameter, torch.nn.Buffer


def implements(operator: str) -> Callable[[F], F]:
    """Register a function as what an operator does on all devices; unlike `torch.library.impl` give it back."""

    def register(function: F) -> F:
        torch.library.impl(operator, "CompositeExplicitAutograd", function)
        return function

    return register


def direct(operator: Callable[..., Any], implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `implementation`, or `operator` where somebody looks on or wants a gradient.

    For an operator without a gradient of its own, such as one that computes a gradient.
    """

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or _watched(args):
            return operator(*args)
        return implementation(*args)

    return call


def direct_with_gradient(
    operator: Callable[..., Any],
    implementation: Callable[..., Any],
    keep: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a function that calls `implementation`, or `operator` where somebody looks on.

    Args:
        operator: The registered one.
        implementation: What is registered for all devices.
        keep: As given to `torch.library.register_autograd` as setup_context.
        backward: As given to it.
    """
    members = {"forward": implementation, "setup_context": keep, "backward": backward}
    function = type("Direct", (torch.autograd.Function,), {name: staticmethod(f) for name, f in members.items()})

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or _watched(args):
            return operator(*args)
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return function.apply(*args)
        return implementation(*args)

    return call


def _watched(args: tuple[Any, ...]) -> bool:
    """Return whether PyTorch does more with a call than to run it."""
    return (
        _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or any(isinstance(x, Tensor) and not _plain(x) for x in args)
    )


def _plain(x: Tensor) -> bool:
    """Return whether the memory of a tensor holds its numbers: it does not where a sign or an axis is kept aside."""
    batched = torch._C._functorch.is_legacy_batchedtensor(x)  # pyright: ignore[reportAttributeAccessIssue]
    return type(x) in PLAIN and not (x.is_meta or x.is_neg() or batched)
