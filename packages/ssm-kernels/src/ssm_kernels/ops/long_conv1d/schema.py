"""The operator's contract: schemas, fake kernels, and what runs. Imports torch only."""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager import implements
from . import torch_impl

_TAGS = (torch.Tag.pt2_compliant_tag,)
torch.library.define(
    "ssm_kernels::long_conv1d",
    "(Tensor x, Tensor kernel, Tensor? kernel_back, bool reverse, str impl) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "ssm_kernels::long_conv1d_backward",
    "(Tensor grad, Tensor x, Tensor kernel, Tensor? kernel_back, bool reverse, str impl) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
long_conv1d_op = torch.ops.ssm_kernels.long_conv1d.default
long_conv1d_backward_op = torch.ops.ssm_kernels.long_conv1d_backward.default


@implements("ssm_kernels::long_conv1d")
def _forward(x: Tensor, kernel: Tensor, kernel_back: Tensor | None, reverse: bool, impl: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return torch_impl.convolve(x, kernel, reverse, kernel_back)


@implements("ssm_kernels::long_conv1d_backward")
def _backward(
    grad: Tensor, x: Tensor, kernel: Tensor, kernel_back: Tensor | None, reverse: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    lags = 0 if kernel_back is None else kernel_back.shape[1]
    with torch.autocast(x.device.type, enabled=False):
        grad_x = torch_impl.convolve(grad, kernel, not reverse, kernel_back)
        ahead, behind = torch_impl.correlate_both(grad, x, kernel.shape[1], lags, reverse)
    other = x.new_empty(0) if kernel_back is None else behind.to(kernel_back.dtype)
    return grad_x.to(x.dtype), ahead.to(kernel.dtype), other


@torch.library.register_fake("ssm_kernels::long_conv1d")
def _forward_fake(x: Tensor, kernel: Tensor, kernel_back: Tensor | None, reverse: bool, impl: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("ssm_kernels::long_conv1d_backward")
def _backward_fake(
    grad: Tensor, x: Tensor, kernel: Tensor, kernel_back: Tensor | None, reverse: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    other = x.new_empty(0) if kernel_back is None else kernel_back.new_empty(kernel_back.shape)
    return x.new_empty(x.shape), kernel.new_empty(kernel.shape), other
