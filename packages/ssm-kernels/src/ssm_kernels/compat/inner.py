"""Everything of a Mamba block between its input projection and its output, as mamba-ssm and Vim call it.

Letters: B batch, L length, D channels, N state, R rank of the step projection.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse
from ..ops.depthwise_conv1d import depthwise_conv1d
from ..ops.dispatch import Impl
from ..ops.selective_scan import selective_scan
from ..ops.selective_scan_bidirectional import selective_scan_bidirectional
from .gated_norms import rms_normalised
from .scan import check_real, time_weights


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Convolve, project, scan, gate and project, as `mamba_ssm.ops.selective_scan_interface.mamba_inner_fn`.

    Args:
        xz: Input and gate, (B, 2 D, L), any strides.
        conv1d_weight: Filters, (D, 1, k).
        conv1d_bias: (D,) or None.
        x_proj_weight: (R + 2 N, D); without the N rows of B or C where that is given.
        delta_proj_weight: (D, R).
        out_proj_weight: (out, D).
        out_proj_bias: (out,) or None.
        A: Rate, (D, N), real.
        B: None computes it from the input; else as in `selective_scan_fn`.
        C: As B.
        D: Weight of the input in the scan's output, (D,).
        delta_bias: Added to the step, (D,).
        B_proj_bias: Added to a computed B, (N,).
        C_proj_bias: Added to a computed C, (N,).
        delta_softplus: Pass the step through softplus.
        checkpoint_lvl: 0 or 1; accepted, and without effect: nothing is recomputed in the backward.
        b_rms_weight: RMS-normalise a computed B with this weight, (N,).
        c_rms_weight: The same for C.
        dt_rms_weight: The same for the step before its bias, (D,).
        b_c_dt_rms_eps: Their epsilon.

    Returns:
        (B, L, out).

    Raises:
        ValueError: A shape is wrong, or A is complex.
    """
    y = mamba_inner_fn_no_out_proj(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        A,
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
        checkpoint_lvl,
        b_rms_weight,
        c_rms_weight,
        dt_rms_weight,
        b_c_dt_rms_eps,
    )
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Do what `mamba_inner_fn` does before its last projection; Vim's package has this. Returns (B, D, L)."""
    if checkpoint_lvl not in (0, 1):
        refuse("mamba_inner_fn", "checkpoint_lvl", "0 or 1", checkpoint_lvl, "both give the same result")
    x, z = _halves(xz, conv1d_weight, A)
    x = depthwise_conv1d(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    dt, B, C = _projected(
        x,
        x_proj_weight,
        delta_proj_weight,
        A.shape[1],
        _Weights("B", B, B_proj_bias, b_rms_weight),
        _Weights("C", C, C_proj_bias, c_rms_weight),
        b_c_dt_rms_eps,
    )
    if dt_rms_weight is not None:
        dt = rms_normalised(dt, dt_rms_weight, b_c_dt_rms_eps)
    return selective_scan(x, dt, A, B, C, D, z=z, dt_bias=delta_bias, dt_softplus=bool(delta_softplus)).mT


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Do what `mamba_inner_fn` does with the loops that define its parts, always with softplus (as there)."""
    x, z = _halves(xz, conv1d_weight, A)
    x = depthwise_conv1d(x, conv1d_weight[:, 0], conv1d_bias, activation="silu", impl="reference")
    weights = _Weights("B", B, B_proj_bias), _Weights("C", C, C_proj_bias)
    dt, B, C = _projected(x, x_proj_weight, delta_proj_weight, A.shape[1], *weights)
    y = selective_scan(x, dt, A, B, C, D, z=z, dt_bias=delta_bias, dt_softplus=True, impl="reference")
    return F.linear(y, out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Scan what one convolution and one projection made from both ends, as Vim's function of this name ("v1").

    Arguments and result as in `mamba_inner_fn`; A_b (D, N) is the rate of the scan from the end. The sum of both
    directions is not halved.
    """
    return _both_ends(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        out_proj_weight,
        out_proj_bias,
        (A, A_b),
        (_Weights("B", B, B_proj_bias), _Weights("C", C, C_proj_bias)),
        D,
        delta_bias,
        bool(delta_softplus),
        "auto",
    )


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Do what `bimamba_inner_fn` does with the loops that define it, always with softplus (as there)."""
    return _both_ends(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        out_proj_weight,
        out_proj_bias,
        (A, A_b),
        (_Weights("B", B, B_proj_bias), _Weights("C", C, C_proj_bias)),
        D,
        delta_bias,
        True,
        "reference",
    )


@dataclass(frozen=True)
class _Weights:
    """B or C: given, or computed from the input with a bias and a norm."""

    name: str
    given: Tensor | None
    bias: Tensor | None = None
    rms_weight: Tensor | None = None


def _both_ends(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    rates: tuple[Tensor, Tensor],
    weights: tuple[_Weights, _Weights],
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    impl: Impl,
) -> Tensor:
    A, A_b = rates
    x, z = _halves(xz, conv1d_weight, A)
    check_real("bimamba_inner_fn", A_b)
    x = depthwise_conv1d(x, conv1d_weight[:, 0], conv1d_bias, activation="silu", impl=impl)
    dt, B, C = _projected(x, x_proj_weight, delta_proj_weight, A.shape[1], *weights)
    ahead, back = (x, dt, A, B, C, D, delta_bias), (x, dt, A_b, B, C, D, delta_bias)
    y = selective_scan_bidirectional(*ahead, *back, z=z, dt_softplus=delta_softplus, impl=impl)
    return F.linear(y, out_proj_weight, out_proj_bias)


def _halves(xz: Tensor, conv1d_weight: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, 2 D, L) into input and gate, (B, L, D) each."""
    op = "mamba_inner_fn"
    check_real(op, A)
    channels = conv1d_weight.shape[0]
    if conv1d_weight.dim() != 3 or conv1d_weight.shape[1] != 1:
        refuse(op, "conv1d_weight", "(D, 1, k)", tuple(conv1d_weight.shape), "it is the weight of a depthwise Conv1d")
    if xz.dim() != 3 or xz.shape[1] != 2 * channels:
        refuse(op, "xz", f"(B, 2 D, L) = (B, {2 * channels}, L)", tuple(xz.shape), "channels come before time")
    x, z = xz.mT.chunk(2, -1)
    return x, z


def _projected(
    x: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    states: int,
    B: _Weights,
    C: _Weights,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the step (B, L, D), without its bias, and B and C in the operator's form, from x (B, L, D)."""
    rank = delta_proj_weight.shape[1]
    rows = rank + states * sum(weights.given is None for weights in (B, C))
    shape = (rows, x.shape[-1])
    check_shape("mamba_inner_fn", "x_proj_weight", x_proj_weight, [shape], "(R + 2 N, D)", "R is that of delta_proj")
    low = F.linear(x, x_proj_weight)
    dt = F.linear(low[..., :rank], delta_proj_weight)
    parts = low[..., rank : rank + states], low[..., -states:]
    ready = tuple(_weights(weights, part, eps) for weights, part in zip((B, C), parts, strict=True))
    return dt, *time_weights(ready[0], ready[1], x.shape[0], x.shape[1])


def _weights(weights: _Weights, computed: Tensor, eps: float) -> Tensor:
    """Give B or C in the layout of mamba-ssm."""
    if weights.given is not None:
        if weights.rms_weight is not None or weights.bias is not None:
            wanted = f"None when {weights.name} is computed"
            refuse("mamba_inner_fn", weights.name, wanted, "a tensor", "bias and norm belong to a computed one")
        return weights.given
    if weights.bias is not None:
        computed = computed + weights.bias.to(computed.dtype)
    return (computed if weights.rms_weight is None else rms_normalised(computed, weights.rms_weight, eps)).mT
