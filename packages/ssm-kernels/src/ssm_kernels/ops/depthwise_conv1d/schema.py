"""Operator contract of the depthwise convolution: schemas, what runs, shapes and dtypes of the results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import refuse
from ..dispatch import use_triton
from ..eager import implements
from .torch_impl import depthwise_conv1d_backward_torch, depthwise_conv1d_torch

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens"
_SETTINGS = "str padding, bool reverse, str? activation, str impl"
torch.library.define("ssm_kernels::depthwise_conv1d", f"({_INPUTS}, {_SETTINGS}) -> Tensor")
torch.library.define(
    "ssm_kernels::depthwise_conv1d_backward",
    f"(Tensor grad, {_INPUTS}, {_SETTINGS})"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_state)",
)
depthwise_conv1d_op = torch.ops.ssm_kernels.depthwise_conv1d.default
depthwise_conv1d_backward_op = torch.ops.ssm_kernels.depthwise_conv1d_backward.default


def check_bounds(cu_seqlens: Tensor, length: int) -> None:
    """Refuse bounds that do not run from 0 to the length; on a GPU, looking at them waits for it."""
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a read would end the capture; the run before it has read them
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds):
        wanted = f"from 0 to L = {length} without decreasing"
        refuse("depthwise_conv1d", "cu_seqlens", wanted, bounds, "sum up the lengths, with a 0 in front")


def _on_triton(impl: str, x: Tensor, weight: Tensor) -> bool:
    """Leave sums in float64, which weights of that dtype ask for, to PyTorch."""
    return use_triton(impl, x) and weight.dtype != torch.float64


@implements("ssm_kernels::depthwise_conv1d")
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
    impl: str,
) -> Tensor:
    if cu_seqlens is not None:
        check_bounds(cu_seqlens, x.shape[1])
    args = (x, weight, bias, initial_state, cu_seqlens, padding, reverse, activation)
    with torch.autocast(x.device.type, enabled=False):
        if _on_triton(impl, x, weight):
            from . import kernels  # on the first launch, not on import

            return kernels.depthwise_conv1d_triton(*args)
        return depthwise_conv1d_torch(*args)


@torch.library.register_fake("ssm_kernels::depthwise_conv1d")
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
    impl: str,
) -> Tensor:
    return x.new_empty(x.shape)


@implements("ssm_kernels::depthwise_conv1d_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = (grad, x, weight, bias, initial_state, cu_seqlens, padding, reverse, activation)
    with torch.autocast(x.device.type, enabled=False):
        if _on_triton(impl, x, weight):
            from . import kernels

            return kernels.depthwise_conv1d_backward_triton(*args)
        return depthwise_conv1d_backward_torch(*args)


@torch.library.register_fake("ssm_kernels::depthwise_conv1d_backward")
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias, grad_state = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (bias, initial_state))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias, grad_state
