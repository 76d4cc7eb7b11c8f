"""The definition of the two norms, written out; differentiable by PyTorch itself."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_reference(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, dtype: torch.dtype, centered: bool
) -> Tensor:
    """Subtract the mean of the last axis if `centered`, divide by the root mean square, scale and shift."""
    wide = total.dtype
    for x in (weight, bias):
        wide = wide if x is None else torch.promote_types(wide, x.dtype)
    wide = torch.promote_types(wide, torch.float32)
    h = total.to(wide)
    if centered:
        h = h - h.mean(-1, keepdim=True)
    y = h / torch.sqrt((h * h).mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide)
    return (y if bias is None else y + bias.to(wide)).to(dtype)
