"""The second half of a feed-forward part, keeping less for the backward pass: GELU costs less than its memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def gelu_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Return layer(gelu(x)), (..., hidden) -> (..., C).

    In training on a GPU only `x` is kept for the backward, not its activation, the largest tensor of a block: there it
    is computed again. Outputs and gradients are the same. `torch.utils.checkpoint` would do so too, but `--graph` is
    refused with it.
    """
    if x.device.type != "cuda" or not torch.is_grad_enabled():
        return layer(F.gelu(x))
    return _GeluLinear.apply(x, layer.weight, layer.bias)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(F.gelu(x), weight, bias)  # under autocast in its dtype

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        activated = F.gelu(x).flatten(0, -2).to(grad.dtype)
        grad_weight = (rows.t() @ activated).to(weight.dtype)
        grad_bias = None if ctx.bias_dtype is None else rows.sum(0).to(ctx.bias_dtype)
        grad_x = torch.ops.aten.gelu_backward((grad @ weight.to(grad.dtype)).to(x.dtype), x)
        return grad_x, grad_weight, grad_bias
