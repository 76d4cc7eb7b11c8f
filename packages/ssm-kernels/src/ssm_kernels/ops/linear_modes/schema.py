"""The operator's contract: schemas, fake kernels, and which implementation runs. Imports torch only.

Complex numbers are planes, real parts first: rate (2, M, D), weights alike, step (D,); for S5 rate (2, P), the input
weights (2, P, H), the output weights (2, H, P), step (P,). Results: a like rate; with `unit` an empty b and c with f,
both weights and `scale` in it; else b = f B and c = scale C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..eager import implements
from . import torch_impl

_INPUTS = "Tensor rate, Tensor into, Tensor out, Tensor step"
_TAGS = (torch.Tag.pt2_compliant_tag,)
torch.library.define(
    "ssm_kernels::linear_modes",
    f"({_INPUTS}, str rule, bool unit, float scale, bool double, str impl) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "ssm_kernels::linear_modes_backward",
    f"(Tensor grad_a, Tensor grad_b, Tensor grad_c, {_INPUTS}, str rule, bool unit, float scale, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
linear_modes_op = torch.ops.ssm_kernels.linear_modes.default
linear_modes_backward_op = torch.ops.ssm_kernels.linear_modes_backward.default


def _kind(double: bool) -> torch.dtype:
    return torch.float64 if double else torch.float32


def _fused(impl: str, rate: Tensor, double: bool) -> bool:
    """Whether the kernel can do it: modes of channels, results in single precision."""
    return not double and rate.dim() == 3 and use_triton(impl, rate)


@implements("ssm_kernels::linear_modes")
def _forward(
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    step: Tensor,
    rule: str,
    unit: bool,
    scale: float,
    double: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(rate.device.type, enabled=False):
        if _fused(impl, rate, double):
            from . import kernels  # on the first launch, not on import

            return kernels.forward(rate, into, out, step, rule, unit, scale)
        return torch_impl.forward(rate, into, out, step, rule, unit, scale, _kind(double))


@implements("ssm_kernels::linear_modes_backward")
def _backward(
    grad_a: Tensor,
    grad_b: Tensor,
    grad_c: Tensor,
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    step: Tensor,
    rule: str,
    unit: bool,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (grad_a, grad_b, grad_c, rate, into, out, step)
    with torch.autocast(rate.device.type, enabled=False):
        if _fused(impl, rate, grad_a.dtype == torch.float64):
            from . import kernels

            found = kernels.backward(*tensors, rule, unit, scale)
        else:
            found = torch_impl.backward(*tensors, rule, unit, scale)
    return tuple(g.to(t.dtype) for g, t in zip(found, (rate, into, out, step), strict=True))  # pyright: ignore[reportReturnType]


@torch.library.register_fake("ssm_kernels::linear_modes")
def _forward_fake(
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    step: Tensor,
    rule: str,
    unit: bool,
    scale: float,
    double: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kind = _kind(double)
    b = rate.new_empty((0,) if unit else into.shape, dtype=kind)
    return rate.new_empty(rate.shape, dtype=kind), b, out.new_empty(out.shape, dtype=kind)


@torch.library.register_fake("ssm_kernels::linear_modes_backward")
def _backward_fake(
    grad_a: Tensor,
    grad_b: Tensor,
    grad_c: Tensor,
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    step: Tensor,
    rule: str,
    unit: bool,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        rate.new_empty(rate.shape),
        into.new_empty(into.shape),
        out.new_empty(out.shape),
        step.new_empty(step.shape),
    )
