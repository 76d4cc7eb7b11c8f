"""Gradient of the long convolution: one backward operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["long_conv1d_op"]

_run_backward = direct(schema.long_conv1d_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = _run_backward(grad, *tensors, ctx.reverse, ctx.impl)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), None, None)


torch.library.register_autograd("ssm_kernels::long_conv1d", _backward, setup_context=_keep)
long_conv1d_op = direct_with_gradient(schema.long_conv1d_op, schema._forward, _keep, _backward)
