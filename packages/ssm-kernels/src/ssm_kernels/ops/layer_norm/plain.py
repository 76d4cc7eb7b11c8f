"""The two norms in PyTorch's own operators, which differentiate, compile and export by themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def norm_plain(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, dtype: torch.dtype, centered: bool
) -> Tensor:
    """Call PyTorch's norm on tensors of one dtype: their own where it sums that in float32, a wider one elsewhere."""
    dtypes = {x.dtype for x in (total, weight, bias) if x is not None}
    if len(dtypes) > 1 or not centered:
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        total = _converted(total, wide)
        weight, bias = (None if x is None else _converted(x, wide) for x in (weight, bias))
    if centered:
        return _converted(F.layer_norm(total, total.shape[-1:], weight, bias, eps), dtype)
    y = F.rms_norm(total, total.shape[-1:], weight, eps)
    return _converted(y if bias is None else y + bias, dtype)


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert what is not of the dtype: in an exported graph a conversion that does nothing is a node as well."""
    return x if x.dtype == dtype else x.to(dtype)
