"""The public functions: documentation, checks, one dispatch.

Letters: B batch, L length, D channels, M modes of a channel; for S5 H channels, P modes shared by them.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..checks import refuse
from ..dispatch import Impl, check_impl
from .arguments import Modes, check_modes, check_state, parts, wide
from .discretize import Discretization, check_discretization
from .reference import linear_scan_reference
from .run import run

Mode = Literal["scan", "fft"]
_OP = "linear_scan"


@overload
def linear_scan(
    x: Tensor,
    Lambda: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    *,
    mode: Mode = "scan",
    discretization: Discretization = "zoh",
    initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False,
    reverse: bool = False,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def linear_scan(
    x: Tensor,
    Lambda: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    *,
    mode: Mode = "scan",
    discretization: Discretization = "zoh",
    initial_state: Tensor | None = None,
    return_final_state: Literal[True],
    reverse: bool = False,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def linear_scan(
    x: Tensor,
    Lambda: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    *,
    mode: Mode = "scan",
    discretization: Discretization = "zoh",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a linear state-space model with a diagonal state matrix, as in S4D and S5, along a sequence.

    Every mode of h' = Lambda h + B x is discretised with its step to h[t] = a h[t-1] + f B x[t] (see
    `discretization`); y[t] is the sum of C h[t] over the modes. A complex mode stands for itself and its conjugate, so
    that y is twice the real part; modes of a real Lambda count once.

    Args:
        x: Input, (B, L, D), for S5 (B, L, H). float32, bfloat16, float16 or float64.
        Lambda: Rates in 1 / time. (D, M): every channel has M modes of its own (S4D with N = 2 M states). (P,): modes
            that all channels share (S5 with 2 P states). complex64 or complex128, or real. The real part should be
            negative.
        B: Input weights, (D, M), for S5 (P, H); complex or real.
        C: Output weights, (D, M), for S5 (H, P); complex or real.
        step: Length of a step, (D,), for S5 (P,); real, positive. Twice the resolution is half the step.
        mode: "scan" is the recurrence; "fft" the convolution with its response, which has no states.
        discretization: "zoh" (exact for inputs that are constant during a step) or "bilinear" (trapezoidal rule).
        initial_state: State before the first step (after the last one if `reverse`), (B, D, M), for S5 (B, P); complex
            if Lambda is. Zero if None.
        return_final_state: Also return the state after the last step (after the first one if `reverse`).
        reverse: Run from the last step to the first. Nothing is flipped in memory.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" (the definition, a
            loop) never fall back. FFTs are those of PyTorch under every name.

    Returns:
        y in the shape and dtype of x; with `return_final_state` also the state, complex64 (float32 for a real Lambda),
        or in double precision for float64 x. Both carry gradient, to every tensor argument; it has none of its own,
        except with impl="reference".

    Raises:
        ValueError: A shape, a dtype, a device, `mode`, `discretization` or `impl` is wrong, or mode="fft" is asked for
            a state. The message names the argument.

    Cost: S4D: 6 B L D M flop forwards as a scan. S5: 4 B L H P flop in each of two products, and 6 B L P. "fft": see
        `long_conv1d`. The gradient costs about three times that and keeps x (for S5 also the states).
    Source: Gu et al. 2022, arXiv:2206.11893, section 3; Smith et al. 2023, arXiv:2208.04933, section 3.
    """
    check_impl(_OP, impl, x)
    _check(_OP, x, mode, discretization)
    check_modes(_OP, x, Lambda, B, C, step)
    check_state(_OP, "initial_state", initial_state, x, Lambda)
    if mode == "fft" and (initial_state is not None or return_final_state):
        argument = "initial_state" if initial_state is not None else "return_final_state"
        found = "a state" if initial_state is not None else True
        refuse(_OP, argument, "left out with mode='fft'", found, "a convolution has no states; use mode='scan'")
    if impl == "reference":
        y, final = linear_scan_reference(x, Lambda, B, C, step, initial_state, discretization, reverse)
        return (y, final) if return_final_state else y
    double = any(t.dtype in (torch.complex128, torch.float64) for t in (x, Lambda, B, C, step))
    kind = torch.float64 if double else torch.float32  # of the parameters; states follow x
    rate, into, out = (parts(t, kind) for t in (Lambda, B, C))
    y, last = run(
        x,
        Modes.of(rate, into, out, step.to(kind), 2.0 if Lambda.is_complex() else 1.0),
        mode=mode,
        discretization=discretization,
        initial_state=None if initial_state is None else parts(initial_state, wide(x)),
        final=return_final_state,
        reverse=reverse,
        impl=impl,
    )
    if not return_final_state:
        return y
    return y, torch.complex(*last) if Lambda.is_complex() else last[0]


