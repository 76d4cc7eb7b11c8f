"""Gradient of the depthwise convolution: one backward operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["depthwise_conv1d_op"]

_run_backward = direct(schema.depthwise_conv1d_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_state, cu_seqlens = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_state = _run_backward(
        grad, x, weight, bias, initial_state, cu_seqlens, *ctx.rest
    )
    return (
        grad_x,
        grad_weight,
        None if bias is None else grad_bias,
        None if initial_state is None else grad_state,
        *(None,) * 5,
    )


torch.library.register_autograd("ssm_kernels::depthwise_conv1d", _backward, setup_context=_keep)
depthwise_conv1d_op = direct_with_gradient(schema.depthwise_conv1d_op, schema._forward, _keep, _backward)
