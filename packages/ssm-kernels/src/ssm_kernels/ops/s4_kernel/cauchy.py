"""The response of S4 from its generating function: Cauchy sums at the roots of unity, Woodbury, inverse FFT.

Letters: D channels, M modes, F frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..linear_scan.discretize import Complex, times


def response(rate: Complex, low_rank: Complex, into: Complex, out: Complex, step: Tensor, length: int) -> Tensor:
    """Return the first `length` numbers of the response, (D, length).

    With z on the unit circle, z^length = 1, the truncated generating function of the response is
    C (1 - A^length) (1 - z A)^-1 B in discretised A and B; `out` is C (1 - A^length). For A = Lambda - P P* the inverse
    is that of a diagonal matrix and a correction of rank one (Woodbury).

    Args:
        rate: Lambda, (D, M) as the following.
        low_rank: P.
        into: B.
        out: C (1 - A^length).
        step: (D, 1).
        length: Of the response.

    Source: Gu et al. 2021, arXiv:2111.00396, algorithm 1.
    """
    angle = torch.arange(length // 2 + 1, device=step.device, dtype=torch.float64) * (2 * math.pi / length)
    # 1 - z without cancellation, z = exp(-i angle)
    half = torch.sin(angle / 2)
    p = torch.complex(2 * half * half, torch.sin(angle))
    q = torch.complex(torch.cos(angle) + 1, -torch.sin(angle))
    kind = torch.complex128 if step.dtype == torch.float64 else torch.complex64
    p, q = p.to(kind), (step / 2) * q.to(kind)  # (F,), (D, F)
    # a mode and its conjugate together: v / (p - Lambda q) + conj(v) / (p - conj(Lambda) q)
    size = rate[0] * rate[0] + rate[1] * rate[1]
    below = p * p - 2 * rate[0][:, :, None] * (p * q)[:, None] + size[:, :, None] * (q * q)[:, None]
    table = torch.view_as_real(below.reciprocal()).flatten(2)  # (D, M, 2 F)
    back = low_rank[0], -low_rank[1]  # P* is the row
    products = [times(out, into), times(out, low_rank), times(back, into), times(back, low_rank)]
    still = torch.stack([2 * v[0] for v in products], 1)  # (D, 4, M)
    turning = torch.stack([2 * (v[0] * rate[0] + v[1] * rate[1]) for v in products], 1)
    level = torch.view_as_complex((still @ table).unflatten(2, (-1, 2)).contiguous())
    slope = torch.view_as_complex((turning @ table).unflatten(2, (-1, 2)).contiguous())
    sums = p * level - q[:, None] * slope  # (D, 4, F)
    cb, cp, pb, pp = sums.unbind(1)
    # (1 - z A)^-1 B in terms of the continuous system: q / step * 2 is 1 + z, which is 0 at z = -1
    spectrum = step * (cb - q * cp * pb / (1 + q * pp))
    return torch.fft.irfft(spectrum, length)
