"""Gradient of the long convolution: one backward operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .schema import long_conv1d_backward_op, long_conv1d_op

__all__ = ["long_conv1d_op"]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = long_conv1d_backward_op(grad, *tensors, ctx.reverse, ctx.impl)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), None, None)


torch.library.register_autograd("ssm_kernels::long_conv1d", _backward, setup_context=_keep)
