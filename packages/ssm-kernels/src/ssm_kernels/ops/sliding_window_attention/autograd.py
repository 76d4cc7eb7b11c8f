"""Gradient of sliding-window attention: one backward operator, which computes the scores again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["sliding_window_attention_op"]

_run_backward = direct(schema.sliding_window_attention_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.rest = inputs[3:]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_run_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None


torch.library.register_autograd("ssm_kernels::sliding_window_attention", _backward, setup_context=_keep)
sliding_window_attention_op = direct_with_gradient(
    schema.sliding_window_attention_op, schema._forward, _keep, _backward
)
