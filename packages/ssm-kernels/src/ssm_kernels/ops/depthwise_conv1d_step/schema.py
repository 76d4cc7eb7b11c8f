"""Operator contract of one step of the convolution: schemas, what runs, shapes and dtypes of the results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..eager import implements
from .torch_impl import depthwise_conv1d_step_backward_torch, depthwise_conv1d_step_torch

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor state, str? activation"
torch.library.define("ssm_kernels::depthwise_conv1d_step", f"({_INPUTS}, str impl) -> (Tensor y, Tensor next)")
torch.library.define(
    "ssm_kernels::depthwise_conv1d_step_backward",
    f"(Tensor? grad, Tensor? grad_next, {_INPUTS}) -> (Tensor x, Tensor weight, Tensor bias, Tensor state)",
)
depthwise_conv1d_step_op = torch.ops.ssm_kernels.depthwise_conv1d_step.default
depthwise_conv1d_step_backward_op = torch.ops.ssm_kernels.depthwise_conv1d_step_backward.default


@implements("ssm_kernels::depthwise_conv1d_step")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: str | None, impl: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        if use_triton(impl, x) and weight.dtype != torch.float64:  # sums in float64 are left to PyTorch
            from .kernels import depthwise_conv1d_step_triton  # on the first launch, not on import

            return depthwise_conv1d_step_triton(x, weight, bias, state, activation)
        return depthwise_conv1d_step_torch(x, weight, bias, state, activation)


@torch.library.register_fake("ssm_kernels::depthwise_conv1d_step")
def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: str | None, impl: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


@implements("ssm_kernels::depthwise_conv1d_step_backward")
def _backward(
    grad: Tensor | None,
    grad_next: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return depthwise_conv1d_step_backward_torch(grad, grad_next, x, weight, bias, state, activation)


@torch.library.register_fake("ssm_kernels::depthwise_conv1d_step_backward")
def _backward_fake(
    grad: Tensor | None,
    grad_next: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias, state.new_empty(state.shape)
