"""From a continuous mode h' = Lambda h + B u to one step of length `step`: h[t] = a h[t-1] + f B x[t].

All of it is elementwise and in real arithmetic, so that it differentiates, compiles and exports like any other PyTorch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..checks import refuse

Discretization = Literal["zoh", "bilinear"]
DISCRETIZATIONS = ("zoh", "bilinear")
Complex = tuple[Tensor, Tensor]  # real and imaginary part
SMALL = 1e-6  # of |z|^2: below it the series of expm1(z) / z to the third order is exact to 1e-14


def check_discretization(op: str, discretization: str) -> None:
    """Refuse an unknown rule."""
    if discretization not in DISCRETIZATIONS:
        wanted = "'zoh' or 'bilinear'"
        refuse(op, "discretization", wanted, repr(discretization), "'zoh' is exact for inputs held over a step")


def times(p: Complex, q: Complex) -> Complex:
    """Multiply complex numbers."""
    return p[0] * q[0] - p[1] * q[1], p[0] * q[1] + p[1] * q[0]


def discretize(rate: Complex, step: Tensor, discretization: Discretization) -> tuple[Complex, Complex]:
    """Return a and f of every mode.

    "zoh": a = exp(z), f = (exp(z) - 1) / Lambda with z = step * Lambda, exact for an input that is constant during a
    step. "bilinear": a = (1 + z/2) / (1 - z/2), f = step / (1 - z/2), the trapezoidal rule.

    Args:
        rate: Lambda, any shape; 0 is allowed.
        step: Length of a step in units of 1 / Lambda, of a shape that broadcasts to it.
        discretization: The rule.

    Source: Gu et al. 2022, arXiv:2206.11893, equation (6); Smith et al. 2023, arXiv:2208.04933, equation (6).
    """
    x, y = rate[0] * step, rate[1] * step
    if discretization == "bilinear":
        u, v = 1 - x / 2, y / 2
        size = u * u + v * v
        # a as 1 + z / (1 - z/2): its rounding is that of a small number
        return (1 + (x * u - y * v) / size, y / size), (step * u / size, step * v / size)
    growth, wave = torch.exp(x), torch.sin(y)
    a = growth * torch.cos(y), growth * wave
    half = torch.sin(y / 2)
    less_one = torch.expm1(x) * torch.cos(y) - 2 * half * half, a[1]  # exp(z) - 1 without cancellation
    size = x * x + y * y
    near = size < SMALL
    divisor = torch.where(near, 1, size)
    quotient = (less_one[0] * x + less_one[1] * y) / divisor, (less_one[1] * x - less_one[0] * y) / divisor
    square = x * x - y * y, 2 * x * y
    cube = times(square, (x, y))
    series = 1 + x / 2 + square[0] / 6 + cube[0] / 24, y / 2 + square[1] / 6 + cube[1] / 24
    return a, (step * torch.where(near, series[0], quotient[0]), step * torch.where(near, series[1], quotient[1]))
