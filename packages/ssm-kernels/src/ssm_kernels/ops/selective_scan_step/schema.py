"""Operator contract of one step of the scan: schemas, what runs, shapes and dtypes of the results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..eager import implements
from .torch_impl import selective_scan_step_backward_torch, selective_scan_step_torch

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor state, "
    "bool dt_softplus"
)
torch.library.define("ssm_kernels::selective_scan_step", f"({_INPUTS}, str impl) -> (Tensor y, Tensor next)")
torch.library.define(
    "ssm_kernels::selective_scan_step_backward",
    f"(Tensor? grad, Tensor? grad_next, {_INPUTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
selective_scan_step_op = torch.ops.ssm_kernels.selective_scan_step.default
selective_scan_step_backward_op = torch.ops.ssm_kernels.selective_scan_step_backward.default


@implements("ssm_kernels::selective_scan_step")
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    args = (x, dt, A, B, C, D, z, dt_bias, state, dt_softplus)
    with torch.autocast(x.device.type, enabled=False):
        if use_triton(impl, x):
            from .kernels import selective_scan_step_triton  # on the first launch, not on import

            return selective_scan_step_triton(*args)
        return selective_scan_step_torch(*args)


@torch.library.register_fake("ssm_kernels::selective_scan_step")
def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=kind)


@implements("ssm_kernels::selective_scan_step_backward")
def _backward(
    grad: Tensor | None,
    grad_next: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, ...]:
    with torch.autocast(x.device.type, enabled=False):
        return selective_scan_step_backward_torch(grad, grad_next, x, dt, A, B, C, D, z, dt_bias, state, dt_softplus)


@torch.library.register_fake("ssm_kernels::selective_scan_step_backward")
def _backward_fake(
    grad: Tensor | None,
    grad_next: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, ...]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, state)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
