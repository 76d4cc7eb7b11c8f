"""The gradient: an operator of its own. Besides the inputs the states of the chunks are kept, if Triton made them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["selective_scan_2d_op"]

_run_backward = direct(schema.selective_scan_2d_backward_op, schema._backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, ctx.directions, ctx.impl, _ = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    chunk_states, *tensors = ctx.saved_tensors
    grads = _run_backward(grad_y, chunk_states, *tensors, ctx.dt_softplus, ctx.directions, ctx.impl)
    wanted = (None if t is None else grad for t, grad in zip(tensors, grads, strict=True))
    return *wanted, None, None, None, None


torch.library.register_autograd("ssm_kernels::selective_scan_2d", _backward, setup_context=_setup_context)
selective_scan_2d_op = direct_with_gradient(schema.selective_scan_2d_op, schema._forward, _setup_context, _backward)
