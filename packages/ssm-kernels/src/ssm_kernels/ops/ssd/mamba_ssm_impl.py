"""An adapter to the `mamba_ssm` package, so that its Triton kernels can be compared with ours under one signature."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from ..dispatch import mamba_ssm_function

CHUNK = 256  # steps per chunk, that package's own choice


def ssd_mamba_ssm(
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
    """Call `mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined`, float32 parameters.

    Returns:
        y (B, L, H, P) in x.dtype and the final state (B, H, P, N) in float32.

    Raises:
        ValueError: The package is not installed, `ssm_kernels.compat` stands in for it, or it does not have what was
            asked for.
    """
    if cu_seqlens is not None:
        _lacks("cu_seqlens")
    if reverse:
        _lacks("reverse=True")
    mamba_chunk_scan_combined = mamba_ssm_function(
        "ssd", "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"
    )
    y, final = mamba_chunk_scan_combined(
        x,
        dt.to(x.dtype),
        A.float(),
        B.to(x.dtype),
        C.to(x.dtype),
        CHUNK,
        D=None if D is None else D.float(),
        z=None if z is None else z.to(x.dtype),
        dt_bias=None if dt_bias is None else dt_bias.float(),
        initial_states=None if initial_state is None else initial_state.float(),
        dt_softplus=dt_softplus,
        return_final_states=True,
    )
    return y, final


def _lacks(feature: str) -> NoReturn:
    raise ValueError(f"ssd: impl='mamba_ssm' does not support {feature}; use impl='auto'")
