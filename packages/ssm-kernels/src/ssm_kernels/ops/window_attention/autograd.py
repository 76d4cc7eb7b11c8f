"""Gradient of window attention: one backward operator, which computes the scores again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .schema import window_attention_backward_op, window_attention_op

__all__ = ["window_attention_op"]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, bias_table, window, key_window, shift, scale, impl = inputs
    ctx.save_for_backward(q, k, v, bias_table)
    ctx.rest = window, key_window, shift, scale, impl


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bias_table = ctx.saved_tensors
    grad_q, grad_k, grad_v, grad_table = window_attention_backward_op(grad, q, k, v, bias_table, *ctx.rest)
    return grad_q, grad_k, grad_v, None if bias_table is None else grad_table, None, None, None, None, None


torch.library.register_autograd("ssm_kernels::window_attention", _backward, setup_context=_keep)
