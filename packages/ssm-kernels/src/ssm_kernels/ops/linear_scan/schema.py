"""The operator's contract: schemas, fake kernels, and which implementation runs. Imports torch only.

Here the modes are discretised already: h[t] = a h[t-1] + b x[t], y[t] = real part of the sum over the modes of c h[t].
Complex numbers are planes: a, b and c are (2, M, D), states (B, 2, M, D), real parts first.

Letters: B batch, L length, D channels, M modes of a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..eager import implements
from . import torch_impl, torch_impl_fft

_INPUTS = "Tensor x, Tensor a, Tensor? b, Tensor c, Tensor? initial_state"
_TAGS = (torch.Tag.pt2_compliant_tag,)
torch.library.define(
    "ssm_kernels::linear_scan",
    f"({_INPUTS}, str mode, bool reverse, str impl) -> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "ssm_kernels::linear_scan_backward",
    f"({_INPUTS}, Tensor? grad_y, Tensor? grad_final, str mode, bool reverse, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
linear_scan_op = torch.ops.ssm_kernels.linear_scan.default
linear_scan_backward_op = torch.ops.ssm_kernels.linear_scan_backward.default


@implements("ssm_kernels::linear_scan")
def _forward(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    mode: str,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        if mode == "fft":
            kind = torch.float64 if x.dtype == torch.float64 else torch.float32
            return torch_impl_fft.forward(x, a, c, reverse), x.new_empty(0, dtype=kind)
        if use_triton(impl, x):
            from . import kernels  # on the first launch, not on import

            return kernels.forward(x, a, b, c, initial_state, reverse)
        return torch_impl.forward(x, a, b, c, initial_state, reverse)


@implements("ssm_kernels::linear_scan_backward")
def _backward(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    mode: str,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    with torch.autocast(x.device.type, enabled=False):
        if mode == "fft":
            grad_x, grad_a, grad_c = torch_impl_fft.backward(x, a, c, grad_y, reverse)
            grad_b = grad_state = None
        elif use_triton(impl, x):
            from . import kernels

            grads = kernels.backward(x, a, b, c, initial_state, grad_y, grad_final, reverse)
            grad_x, grad_a, grad_b, grad_c, grad_state = grads
        else:
            grads = torch_impl.backward(x, a, b, c, initial_state, grad_y, grad_final, reverse)
            grad_x, grad_a, grad_b, grad_c, grad_state = grads
    found = zip((grad_x, grad_a, grad_b, grad_c, grad_state), (x, a, b, c, initial_state), strict=True)
    return tuple(x.new_empty(0) if given is None or grad is None else grad.to(given.dtype) for grad, given in found)


@torch.library.register_fake("ssm_kernels::linear_scan")
def _forward_fake(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    mode: str,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = (0,) if mode == "fft" else (x.shape[0], *a.shape)
    return x.new_empty(x.shape), x.new_empty(state, dtype=kind)


@torch.library.register_fake("ssm_kernels::linear_scan_backward")
def _backward_fake(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    mode: str,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, a, b, c, initial_state))
