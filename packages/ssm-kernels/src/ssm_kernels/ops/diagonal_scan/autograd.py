"""The gradient of the operator: what the forward keeps, and how the backward operator's results are handed out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..eager import direct, direct_with_gradient
from . import schema

__all__ = ["diagonal_scan_op"]

_run_backward = direct(schema.diagonal_scan_backward_op, schema._backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.mode, ctx.reverse, _, ctx.impl = inputs
    ctx.set_materialize_grads(False)  # no zeros for an output that nobody differentiates
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor | None, grad_final: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_y is None and grad_final is None:
        return (None,) * 9
    *tensors, states = ctx.saved_tensors
    grads = _run_backward(*tensors, states, grad_y, grad_final, ctx.mode, ctx.reverse, ctx.impl)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), None, None, None, None)


torch.library.register_autograd("ssm_kernels::diagonal_scan", _backward, setup_context=_keep)
diagonal_scan_op = direct_with_gradient(schema.diagonal_scan_op, schema._forward, _keep, _backward)
