"""Gradient of one step of the Mamba-2 scan: one backward operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["ssd_step_op"]

_run_backward = direct(schema.ssd_step_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, _ = inputs
    ctx.set_materialize_grads(False)  # no zeros for an output that nobody differentiates
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor | None, grad_next: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None and grad_next is None:
        return (None,) * 11
    tensors = ctx.saved_tensors
    grads = _run_backward(grad, grad_next, *tensors, ctx.dt_softplus)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), None, None)


torch.library.register_autograd("ssm_kernels::ssd_step", _backward, setup_context=_keep)
ssd_step_op = direct_with_gradient(schema.ssd_step_op, schema._forward, _keep, _backward)
