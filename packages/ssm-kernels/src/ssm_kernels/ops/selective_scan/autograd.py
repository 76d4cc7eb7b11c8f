"""The gradient of the operator: what the forward keeps, and how the backward operator's results are handed out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["selective_scan_op"]

_run_backward = direct(schema.selective_scan_backward_op, schema._backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, ctx.reverse, _, ctx.impl = inputs
    chunk_states = output[2]
    ctx.set_materialize_grads(False)  # no zeros for an output that nobody differentiates
    ctx.mark_non_differentiable(chunk_states)
    ctx.save_for_backward(*tensors, chunk_states)


def _backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tensors, chunk_states = ctx.saved_tensors
    if grad_y is None and grad_final is None:
        return (None,) * 14
    grads = _run_backward(*tensors, chunk_states, grad_y, grad_final, ctx.dt_softplus, ctx.reverse, ctx.impl)
    wanted = zip(grads, tensors, ctx.needs_input_grad, strict=False)
    given = [grad if t is not None and needed else None for grad, t, needed in wanted]
    return (*given, None, None, None, None, None)


torch.library.register_autograd("ssm_kernels::selective_scan", _backward, setup_context=_setup_context)
selective_scan_op = direct_with_gradient(schema.selective_scan_op, schema._forward, _setup_context, _backward)
