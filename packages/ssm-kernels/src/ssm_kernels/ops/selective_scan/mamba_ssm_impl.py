"""An adapter to the `mamba_ssm` package, so that its CUDA scan can be compared with ours under one signature."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from ..dispatch import mamba_ssm_function


def selective_scan_mamba_ssm(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Call `mamba_ssm.ops.selective_scan_interface.selective_scan_fn` in its (B, D, L) layout, float32 parameters.

    Returns:
        y (B, L, D) in x.dtype and the final state (B, D, N) in float32. That package does not differentiate the
        final state, so it comes back detached: asking for its gradient fails instead of being silently dropped.

    Raises:
        ValueError: The package is not installed, `ssm_kernels.compat` stands in for it, or it does not have what was
            asked for.
    """
    if initial_state is not None:
        _lacks("initial_state")
    if cu_seqlens is not None:
        _lacks("cu_seqlens")
    if reverse:
        _lacks("reverse=True")
    if A.dim() == 3 or (D is not None and D.dim() == 2):
        _lacks("A or D with a batch axis")
    selective_scan_fn = mamba_ssm_function(
        "selective_scan", "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"
    )
    y, final = selective_scan_fn(
        _channels_first(x),
        _channels_first(dt.to(x.dtype)),
        A.float(),
        _state_first(B.to(x.dtype)),
        _state_first(C.to(x.dtype)),
        D=None if D is None else D.float(),
        z=None if z is None else _channels_first(z.to(x.dtype)),
        delta_bias=None if dt_bias is None else dt_bias.float(),
        delta_softplus=dt_softplus,
        return_last_state=True,
    )
    return y.transpose(1, 2), final.detach()


def _channels_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def _state_first(x: Tensor) -> Tensor:
    """(B, L, N) to (B, N, L), and (B, L, G, N) to (B, G, N, L)."""
    return (x.transpose(1, 2) if x.dim() == 3 else x.permute(0, 2, 3, 1)).contiguous()


def _lacks(feature: str) -> NoReturn:
    raise ValueError(f"selective_scan: impl='mamba_ssm' does not support {feature}; use impl='auto'")
