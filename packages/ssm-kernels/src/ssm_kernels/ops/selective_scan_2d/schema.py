"""What PyTorch knows of the operator: schema, fake kernel, and which implementation runs. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import use_triton
from .torch_impl import selective_scan_2d_torch, selective_scan_2d_torch_backward

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "bool dt_softplus, int[] directions, str impl"
)
Gradients = tuple[Tensor, ...]  # of x, dt, A, B, C, D, dt_bias

torch.library.define("ssm_kernels::selective_scan_2d", f"({_INPUTS}) -> Tensor")
torch.library.define(
    "ssm_kernels::selective_scan_2d_backward",
    f"(Tensor grad_y, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
selective_scan_2d_op = torch.ops.ssm_kernels.selective_scan_2d.default
selective_scan_2d_backward_op = torch.ops.ssm_kernels.selective_scan_2d_backward.default


@torch.library.impl("ssm_kernels::selective_scan_2d", "CompositeExplicitAutograd")
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):  # a custom operator does not leave it by itself
        if use_triton(impl, x):
            from .kernels import selective_scan_2d_triton  # on first launch, not on import

            return selective_scan_2d_triton(x, dt, A, B, C, D, dt_bias, dt_softplus, directions)
        return selective_scan_2d_torch(x, dt, A, B, C, D, dt_bias, dt_softplus, directions)


@torch.library.impl("ssm_kernels::selective_scan_2d_backward", "CompositeExplicitAutograd")
def _backward(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
) -> Gradients:
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from .kernels import selective_scan_2d_triton_backward

            return selective_scan_2d_triton_backward(grad_y, x, dt, A, B, C, D, dt_bias, dt_softplus, directions)
        return selective_scan_2d_torch_backward(grad_y, x, dt, A, B, C, D, dt_bias, dt_softplus, directions)


@torch.library.register_fake("ssm_kernels::selective_scan_2d")
def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("ssm_kernels::selective_scan_2d_backward")
def _backward_fake(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
) -> Gradients:
    inputs = (x, dt, A, B, C, D, dt_bias)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
