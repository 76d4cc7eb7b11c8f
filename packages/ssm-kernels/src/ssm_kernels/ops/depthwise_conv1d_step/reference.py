"""The definition of one step of the convolution, tap by tap, differentiable by PyTorch itself."""

from __future__ import annotations

import torch
from torch import Tensor


def depthwise_conv1d_step_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Sum the taps over the state and x, in float32 for half-precision inputs; see `depthwise_conv1d_step`."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        y = x.to(wide) * weight[:, -1].to(wide)
        for j in range(state.shape[2]):
            y = y + state[..., j].to(wide) * weight[:, j].to(wide)
        if bias is not None:
            y = y + bias.to(wide)
        if activation is not None:
            y = y * torch.sigmoid(y)
        return y.to(x.dtype), torch.cat([state[..., 1:], x[..., None].to(state.dtype)], 2)
