"""One step of the convolution as a product of the window with the filter, and its gradient. B batch, D channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _sum(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the window (B, D, k) and the sum (B, D) ahead of the activation."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    window = torch.cat([state.to(wide), x[..., None].to(wide)], 2)
    y = (window * weight.to(wide)).sum(2)
    return window, y if bias is None else y + bias.to(wide)


def depthwise_conv1d_step_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Return the step and the next state."""
    _, y = _sum(x, weight, bias, state)
    y = (y if activation is None else F.silu(y)).to(x.dtype)
    return y, torch.cat([state[..., 1:], x[..., None].to(state.dtype)], 2)


def depthwise_conv1d_step_backward_torch(
    grad: Tensor | None,
    grad_next: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute all gradients; that of a missing bias is an empty tensor. A gradient that is None is zero."""
    window, y = _sum(x, weight, bias, state)
    grad_y = torch.zeros_like(y) if grad is None else grad.to(y.dtype)
    grad_sum: Tensor = grad_y if activation is None else torch.ops.aten.silu_backward(grad_y, y)
    grad_window = grad_sum[..., None] * weight.to(y.dtype)
    if grad_next is not None:
        grad_window[..., 1:] += grad_next
    return (
        grad_window[..., -1].to(x.dtype).contiguous(),
        (grad_sum[..., None] * window).sum(0).to(weight.dtype),
        x.new_empty(0) if bias is None else grad_sum.sum(0).to(bias.dtype),
        grad_window[..., :-1].to(state.dtype).contiguous(),
    )
