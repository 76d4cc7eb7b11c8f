"""The operator's contract: h[t] = a h[t-1] + b x[t], y[t] = real part of c h[t], with modes shared by all channels.

Complex numbers are planes: a is (2, P), b (2, P, H), c (2, H, P), h (B, L, 2, P), states (B, 2, P), real parts first.
The products with b and c are PyTorch's, in float32 (float64 for float64 x), whatever autocast says; the recurrence
between them runs for every mode by itself.

Letters: B batch, L length, H channels, P modes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import use_triton
from ..eager import implements
from . import torch_impl

_INPUTS = "Tensor x, Tensor a, Tensor b, Tensor c, Tensor? initial_state"
_TAGS = (torch.Tag.pt2_compliant_tag,)
torch.library.define(
    "ssm_kernels::diagonal_scan",
    f"({_INPUTS}, str mode, bool reverse, bool save_states, str impl) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "ssm_kernels::diagonal_scan_backward",
    f"({_INPUTS}, Tensor states, Tensor? grad_y, Tensor? grad_final, str mode, bool reverse, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
diagonal_scan_op = torch.ops.ssm_kernels.diagonal_scan.default
diagonal_scan_backward_op = torch.ops.ssm_kernels.diagonal_scan_backward.default


def _kind(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _states(
    x: Tensor, a: Tensor, b: Tensor, initial_state: Tensor | None, mode: str, reverse: bool, impl: str
) -> Tensor:
    """Return h (B, L, 2, P)."""
    u = F.linear(x.to(_kind(x)), b.flatten(0, 1).to(_kind(x))).unflatten(2, (2, -1))
    if mode == "fft":
        return torch_impl.by_fft(u, a, reverse)
    if use_triton(impl, u):
        from . import kernels  # on the first launch, not on import

        return kernels.forward(u, a, initial_state, reverse)
    return torch_impl.forward(u, a, initial_state, reverse)


def _readout(c: Tensor, kind: torch.dtype) -> Tensor:
    """Return the real (H, 2 P) that takes the real part of c h."""
    return torch.cat([c[0], -c[1]], 1).to(kind)


@implements("ssm_kernels::diagonal_scan")
def _forward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None,
    mode: str,
    reverse: bool,
    save_states: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        h = _states(x, a, b, initial_state, mode, reverse, impl)
        y = F.linear(h.flatten(2), _readout(c, h.dtype)).to(x.dtype)
        return y, h[:, 0 if reverse else -1].clone(), h if save_states else h.new_empty(0)


@implements("ssm_kernels::diagonal_scan_backward")
def _backward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None,
    states: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    mode: str,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    kind = _kind(x)
    with torch.autocast(x.device.type, enabled=False):
        h = states if states.numel() else _states(x, a, b, initial_state, mode, reverse, impl)
        grad = torch.zeros_like(x, dtype=kind) if grad_y is None else grad_y.to(kind)
        grad_h = (grad @ _readout(c, kind)).unflatten(2, (2, -1))
        if grad_final is not None:
            grad_h[:, 0 if reverse else -1] += grad_final.to(kind)
        if mode != "fft" and use_triton(impl, h):
            from . import kernels

            grad_u, grad_a, grad_state = kernels.backward(grad_h, h, a, initial_state, reverse)
        else:
            grad_u, grad_a, grad_state = torch_impl.backward(grad_h, h, a, initial_state, mode == "fft", reverse)
        flat = grad_u.flatten(2)
        grad_b = flat.flatten(0, 1).mT @ x.to(kind).flatten(0, 1)
        grad_c = grad.flatten(0, 1).mT @ h.flatten(2).flatten(0, 1)
        grad_c = torch.stack([grad_c[:, : a.shape[1]], -grad_c[:, a.shape[1] :]])
        found = (flat @ b.flatten(0, 1).to(kind), grad_a, grad_b.view(b.shape), grad_c, grad_state)
    inputs = zip(found, (x, a, b, c, initial_state), strict=True)
    return tuple(x.new_empty(0) if given is None else grad.to(given.dtype) for grad, given in inputs)


@torch.library.register_fake("ssm_kernels::diagonal_scan")
def _forward_fake(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None,
    mode: str,
    reverse: bool,
    save_states: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length = x.shape[:2]
    saved = (batch, length, *a.shape) if save_states else (0,)
    final = x.new_empty((batch, *a.shape), dtype=_kind(x))
    return x.new_empty(x.shape), final, x.new_empty(saved, dtype=_kind(x))


@torch.library.register_fake("ssm_kernels::diagonal_scan_backward")
def _backward_fake(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None,
    states: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    mode: str,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, a, b, c, initial_state))
