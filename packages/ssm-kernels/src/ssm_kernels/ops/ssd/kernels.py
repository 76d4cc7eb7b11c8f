"""Launchers of the Mamba-2 scan's Triton kernels. Imported on the first launch only.

Forward: many rows and heads run one program each, which walks the row chunk by chunk with its state in registers, one
launch in all; few long rows are cut into spans of chunks that run side by side, after a pass that finds what every span
adds to a zero state and a pass that carries the states from span to span.

Backward: the states before all chunks are made again, and in the same launch the adjoints behind them from the other
end; then every chunk's gradients are independent. Programs write partial sums of the gradients that they share, which
are added in a fixed order, so that results repeat exactly. Where all that would need much memory, the heads are taken
some at a time. See docs/ssd.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..selective_scan.kernels_plan import cdiv
from .kernels_device import forward_kernel, output_kernel
from .kernels_device_backward import backward_kernel, sum_kernel
from .kernels_device_walk import carry_kernel, walk_kernel
from .kernels_plan import FUSION, Scan, in_rows, partial_of, prepare

FLAT_BLOCK = 512  # numbers per program where the state is just a vector
SUM_TILE = 2048  # numbers that a program adds up at a time


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    *,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y and the final state."""
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    scan = prepare(*tensors, dt_softplus, reverse, chunk=chunk, span=span)
    heads, width, _ = scan.tail
    blocks = cdiv(width, scan.layout.forward["BLOCK_P"])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = scan.buffer(scan.rows, heads)
    inputs = (scan.x, scan.dt, scan.A, scan.B, scan.C, scan.D, scan.z, scan.dt_bias)
    with _on_device(x):
        if not scan.layout.fused:
            saved = scan.buffer(1, scan.total_slots, heads, dtype=scan.layout.kept)
            _walk(scan, saved, None, None, final, None, (0, heads))
            output_kernel[(scan.total_slots * heads * blocks,)](
                *inputs, saved, y, *scan.slots_at, *scan.strides,
                D_STEP=scan.skip_step, **scan.flags, **scan.layout.forward,
            )  # fmt: skip
            return y, final
        entering = _enter(scan, 1, None, None, final, None, (0, heads)) if scan.span else None
        forward_kernel[(scan.units * heads * blocks,)](
            *inputs, scan.initial, y, entering, final, *scan.units_at, *scan.strides,
            PARALLEL=scan.span > 0, D_STEP=scan.skip_step, **scan.flags, **scan.layout.forward,
        )  # fmt: skip
    return y, final


def _enter(
    scan: Scan,
    sides: int,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    final: Tensor | None,
    grad_initial: Tensor | None,
    heads: tuple[int, int],
) -> Tensor:
    """Return the states that enter every unit, and with two sides the adjoints: (sides, units, heads, P, N).

    Args:
        scan: The call, its rows cut into spans.
        sides: 2 for the adjoints, too.
        grad_y: Gradient of y, (B, L, H, P).
        grad_final: Gradient of the final states, (rows, H, P, N).
        final: Written: the states that leave the rows.
        grad_initial: Written: the adjoints that do.
        heads: The first head and how many.
    """
    first, count = heads
    size = scan.tail[1] * scan.tail[2]
    ends = scan.buffer(sides, scan.units, count)
    totals = torch.empty((sides, scan.units, count), dtype=torch.float32, device=ends.device)
    _launch_walk(scan, sides, grad_y, None, None, None, (ends, totals), None, None, heads)
    carry_kernel[(sides * scan.rows * count * cdiv(size, FLAT_BLOCK),)](
        ends, totals, scan.initial, grad_final, final, grad_initial,
        scan.span_base, scan.rows, scan.spans, scan.units, first,
        SIDES=sides, HEADS=count, H=scan.tail[0], SIZE=size, PRECISE=scan.layout.walk["PRECISE"], BLOCK=FLAT_BLOCK,
        **FUSION,
    )  # fmt: skip
    return ends


def _walk(
    scan: Scan,
    saved: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    final: Tensor | None,
    grad_initial: Tensor | None,
    heads: tuple[int, int],
) -> None:
    """Fill `saved`, (sides, slots, heads, N, P) in memory, with the states before all chunks and the adjoints behind.

    The other arguments are those of `_enter`.
    """
    entering = None
    if scan.span:
        entering = _enter(scan, saved.shape[0], grad_y, grad_final, final, grad_initial, heads)
    _launch_walk(scan, saved.shape[0], grad_y, grad_final, entering, saved, None, final, grad_initial, heads)


