"""The definition: a scan forwards plus a scan backwards, gated once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..selective_scan.reference import selective_scan_reference


def selective_scan_bidirectional_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    x_b: Tensor,
    dt_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    dt_bias_b: Tensor | None,
    z: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    average: bool = False,
) -> Tensor:
    """Add both directions in the wide dtype, gate and round once; arguments as in `selective_scan_bidirectional`."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(device_type=x.device.type, enabled=False):
        y, _ = selective_scan_reference(
            x.to(kind), dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=dt_softplus, reverse=False
        )
        y_b, _ = selective_scan_reference(
            x_b.to(kind), dt_b, A_b, B_b, C_b, D_b, dt_bias=dt_bias_b, dt_softplus=dt_softplus, reverse=True
        )
        y = y + y_b
        if z is not None:
            y = y * F.silu(z.to(kind))
        if average:
            y = y / 2
    return y.to(x.dtype)
