"""Launchers of the recurrence of single complex states. Imported on the first launch only.

Rows are cut into spans until there are programs enough to keep memory busy: a pass that finds what every span adds to a
zero state, one that carries the states, and one that writes them. Results repeat exactly. See docs/linear_scan.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..linear_scan.kernels import FUSION, UNPIPELINED, carry_states, run_kernel
from .kernels_device import states_kernel

LANES = 32  # states per program: one per thread of a warp
STEPS = 4  # loaded ahead of their use
WANTED_PROGRAMS = 4224  # 32 per processor of an H100
SHORTEST_SPAN = 32  # steps


def forward(u: Tensor, a: Tensor, initial_state: Tensor | None, reverse: bool, *, span: int | None = None) -> Tensor:
    """Return h (B, L, 2, P) float32."""
    initial = None if initial_state is None else initial_state.float().contiguous()
    return _run(u, a, initial, None, conjugate=False, reverse=reverse, span=span)[0]


def backward(
    grad: Tensor, h: Tensor, a: Tensor, initial_state: Tensor | None, reverse: bool, *, span: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of u, a and the initial state."""
    grad_u, part = _run(grad, a, None, h.contiguous(), conjugate=True, reverse=not reverse, span=span)
    assert part is not None, "sums were asked for"
    grad_a = part.sum(0)
    g = grad_u[:, -1 if reverse else 0]
    if initial_state is not None:
        grad_a = grad_a + _conjugate_times(initial_state.float(), g).sum(0)
    return grad_u, grad_a, _conjugate_times(a.float()[None], g)


def _run(
    u: Tensor,
    a: Tensor,
    initial: Tensor | None,
    other: Tensor | None,
    *,
    conjugate: bool,
    reverse: bool,
    span: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the states and, with `other`, sums per unit (units, 2, P)."""
    u, a = u.contiguous(), a.to(torch.float32).contiguous()
    batch, length, _, states = u.shape
    blocks = -(-states // LANES)
    span = span or max(SHORTEST_SPAN, -(-length * batch * blocks // WANTED_PROGRAMS))
    span = min(-(-span // STEPS) * STEPS, length)
    spans = -(-length // span)
    units = batch * spans
    sizes = {"length": length, "span": span, "spans": spans, "states": states}
    constants = {
        "STEPS": STEPS,
        "BLOCK": LANES,
        "CONJUGATE": conjugate,
        "REVERSE": reverse,
        "WIDE": length * 2 * states >= 2**31,
        "EVEN": states % LANES == 0,
        "num_warps": 1,
        **FUSION,
        **UNPIPELINED,
    }
    h = torch.empty(u.shape, dtype=torch.float32, device=u.device)
    part = None if other is None else torch.empty(units, 2, states, dtype=torch.float64, device=u.device)
    entering = initial
    with _on_device(u):
        if spans > 1:
            entering = torch.empty(units, 2, states, dtype=torch.float32, device=u.device)
            first = {"u": u, "a": a, "other": None, "entering": None, "h": None, "ends": entering, "part": None}
            run_kernel(states_kernel, units * blocks, first | sizes, constants)
            rate = torch.stack([a[0], -a[1]]) if conjugate else a
            carry_states(entering, rate, initial, batch, spans, span, length, states, adjoint=False)
        tensors = {"u": u, "a": a, "other": other, "entering": entering, "h": h, "ends": None, "part": part}
        run_kernel(states_kernel, units * blocks, tensors | sizes, constants)
    return h, part


def _conjugate_times(p: Tensor, q: Tensor) -> Tensor:
    """Return conj(p) q of planes (.., 2, P)."""
    return torch.stack([p[:, 0] * q[:, 0] + p[:, 1] * q[:, 1], p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]], 1)


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
