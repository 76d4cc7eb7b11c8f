"""First values of state matrices: HiPPO-LegS and what S4, S4D and S5 take from it. All of it in float64.

Letters: N states, M = N / 2 modes, one of each conjugate pair.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..ops.checks import refuse

Init = Literal["legs", "inv", "lin", "real"]


def hippo_legs(states: int) -> tuple[Tensor, Tensor]:
    """Return A (N, N) and B (N,) of HiPPO-LegS, which keeps the Legendre coefficients of the past.

    A[n, k] = -sqrt((2n + 1)(2k + 1)) below the diagonal, -(n + 1) on it, 0 above; B[n] = sqrt(2n + 1).

    Source: Gu et al. 2020, arXiv:2008.07669, equation (3).
    """
    number = torch.arange(states, dtype=torch.float64)
    root = (2 * number + 1).sqrt()
    A = -(root[:, None] * root).tril(-1) - torch.diag(number + 1)
    return A, root


def legs_modes(states: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Diagonalise the normal part of HiPPO-LegS, A + P P^T with P[n] = sqrt(n + 1/2).

    Returns:
        Lambda (M,), P (M,), B (M,) and the eigenvectors V (N, M): A is diag(Lambda) - P P* in their basis, with the
        conjugate modes left out. The real part of Lambda is -1/2, frequencies rise. A row C of the original basis is
        C V in this one.

    Raises:
        ValueError: N is odd or less than 2.

    Source: Gu et al. 2021, arXiv:2111.00396, theorem 1.
    """
    _check_even(states)
    A, B = hippo_legs(states)
    low_rank = (torch.arange(states, dtype=torch.float64) + 0.5).sqrt()
    normal = A + low_rank[:, None] * low_rank
    frequency, vectors = torch.linalg.eigh(-1j * (normal + 0.5 * torch.eye(states, dtype=torch.float64)))
    V = vectors[:, states // 2 :]
    Lambda = torch.complex(torch.full_like(frequency[states // 2 :], -0.5), frequency[states // 2 :])
    return Lambda, V.mH @ low_rank.to(V.dtype), V.mH @ B.to(V.dtype), V


def s4d_modes(init: Init, states: int) -> Tensor:
    """Return the first Lambda of S4D: (M,) complex, for "real" (N,) real.

    "legs": eigenvalues of the normal part of HiPPO-LegS. "inv": -1/2 + i N / pi (N / (2n + 1) - 1). "lin":
    -1/2 + i pi n. "real": -(n + 1), as in Mamba.

    Raises:
        ValueError: `init` is unknown, or N is odd and not for "real".

    Source: Gu et al. 2022, arXiv:2206.11893, section 4.
    """
    if init == "real":
        return -torch.arange(1, states + 1, dtype=torch.float64)
    _check_even(states)
    if init == "legs":
        return legs_modes(states)[0]
    number = torch.arange(states // 2, dtype=torch.float64)
    if init == "inv":
        frequency = states / math.pi * (states / (2 * number + 1) - 1)
    elif init == "lin":
        frequency = math.pi * number
    else:
        refuse("s4d_modes", "init", "'legs', 'inv', 'lin' or 'real'", repr(init), "'legs' is that of S4")
    return torch.complex(torch.full_like(frequency, -0.5), frequency)


def _check_even(states: int) -> None:
    if states < 2 or states % 2:
        refuse("hippo", "d_state", "even and at least 2", states, "states come in conjugate pairs")
