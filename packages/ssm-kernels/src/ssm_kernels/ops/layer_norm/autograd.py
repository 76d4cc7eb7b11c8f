"""Gradient of the norms on Triton: one backward operator, which computes the statistics again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["layer_norm_op"]

_run_backward = direct(schema.layer_norm_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, _, eps, centered = inputs
    ctx.set_materialize_grads(False)  # a sum that nobody uses on has no gradient, not one of zeros
    ctx.save_for_backward(x if residual is None else output[1], weight, bias)
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
    ctx.settings = eps, centered


def _backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
    total, weight, bias = ctx.saved_tensors
    x_dtype, residual_dtype = ctx.dtypes
    if residual_dtype is None:
        grad_total = None  # of the placeholder
    if grad is None:
        passed = [None if dtype is None or grad_total is None else grad_total.to(dtype) for dtype in ctx.dtypes]
        return passed[0], None, None, passed[1], None, None, None
    parameters = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    second = None if residual_dtype == x_dtype else residual_dtype
    grad_x, grad_residual, grad_weight, grad_bias = _run_backward(
        grad, grad_total, total, weight, bias, x_dtype, second, parameters, *ctx.settings
    )
    if residual_dtype == x_dtype:
        grad_residual = grad_x  # as a sum's gradient is one tensor for both
    return (
        grad_x,
        None if weight is None or not parameters else grad_weight,
        None if bias is None or not parameters else grad_bias,
        None if residual_dtype is None else grad_residual,
        None,
        None,
        None,
    )


torch.library.register_autograd("ssm_kernels::layer_norm", _backward, setup_context=_keep)
layer_norm_op = direct_with_gradient(schema.layer_norm_op, schema._forward, _keep, _backward)
