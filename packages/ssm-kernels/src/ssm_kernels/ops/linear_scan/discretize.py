"""Names of the rules that make a step of a continuous mode h' = Lambda h + B x: h[t] = a h[t-1] + f B x[t].

With z = step * Lambda. "zoh": a = exp(z), f = (a - 1) / Lambda, exact for an input that is constant during a step.
"bilinear": a = (1 + z/2) / (1 - z/2), f = step / (1 - z/2), the trapezoidal rule.

Source: Gu et al. 2022, arXiv:2206.11893, equation (6); Smith et al. 2023, arXiv:2208.04933, equation (6).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..checks import refuse

Discretization = Literal["zoh", "bilinear"]
DISCRETIZATIONS = ("zoh", "bilinear")
Complex = tuple[Tensor, Tensor]  # real and imaginary part


def check_discretization(op: str, discretization: str) -> None:
    """Refuse an unknown rule."""
    if discretization not in DISCRETIZATIONS:
        wanted = "'zoh' or 'bilinear'"
        refuse(op, "discretization", wanted, repr(discretization), "'zoh' is exact for inputs held over a step")


def times(p: Complex, q: Complex) -> Complex:
    """Multiply complex numbers."""
    return p[0] * q[0] - p[1] * q[1], p[0] * q[1] + p[1] * q[0]