def linear_scan_bidirectional(
    x: Tensor,
    Lambda: Tensor,
    B: Tensor,
    C: Tensor,
    C_b: Tensor,
    step: Tensor,
    *,
    mode: Mode = "scan",
    discretization: Discretization = "zoh",
    impl: Impl = "auto",
) -> Tensor:
    """Add a `linear_scan` from the start, read by C, and one from the end, read by C_b, with the same modes.

    Both see the present step, so with C_b = C it counts twice and the result is flip-equivariant.

    Args:
        x: And the following, as in `linear_scan`.
        Lambda: Rates.
        B: Input weights.
        C: Output weights of the scan from the start.
        C_b: Output weights of the scan from the end, the shape of C.
        step: Length of a step.
        mode: "scan" or "fft".
        discretization: "zoh" or "bilinear".
        impl: As in `linear_scan`.

    Returns:
        y in the shape and dtype of x.

    Raises:
        ValueError: As in `linear_scan`.

    Source: Gu et al. 2022, arXiv:2206.11893, section 5.1; Smith et al. 2023, arXiv:2208.04933, section 4.
    """
    op = "linear_scan_bidirectional"
    check_impl(op, impl, x)
    _check(op, x, mode, discretization)
    check_modes(op, x, Lambda, B, C, step)
    check_modes(op, x, Lambda, B, C_b, step, "C_b")
    kind = torch.promote_types(x.dtype, torch.float32)
    ahead, back = (
        linear_scan(
            x.to(kind), Lambda, B, out, step, mode=mode, discretization=discretization, reverse=reverse, impl=impl
        )
        for out, reverse in ((C, False), (C_b, True))
    )
    return (ahead + back).to(x.dtype)


def linear_scan_step(
    x: Tensor,
    Lambda: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    *,
    state: Tensor,
    discretization: Discretization = "zoh",
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Make the next step of a `linear_scan` from the state before it.

    Args:
        x: Input, (B, D), for S5 (B, H).
        Lambda: And the following, as in `linear_scan`.
        B: Input weights.
        C: Output weights.
        step: Length of a step.
        state: State before the step, (B, D, M), for S5 (B, P): zeros at the beginning, or the final state of a
            `linear_scan`. It is not changed.
        discretization: "zoh" or "bilinear".
        impl: As in `linear_scan`.

    Returns:
        y in the shape and dtype of x, and the next state. Both carry gradient.

    Raises:
        ValueError: As in `linear_scan`.
    """
    op = "linear_scan_step"
    check_impl(op, impl, x)
    if x.dim() != 2 or x.numel() == 0:
        refuse(op, "x", "(B, D) with every size at least 1", tuple(x.shape), "x[:, t] is one step of (B, L, D)")
    check_discretization(op, discretization)
    check_modes(op, x, Lambda, B, C, step)
    check_state(op, "state", state, x, Lambda)
    y, following = linear_scan(
        x[:, None],
        Lambda,
        B,
        C,
        step,
        discretization=discretization,
        initial_state=state,
        return_final_state=True,
        impl=impl,
    )
    return y[:, 0], following


def _check(op: str, x: Tensor, mode: str, discretization: str) -> None:
    """Check what does not depend on the modes."""
    if x.dim() != 3 or x.numel() == 0:
        remedy = "add the missing axis or leave the call out"
        refuse(op, "x", "(B, L, D) with every size at least 1", tuple(x.shape), remedy)
    if mode not in ("scan", "fft"):
        refuse(op, "mode", "'scan' or 'fft'", repr(mode), "'scan' also carries states")
    check_discretization(op, discretization)
