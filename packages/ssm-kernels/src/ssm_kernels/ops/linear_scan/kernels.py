"""Launchers of the linear scan's Triton kernels. Imported on the first launch only.

Two ways through a row, chosen by size: many rows run one program per row and block of channels; few long rows are cut
into spans that run side by side, after a pass that finds what every span adds to a zero state and one that carries the
states from span to span. The gradient of x is the same scan from the other end; those of a and c come from one walk
along the row, which leaves a partial sum per unit, added in a fixed order, so that results repeat exactly.
See docs/linear_scan.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..launch import launch
from .kernels_device import carry_kernel, gradient_kernel, scan_kernel

LANES = 32  # channels per program: one per thread of a warp
STEPS = 4  # loaded ahead of their use
WARP_MODES = 16  # that one thread holds: 6 to 8 registers each
PROGRAM_MODES = 64  # more go to programs of their own
GRADIENT_MODES = 8  # of a program of the gradient, which has 12 registers each and needs no sum over modes
ENOUGH_PROGRAMS = 1024  # from here on rows alone fill a GPU; with fewer, long rows are cut into spans
WANTED_PROGRAMS = 2112  # of a scan that is cut: 16 per processor of an H100
SHORTEST_SPAN = 64  # steps
CARRY_BLOCK = 128
AHEAD = 4  # units whose states the carry loads at once
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so
UNPIPELINED = {"num_stages": 1}  # the kernels load ahead by themselves


@dataclass(frozen=True)
class Scan:
    """One call in the kernels' form, and how its rows are cut.

    Attributes:
        x: (B, L, D), channels next to one another.
        a: (2, M, D) float32, as b and c.
        b: 1 if None.
        c: Output weights.
        span: Steps of a unit; at least L where rows are whole.
        reverse: Whether the scan runs from the last step.
    """

    x: Tensor
    a: Tensor
    b: Tensor | None
    c: Tensor
    span: int
    reverse: bool

    @property
    def spans(self) -> int:
        """Units per row."""
        return -(-self.x.shape[1] // self.span)

    @property
    def modes(self) -> int:
        """M."""
        return self.a.shape[1]

    def states(self, count: int) -> Tensor:
        """Room for states (count, 2, M, D)."""
        return torch.empty((count, *self.a.shape), dtype=torch.float32, device=self.x.device)

    def sizes(self, values: Tensor, other: Tensor | None) -> dict[str, int]:
        """Return the numbers that every kernel over time takes; `values` and `other` are indexed like x."""
        return {
            "length": self.x.shape[1],
            "span": self.span,
            "spans": self.spans,
            "channels": self.x.shape[2],
            "x_b": values.stride(0),
            "x_t": values.stride(1),
            "o_b": 0 if other is None else other.stride(0),
            "o_t": 0 if other is None else other.stride(1),
        }

    def constants(self, *others: Tensor) -> dict[str, Any]:
        """Return what every kernel over time is compiled for; `others` are indexed like x."""
        _, length, channels = self.x.shape
        strides = [channels, *(t.stride(1) for t in (self.x, *others))]
        return {
            "M": self.modes,
            "STEPS": STEPS,
            "BLOCK_D": LANES,
            "REVERSE": self.reverse,
            "WIDE": length * max(strides) >= 2**31,
            "EVEN": channels % LANES == 0,
            **FUSION,
            **UNPIPELINED,
        }

    def launch(
        self,
        values: Tensor,
        into: Tensor | None,
        out: Tensor,
        entering: Tensor | None,
        *,
        adjoint: bool = False,
        other: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Walk all units; return the sequence (B, L, D) in the dtype of x, the last states, and the sums with other."""
        batch, length, channels = self.x.shape
        m_blocks = self.blocks()[2]
        kind = torch.float32 if m_blocks > 1 else self.x.dtype
        y = torch.empty((m_blocks, batch, length, channels), dtype=kind, device=self.x.device)
        final = self.states(batch)
        part = None if other is None else self.states(batch * self.spans)
        self._walk(values, into, out, other, entering, y, final, part, adjoint=adjoint)
        return y.sum(0).to(self.x.dtype) if m_blocks > 1 else y[0], final, part

    def enter(self, values: Tensor, into: Tensor | None, initial: Tensor | None, *, adjoint: bool) -> Tensor | None:
        """Return the states that enter the units, (units, 2, M, D), None for zeros."""
        batch, length, channels = self.x.shape
        if self.spans == 1:
            return initial
        ends = self.states(batch * self.spans)
        self._walk(values, into, None, None, None, None, ends, None, adjoint=adjoint)
        size = self.modes * channels
        carry_states(ends, self.a, initial, batch, self.spans, self.span, length, size, adjoint=adjoint)
        return ends

    def _walk(
        self,
        values: Tensor,
        into: Tensor | None,
        out: Tensor | None,
        other: Tensor | None,
        entering: Tensor | None,
        y: Tensor | None,
        final: Tensor,
        part: Tensor | None,
        *,
        adjoint: bool,
    ) -> None:
        """Launch the scan; without `y` it is the pass that finds what every unit adds."""
        d_blocks, block, m_blocks, warps = self.blocks()
        batch = self.x.shape[0]
        tensors = {
            **{"x": values, "a": self.a, "into": into, "out": out, "other": other, "entering": entering, "y": y},
            **{"final": final, "part": part, "batch": batch},
            **self.sizes(values, other),
        }
        constants = {
            "BLOCK_M": block,
            "M_BLOCKS": m_blocks,
            "ADJOINT": adjoint,
            "CUT": self.spans > 1,
            "num_warps": warps,
            **self.constants(values),
        }
        run_kernel(scan_kernel, batch * self.spans * d_blocks * m_blocks, tensors, constants)

    def blocks(self) -> tuple[int, int, int, int]:
        """Return blocks of channels, modes of a program, blocks of modes, warps."""
        block = min(_power_of_two(self.modes), PROGRAM_MODES)
        return -(-self.x.shape[2] // LANES), block, -(-self.modes // block), max(1, block // WARP_MODES)


def prepare(x: Tensor, a: Tensor, b: Tensor | None, c: Tensor, reverse: bool, span: int | None) -> Scan:
    """Bring the arguments into the kernels' form and choose the steps of a unit, unless they are given."""
    length = x.shape[1]
    made = Scan(_rows(x), _planes(a), None if b is None else _planes(b), _planes(c), span or length, reverse)
    if span is not None:
        return made
    d_blocks, _, m_blocks, _ = made.blocks()
    programs = x.shape[0] * d_blocks * m_blocks
    if programs >= ENOUGH_PROGRAMS or length <= 2 * SHORTEST_SPAN:
        return made
    steps = max(SHORTEST_SPAN, -(-length * programs // WANTED_PROGRAMS))
    return Scan(made.x, made.a, made.b, made.c, -(-steps // STEPS) * STEPS, reverse)


def forward(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    reverse: bool,
    *,
    span: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y and the final state (B, 2, M, D)."""
    scan = prepare(x, a, b, c, reverse, span)
    initial = None if initial_state is None else _planes(initial_state)
    with _on_device(x):
        entering = scan.enter(scan.x, scan.b, initial, adjoint=False)
        y, final, _ = scan.launch(scan.x, scan.b, scan.c, entering)
    return y, final


def backward(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    reverse: bool,
    *,
    span: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of x, a, b (None without b), c and the initial state, each in float32 but that of x."""
    scan = prepare(x, a, b, c, reverse, span)
    grad_y = _rows(grad_y)
    initial = None if initial_state is None else _planes(initial_state)
    behind = None if grad_final is None else _conjugate(_planes(grad_final))
    # without b the adjoint is in units of 1 / c, as the state is in units of b
    back_into, back_out = (None, scan.c) if scan.b is None else (scan.c, scan.b)
    with _on_device(x):
        entering = scan.enter(scan.x, scan.b, initial, adjoint=False)
        adjoints = scan.enter(grad_y, back_into, behind, adjoint=True)
        other = None if scan.b is None else scan.x
        grad_x, first, part_b = scan.launch(grad_y, back_into, back_out, adjoints, adjoint=True, other=other)
        parts = _gradients(scan, grad_y, entering, adjoints)
    sums = _conjugate(parts.sum(0))
    grad_b = None if part_b is None else _conjugate(part_b.sum(0))
    return grad_x, sums[0], grad_b, sums[1], _conjugate(first)


def _gradients(scan: Scan, grad_y: Tensor, entering: Tensor | None, adjoints: Tensor | None) -> Tensor:
    """Return per unit what is conjugate to the gradients of a and c, (units, 2, 2, M, D)."""
    batch, _, channels = scan.x.shape
    units = batch * scan.spans
    block = min(_power_of_two(scan.modes), GRADIENT_MODES)
    m_blocks = -(-scan.modes // block)
    part = torch.empty((units, 2, *scan.a.shape), dtype=torch.float32, device=scan.x.device)
    tensors = {
        **{"x": scan.x, "grad_y": grad_y, "a": scan.a, "into": scan.b, "weights": scan.c},
        **{"entering": entering, "adjoints": adjoints, "part": part},
        **scan.sizes(scan.x, grad_y),
    }
    constants = {"BLOCK_M": block, "M_BLOCKS": m_blocks, "num_warps": 1, **scan.constants(grad_y)}
    run_kernel(gradient_kernel, units * -(-channels // LANES) * m_blocks, tensors, constants)
    return part


def carry_states(
    ends: Tensor,
    a: Tensor,
    initial: Tensor | None,
    rows: int,
    spans: int,
    span: int,
    length: int,
    size: int,
    *,
    adjoint: bool,
) -> None:
    """Replace what every unit adds by the state that enters it; `size` complex numbers a state."""
    tensors = {"ends": ends, "a": a, "initial": initial, "spans": spans, "span": span, "size": size}
    tensors |= {"last_steps": length - (spans - 1) * span, "bits": span.bit_length()}
    constants = {"ADJOINT": adjoint, "BLOCK": CARRY_BLOCK, "AHEAD": AHEAD, **FUSION}
    run_kernel(carry_kernel, rows * -(-size // CARRY_BLOCK), tensors, constants)


def run_kernel(kernel: Any, programs: int, tensors: dict[str, Tensor | int | None], constants: dict[str, Any]) -> None:
    """Launch; numbers from 2^31 on have a type of their own."""
    large = tuple(name for name, value in tensors.items() if isinstance(value, int) and value >= 2**31)
    launch(kernel, programs, (*large, *constants.values()), tensors, lambda: constants)


def _conjugate(planes: Tensor) -> Tensor:
    """Conjugate (..., 2, M, D)."""
    return torch.stack([planes.select(-3, 0), -planes.select(-3, 1)], -3)


def _rows(x: Tensor) -> Tensor:
    """Copy only what the kernels cannot address: a last axis whose elements are not next to one another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _planes(t: Tensor) -> Tensor:
    """Return parameters or states as the kernels take them."""
    return t.to(torch.float32).contiguous()


def _power_of_two(n: int) -> int:
    """Return the least power of two from n on."""
    return 1 << (n - 1).bit_length()


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