def _launch_walk(
    scan: Scan,
    sides: int,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    entering: Tensor | None,
    saved: Tensor | None,
    ends: tuple[Tensor, Tensor] | None,
    final: Tensor | None,
    grad_initial: Tensor | None,
    heads: tuple[int, int],
) -> None:
    first, count = heads
    state = scan.tail[2]
    options = scan.layout.walk
    programs = scan.units * sides * count * scan.layout.blocks * cdiv(state, options["BLOCK_N"])
    z = scan.z if sides == 2 else None
    walk_kernel[(programs,)](
        scan.x, scan.dt, scan.A, scan.B, scan.C if sides == 2 else None, z, scan.dt_bias, grad_y,
        scan.initial, grad_final, entering, saved, *((None, None) if ends is None else ends), final, grad_initial,
        *scan.units_at, scan.units, scan.total_slots, first,
        *scan.strides, 0 if grad_y is None else grad_y.stride(1),
        SIDES=sides, LOCAL=ends is not None, HEADS=count, PARALLEL=scan.span > 0, **scan.flags, **options,
    )  # fmt: skip


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    chunk: int,
    span: int | None = None,
    heads_at_once: int | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the nine floating arguments in their order, empty tensors for those that are None."""
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = prepare(*given, cu_seqlens, dt_softplus, reverse, chunk=chunk, span=span)
    at_once = scan.heads_at_once() if heads_at_once is None else heads_at_once
    grad_final = None if grad_final is None else grad_final.contiguous()
    with _on_device(x):
        grads = _launch_backward(scan, in_rows(grad_y), grad_final, at_once)
    return tuple(
        x.new_empty(0) if t is None or grad is None else grad.to(t.dtype) for t, grad in zip(given, grads, strict=True)
    )


def _launch_backward(scan: Scan, grad_y: Tensor, grad_final: Tensor | None, at_once: int) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of the arguments.

    Args:
        scan: The call.
        grad_y: Gradient of y, (B, L, H, P).
        grad_final: Gradient of the final states, (rows, H, P, N).
        at_once: Heads that are taken together.
    """
    x, blocks = scan.x, scan.layout.blocks
    heads, _, state = scan.tail
    lines = x.shape[0] * x.shape[1]
    share = heads // scan.B.shape[2]  # heads of a group
    several = at_once < share  # whose sums are made in several goes
    grad_x, grad_z, grad_A, grad_D, grad_bias = (
        None if t is None else torch.empty(t.shape, dtype=t.dtype, device=x.device)
        for t in (x, scan.z, scan.A, scan.D, scan.dt_bias)
    )
    grad_B, grad_C = (
        torch.empty(t.shape, dtype=torch.float32 if several else t.dtype, device=x.device) for t in (scan.B, scan.C)
    )
    part_dt = torch.empty(
        (*scan.dt.shape, blocks), dtype=scan.dt.dtype if blocks == 1 else torch.float32, device=x.device
    )
    grad_initial = None if scan.initial is None else scan.buffer(scan.rows, heads)
    saved = scan.buffer(2, scan.total_slots, at_once, dtype=scan.layout.kept)
    part_B, part_C, direct = grad_B, grad_C, share * blocks == 1 and at_once == heads
    if not direct:
        part_B, part_C = torch.empty(
            (2, lines, at_once * blocks, state), dtype=partial_of(scan.B, scan.C), device=x.device
        )
    part_sums = torch.empty(
        (scan.total_slots, at_once * blocks, scan.layout.block_p + 2), dtype=torch.float32, device=x.device
    )
    for first in range(0, heads, at_once):
        _walk(scan, saved, grad_y, grad_final, None, grad_initial, (first, at_once))
        backward_kernel[(scan.total_slots * at_once * blocks,)](
            x, scan.dt, scan.A, scan.B, scan.C, scan.D, scan.z, scan.dt_bias, grad_y,
            saved, grad_x, part_dt, grad_z, part_B, part_C, part_sums,
            *scan.slots_at, scan.total_slots, first, *scan.strides, grad_y.stride(1),
            HEADS=at_once, D_STEP=scan.skip_step, **scan.flags, **scan.layout.backward,
        )  # fmt: skip
        groups = max(1, at_once // share)
        options = scan.layout.backward
        block_rows = max(1, SUM_TILE // options["BLOCK_N"])
        extra = 0 if direct else 2 * cdiv(lines * groups, block_rows) * cdiv(state, options["BLOCK_N"])
        sum_kernel[(at_once + extra,)](
            part_B, part_C, grad_B, grad_C, part_sums, grad_A, grad_D, grad_bias,
            lines * groups, scan.total_slots, first, first // share,
            HEADS=at_once, GROUPS=groups, G=scan.B.shape[2], P=scan.tail[1], N=state,
            SHARE=min(at_once, share) * blocks, MORE=first % share != 0, BLOCK_P=scan.layout.block_p,
            BLOCK_N=options["BLOCK_N"], BLOCK_ROWS=block_rows, BLOCK_SLOTS=max(1, SUM_TILE // scan.layout.block_p),
            D_STEP=scan.skip_step, **FUSION,
        )  # fmt: skip
    grad_dt = part_dt.view(scan.dt.shape) if blocks == 1 else part_dt.sum(-1)
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
