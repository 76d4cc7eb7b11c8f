"""The gradient of the operator: one backward operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["linear_modes_op"]

_run_backward = direct(schema.linear_modes_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.rule, ctx.unit, ctx.scale, _, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_a: Tensor, grad_b: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
    grads = _run_backward(grad_a, grad_b, grad_c, *ctx.saved_tensors, ctx.rule, ctx.unit, ctx.scale, ctx.impl)
    return (*grads, None, None, None, None, None)


torch.library.register_autograd("ssm_kernels::linear_modes", _backward, setup_context=_keep)
linear_modes_op = direct_with_gradient(schema.linear_modes_op, schema._forward, _keep, _backward)
