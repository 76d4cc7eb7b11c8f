"""The scan of single complex states in chunks that run side by side, or by FFT.

Letters: B batch, L length, P states, T steps of a chunk, n chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..long_conv1d.torch_impl import good_size
from ..powers import powers


def forward(u: Tensor, a: Tensor, initial_state: Tensor | None, reverse: bool) -> Tensor:
    """Return h (B, L, 2, P)."""
    value, rate, state = _complex(u), torch.complex(a[0], a[1]).to(_kind(u)), None
    if initial_state is not None:
        state = torch.complex(initial_state[:, 0], initial_state[:, 1]).to(_kind(u))
    h = _scan(value.flip(1) if reverse else value, rate, state)
    return _planes(h.flip(1) if reverse else h)


def by_fft(u: Tensor, a: Tensor, reverse: bool) -> Tensor:
    """Return h (B, L, 2, P) from a zero state, as a convolution with the powers of a."""
    length = u.shape[1]
    size = good_size(2 * length - 1)
    response = powers(torch.complex(a[0], a[1]).to(_kind(u))[:, None], length)[..., 0]  # (P, L)
    value = _complex(u).flip(1) if reverse else _complex(u)
    h = torch.fft.ifft(torch.fft.fft(value.mT, size) * torch.fft.fft(response, size), size)[..., :length].mT
    return _planes(h.flip(1) if reverse else h)


def backward(
    grad: Tensor, h: Tensor, a: Tensor, initial_state: Tensor | None, fft: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of u, a and the initial state."""
    conjugate = torch.stack([a[0], -a[1]])
    grad_u = by_fft(grad, conjugate, not reverse) if fft else forward(grad, conjugate, None, not reverse)
    g, seen = _complex(grad_u), _complex(h)
    before = _before(seen, initial_state, reverse)
    grad_a = (g * before.conj_physical()).sum((0, 1))
    first = g[:, -1 if reverse else 0] * torch.complex(conjugate[0], conjugate[1])
    return grad_u, torch.stack([grad_a.real, grad_a.imag]), torch.stack([first.real, first.imag], 1)


def _scan(u: Tensor, a: Tensor, state: Tensor | None) -> Tensor:
    """Run complex u (B, L, P) in chunks of about the root of L: local states, carry, and what it adds."""
    batch, length, states = u.shape
    steps = max(1, math.isqrt(length))
    count = -(-length // steps)
    h = F.pad(u, (0, 0, 0, count * steps - length)).view(batch, count, steps, states).clone()
    for t in range(1, steps):
        h[:, :, t] += a * h[:, :, t - 1]
    table = powers(a[:, None], steps + 1)[..., 0].mT  # (T + 1, P)
    state = h.new_zeros(batch, states) if state is None else state
    entering = []
    for i in range(count):
        entering.append(state)
        state = table[steps] * state + h[:, i, -1]
    h += table[1:] * torch.stack(entering, 1)[:, :, None]
    return h.flatten(1, 2)[:, :length]


def _before(h: Tensor, initial_state: Tensor | None, reverse: bool) -> Tensor:
    """Return the state before every step."""
    first = torch.zeros_like(h[:, :1])
    if initial_state is not None:
        first = torch.complex(initial_state[:, 0], initial_state[:, 1]).to(h.dtype)[:, None]
    return torch.cat([h[:, 1:], first], 1) if reverse else torch.cat([first, h[:, :-1]], 1)


def _kind(u: Tensor) -> torch.dtype:
    return torch.complex128 if u.dtype == torch.float64 else torch.complex64


def _complex(u: Tensor) -> Tensor:
    return torch.complex(u[:, :, 0], u[:, :, 1])


def _planes(h: Tensor) -> Tensor:
    return torch.stack([h.real, h.imag], 2)
