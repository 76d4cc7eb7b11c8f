"""The state matrix of S4 as a real matrix, discretised in closed form, and its response by products of matrices.

A mode v and its conjugate are the two real numbers Re v and Im v. In them A = diag(Lambda) - P P* is real: the rotation
and decay of every mode, less 2 p p^T with p = (Re P, Im P). Everything here is real arithmetic.

Letters: D channels, M modes, N = 2 M real states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linear_scan.discretize import Complex, times
from ..powers import split


def discretize(rate: Complex, low_rank: Complex, into: Complex, out: Complex, step: Tensor) -> tuple[Tensor, ...]:
    """Return A (D, N, N), B (D, N) and C (D, N) of h[t] = A h[t-1] + B x[t], y[t] = C h[t] by the trapezoidal rule.

    1 - step/2 A is diagonal blocks plus step p p^T, so its inverse E is closed (Sherman and Morrison); A becomes
    2 E - 1 and B step E B.
    """
    step = step[:, None]
    u, v = 1 - step * rate[0] / 2, step * rate[1] / 2
    size = u * u + v * v
    inverse = u / size, v / size  # of 1 - step/2 Lambda
    right = times(inverse, low_rank)
    left = times((inverse[0], -inverse[1]), low_rank)
    p, after, before = (torch.cat(pair, 1) for pair in (low_rank, right, left))
    scale = step / (1 + step * (p * after).sum(1, keepdim=True))
    upper = torch.cat([torch.diag_embed(inverse[0]), torch.diag_embed(-inverse[1])], 2)
    lower = torch.cat([torch.diag_embed(inverse[1]), torch.diag_embed(inverse[0])], 2)
    solved = torch.cat([upper, lower], 1) - (scale * after)[:, :, None] * before[:, None]
    A = 2 * solved - torch.eye(solved.shape[1], dtype=solved.dtype, device=solved.device)
    B = step * (solved @ torch.cat(into, 1)[:, :, None])[..., 0]
    return A, B, 2 * torch.cat([out[0], -out[1]], 1)


def response(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """Return C A^j B for j < length, (D, length).

    Writes j = h * width + l: about two roots of `length` vectors, C A^(h * width) and A^l B, and one product.
    """
    rows, width = split(length)
    columns, power = _krylov(A, B[:, :, None], width)
    lines, _ = _krylov(power.mT, C[:, :, None], rows)
    return (lines.mT @ columns).flatten(1)[:, :length]


def _krylov(A: Tensor, first: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return A^0 first, ..., A^(count - 1) first as columns, and A^count, for a count that is a power of two.

    Any other count takes the next power of two, and so does the matrix, which is of no use then.
    """
    vectors = first
    while vectors.shape[2] < count:
        vectors = torch.cat([vectors, A @ vectors], 2)
        A = A @ A
    return vectors[:, :, :count], A
