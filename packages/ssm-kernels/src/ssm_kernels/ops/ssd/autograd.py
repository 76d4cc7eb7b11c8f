"""The gradient of the operator: the forward keeps its inputs, and the backward operator's results are handed out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["ssd_op"]

_run_backward = direct(schema.ssd_backward_op, schema._backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, ctx.reverse, ctx.chunk, ctx.impl = inputs
    ctx.set_materialize_grads(False)  # no zeros for an output that nobody differentiates
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if grad_y is None and grad_final is None:
        return (None,) * 14
    grads = _run_backward(*tensors, grad_y, grad_final, ctx.dt_softplus, ctx.reverse, ctx.chunk, ctx.impl)
    wanted = zip(grads, tensors, ctx.needs_input_grad, strict=False)
    given = [grad if t is not None and needed else None for grad, t, needed in wanted]
    return (*given, None, None, None, None, None)


torch.library.register_autograd("ssm_kernels::ssd", _backward, setup_context=_setup_context)
ssd_op = direct_with_gradient(schema.ssd_op, schema._forward, _setup_context, _backward)
