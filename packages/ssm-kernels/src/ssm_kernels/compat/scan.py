"""mamba-ssm's selective scan in its own layout, (B, D, L), on `ssm_kernels.selective_scan`.

Letters: B batch, L length, D channels, N state, G groups of channels that share B and C.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ..ops.checks import check_device, check_floating, check_shape, refuse
from ..ops.selective_scan import selective_scan

Scanned = Tensor | tuple[Tensor, Tensor]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = False,
) -> Scanned:
    """Scan as `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`.

    Args:
        u: Input, (B, D, L), float32, bfloat16, float16 or float64, any strides; dtypes may differ between arguments.
        delta: Time step, (B, D, L).
        A: Rate, (D, N), real.
        B: Input weights: (B, N, L), (B, G, N, L) with G dividing D, or constant in time, (D, N).
        C: Output weights, in any of the forms of B, not necessarily the same.
        D: Weight of u in the output, (D,).
        z: Gate, (B, D, L): the output is multiplied by silu(z).
        delta_bias: Added to delta, (D,).
        delta_softplus: Pass delta + delta_bias through softplus.
        return_last_state: Also return the state after the last step.

    Returns:
        (B, D, L) in u.dtype, channels next to one another in memory; with `return_last_state` also the state (B, D, N)
        in float32 (float64 for float64 u), which carries gradient here.

    Raises:
        ValueError: A shape, dtype or device is wrong, or A is complex. The message names the argument.
    """
    return _scan("selective_scan_fn", u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, "auto")


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = False,
) -> Scanned:
    """Do the same with the loop that defines the scan; arguments and results as in `selective_scan_fn`."""
    return _scan(
        "selective_scan_ref", u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, "reference"
    )


def _scan(
    op: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool | None,
    impl: Literal["auto", "reference"],
) -> Scanned:
    check_scan_arguments(op, u, delta, A, B, C, D, z, delta_bias)
    weights = time_weights(B, C, u.shape[0], u.shape[2])
    y, last = selective_scan(
        u.mT,
        delta.mT,
        A,
        *weights,
        D,
        z=None if z is None else z.mT,
        dt_bias=delta_bias,
        dt_softplus=bool(delta_softplus),
        return_final_state=True,
        impl=impl,
    )
    return (y.mT, last) if return_last_state else y.mT


def time_weights(B: Tensor, C: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Bring B and C into the operator's form, (B, L, N) or (B, L, G, N), the same number of groups for both."""
    B, C = (_time_last(t, batch, length) for t in (B, C))
    if B.shape == C.shape:
        return B, C
    B, C = (t.unsqueeze(2) if t.dim() == 3 else t for t in (B, C))
    groups = math.lcm(B.shape[2], C.shape[2])
    return _with_groups(B, groups), _with_groups(C, groups)


def _time_last(t: Tensor, batch: int, length: int) -> Tensor:
    if t.dim() == 2:  # constant: every channel is a group of its own, at every step the same
        return t.expand(batch, length, *t.shape)
    return t.mT if t.dim() == 3 else t.permute(0, 3, 1, 2)


def _with_groups(t: Tensor, groups: int) -> Tensor:
    return t if t.shape[2] == groups else t.repeat_interleave(groups // t.shape[2], dim=2)


def check_real(op: str, A: Tensor) -> None:
    """Refuse the complex A that mamba-ssm knows."""
    if A.is_complex():
        refuse(op, "A", "real", A.dtype, "ssm_kernels.linear_scan has complex states, without dependence on the input")


def check_scan_arguments(
    op: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Check everything that the operator would check, under the names and layouts of mamba-ssm."""
    check_real(op, A)
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, tensor in tensors.items():
        if tensor is not None:
            check_floating(op, name, tensor)
            check_device(op, name, tensor, u)
    if u.dim() != 3 or u.numel() == 0:
        refuse(op, "u", "(B, D, L) with every size at least 1", tuple(u.shape), "channels come before time")
    batch, channels, length = u.shape
    check_shape(op, "delta", delta, [u.shape], "(B, D, L)", "one time step per element of u")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        refuse(op, "A", f"(D, N) = ({channels}, N)", tuple(A.shape), "one rate per state")
    states = A.shape[1]
    for name, weights in {"B": B, "C": C}.items():
        groups = weights.shape[1] if weights.dim() == 4 else 1
        shapes = {
            2: (channels, states),
            3: (batch, states, length),
            4: (batch, groups, states, length),
        }
        legend = "(B, N, L), (B, G, N, L) or (D, N)"
        shape = shapes.get(weights.dim(), shapes[3])
        check_shape(op, name, weights, [shape], legend, "N is the last size of A, L that of u")
        if groups == 0 or channels % groups:
            refuse(op, name, f"(B, G, N, L) with G a divisor of D={channels}", tuple(weights.shape), "see groups")
    for name, vector in {"D": D, "delta_bias": delta_bias}.items():
        if vector is not None:
            check_shape(op, name, vector, [(channels,)], "(D,)", "one number per channel")
    if z is not None:
        check_shape(op, "z", z, [u.shape], "(B, D, L)", "one gate per element of u")
