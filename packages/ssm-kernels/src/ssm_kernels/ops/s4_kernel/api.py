"""The public functions: documentation, checks, one dispatch. Letters: D channels, M modes, N = 2 M real states."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from ..checks import FLOATING, check_device, refuse
from ..linear_scan.arguments import COMPLEX, parts, precise
from ..linear_scan.discretize import Complex
from . import cauchy, dense

Method = Literal["cauchy", "dense"]


def s4_kernel(
    Lambda: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    step: Tensor,
    length: int,
    *,
    method: Method = "cauchy",
) -> Tensor:
    """Compute the filter of S4, whose state matrix is diagonal less a matrix of rank one.

    The model h' = (Lambda - P P*) h + B x, y = C h with the conjugate modes added, discretised by the trapezoidal rule
    with its step; the filter is its response to an impulse, for `long_conv1d`. C is that of the model itself and not
    the C (1 - A^L) of a fixed length, so one set of parameters makes filters of any length and step.

    Args:
        Lambda: Diagonal, (D, M) complex, one of each conjugate pair; the real part should be negative.
        P: Low-rank factor, (D, M), complex or real.
        B: Input weights, (D, M), complex or real.
        C: Output weights, (D, M), complex or real.
        step: Length of a step, (D,), real, positive.
        length: L, at least 1.
        method: "cauchy" evaluates the generating function at the roots of unity (Woodbury, inverse FFT); "dense" takes
            powers of the (N, N) matrix, in real arithmetic only. Both give the same numbers.

    Returns:
        The filter, (D, L), float32 (float64 for a complex128 Lambda). Every tensor argument has a gradient, with
        gradients of its own.

    Raises:
        ValueError: A shape, a dtype, a device, `length` or `method` is wrong. The message names the argument.

    Cost: Both multiply (N, N) matrices about log2(L) times per channel, in float64. "cauchy" then makes a table of
        D * M * L numbers, of which the gradient keeps several; "dense" D * N * sqrt(L).
    Source: Gu et al. 2021, arXiv:2111.00396, section 3 and algorithm 1.
    """
    _check("s4_kernel", Lambda, P, B, C, step)
    if length < 1:
        refuse("s4_kernel", "length", "at least 1", length, "give the length of the rows")
    if method not in ("cauchy", "dense"):
        refuse("s4_kernel", "method", "'cauchy' or 'dense'", repr(method), "both give the same numbers")
    fine = precise(Lambda.device)
    kind = torch.float64 if Lambda.dtype == torch.complex128 else torch.float32
    pairs = [parts(t, fine) for t in (Lambda, P, B, C)]
    return kernel_of(pairs[0], pairs[1], pairs[2], pairs[3], step.to(fine), length, method, kind)


def s4_discretize(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Discretise the model of `s4_kernel` to matrices, for single steps: h = A h + B x, y = sum over N of C h.

    Args:
        Lambda: And the following, as in `s4_kernel`.
        P: Low-rank factor.
        B: Input weights.
        C: Output weights.
        step: Length of a step.

    Returns:
        A (D, N, N), B (D, N) and C (D, N), real, float32 (float64 for a complex128 Lambda). States are the real parts
        of all modes, then the imaginary ones.

    Raises:
        ValueError: As in `s4_kernel`.
    """
    _check("s4_discretize", Lambda, P, B, C, step)
    fine = precise(Lambda.device)
    kind = torch.float64 if Lambda.dtype == torch.complex128 else torch.float32
    pairs = [parts(t, fine) for t in (Lambda, P, B, C)]
    made = dense.discretize(pairs[0], pairs[1], pairs[2], pairs[3], step.to(fine))
    return made[0].to(kind), made[1].to(kind), made[2].to(kind)


def kernel_of(
    rate: Complex,
    low_rank: Complex,
    into: Complex,
    out: Complex,
    step: Tensor,
    length: int,
    method: Method,
    kind: torch.dtype,
) -> Tensor:
    """Compute the filter from real and imaginary parts; what the module calls, so that graphs hold real tensors."""
    with nullcontext() if step.device.type == "meta" else torch.autocast(step.device.type, enabled=False):
        A, B, C = dense.discretize(rate, low_rank, into, out, step)
        if method == "dense":
            return dense.response(A, B, C, length).to(kind)
        # C (1 - A^L) as a complex row again: C is 2 (Re, -Im)
        row = (C - (torch.linalg.matrix_power(A, length).mT @ C[:, :, None])[..., 0]) / 2
        real, imag = row.chunk(2, 1)
        pairs = [(re.to(kind), im.to(kind)) for re, im in (rate, low_rank, into, (real, -imag))]
        return cauchy.response(pairs[0], pairs[1], pairs[2], pairs[3], step[:, None].to(kind), length)


def _check(op: str, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, step: Tensor) -> None:
    if Lambda.dtype not in COMPLEX:
        found = str(Lambda.dtype).removeprefix("torch.")
        refuse(op, "Lambda", "complex64 or complex128", found, "give one of each conjugate pair")
    if Lambda.dim() != 2 or Lambda.numel() == 0:
        refuse(op, "Lambda", "(D, M) with every size at least 1", tuple(Lambda.shape), "one row of modes per channel")
    for name, tensor in {"P": P, "B": B, "C": C}.items():
        check_device(op, name, tensor, Lambda)
        if tensor.shape != Lambda.shape:
            refuse(op, name, f"(D, M) = {tuple(Lambda.shape)}", tuple(tensor.shape), "M is the last size of Lambda")
    check_device(op, "step", step, Lambda)
    if step.dtype not in FLOATING or tuple(step.shape) != (Lambda.shape[0],):
        found = f"{tuple(step.shape)} {str(step.dtype).removeprefix('torch.')}"
        refuse(op, "step", f"(D,) = ({Lambda.shape[0]},) and real", found, "one step per channel")
