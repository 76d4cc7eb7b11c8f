"""Gradient of window attention: one backward operator, which computes the scores again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["window_attention_op"]

_run_backward = direct(schema.window_attention_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.rest = inputs[4:]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bias_table, out, lse = ctx.saved_tensors
    args = (q, k, v, bias_table, out, lse, *ctx.rest)
    grad_q, grad_k, grad_v, grad_table = _run_backward(grad, *args)
    return grad_q, grad_k, grad_v, None if bias_table is None else grad_table, *(None,) * 5


torch.library.register_autograd("ssm_kernels::window_attention", _backward, setup_context=_keep)
window_attention_op = direct_with_gradient(schema.window_attention_op, schema._forward, _keep, _backward)
