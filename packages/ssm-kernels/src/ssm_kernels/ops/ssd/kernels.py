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
from typing import Any

import torch
from torch import Tensor

from ..launch import launch
from ..selective_scan.kernels_plan import cdiv
from .kernels_device import forward_kernel, output_kernel
from .kernels_device_backward import backward_kernel, sum_kernel
from .kernels_device_walk import carry_kernel, walk_kernel
from .kernels_plan import FUSION, WANTED_BACKWARD, Scan, in_rows, partial_of, prepare

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
    options = scan.layout.forward
    programs = heads * cdiv(width, options["BLOCK_P"])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = scan.buffer(scan.rows, heads)

    def constants() -> dict[str, Any]:
        return {"D_STEP": scan.skip_step, **scan.strides, **scan.flags, **options}

    with _on_device(x):
        if not scan.layout.fused:
            saved = scan.buffer(1, scan.total_slots, heads, dtype=scan.layout.kept)
            _walk(scan, saved, None, None, final, None, (0, heads))
            tensors = {**scan.inputs, "saved": saved, "y": y, **scan.slots_at}
            launch(output_kernel, scan.total_slots * programs, scan.key, tensors, constants)
            return y, final
        entering = _enter(scan, 1, None, None, final, None, (0, heads)) if scan.span else None
        tensors = {**scan.inputs, "initial": scan.initial, "y": y, "entering": entering, "final": final}
        parallel = {"PARALLEL": scan.span > 0}
        launch(
            forward_kernel,
            scan.units * programs,
            (scan.key, scan.span > 0),
            {**tensors, **scan.units_at},
            lambda: {**constants(), **parallel},
        )
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
    tensors = {
        "ends": ends,
        "totals": totals,
        "initial": scan.initial,
        "grad_final": grad_final,
        "final": final,
        "grad_initial": grad_initial,
        "span_base": scan.span_base,
        "rows": scan.rows,
        "spans": scan.spans,
        "units": scan.units,
        "first_head": first,
    }
    sizes = {"SIDES": sides, "HEADS": count, "H": scan.tail[0], "SIZE": size, "PRECISE": scan.layout.walk["PRECISE"]}
    programs = sides * scan.rows * count * cdiv(size, FLAT_BLOCK)
    launch(carry_kernel, programs, tuple(sizes.values()), tensors, lambda: {**sizes, "BLOCK": FLAT_BLOCK, **FUSION})
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
    options = scan.layout.walk
    programs = scan.units * sides * count * scan.layout.blocks * cdiv(scan.tail[2], options["BLOCK_N"])
    tensors = {
        **scan.inputs,
        "C": scan.C if sides == 2 else None,
        "z": scan.z if sides == 2 else None,
        "grad_y": grad_y,
        "initial": scan.initial,
        "grad_final": grad_final,
        "entering": entering,
        "saved": saved,
        "ends": None if ends is None else ends[0],
        "totals": None if ends is None else ends[1],
        "final": final,
        "grad_initial": grad_initial,
        **scan.units_at,
        "units": scan.units,
        "total_slots": scan.total_slots,
        "first_head": first,
    }
    del tensors["D"]
    grad_t = 0 if grad_y is None else grad_y.stride(1)
    mode = {"SIDES": sides, "LOCAL": ends is not None, "HEADS": count, "PARALLEL": scan.span > 0, "grad_t": grad_t}
    key = (scan.key, *mode.values())
    launch(walk_kernel, programs, key, tensors, lambda: {**scan.strides, **mode, **scan.flags, **options})


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
    scan = prepare(*given, cu_seqlens, dt_softplus, reverse, chunk=chunk, span=span, wanted=WANTED_BACKWARD)
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
    parts = {"part_B": part_B, "part_C": part_C, "part_sums": part_sums}
    tensors = {
        **scan.inputs,
        **parts,
        "grad_y": grad_y,
        "saved": saved,
        "grad_x": grad_x,
        "grad_dt": part_dt,
        "grad_z": grad_z,
        "total_slots": scan.total_slots,
        **scan.slots_at,
    }
    mode = {"HEADS": at_once, "D_STEP": scan.skip_step, "grad_t": grad_y.stride(1)}
    sums = {**parts, "grad_A": grad_A, "grad_B": grad_B, "grad_C": grad_C, "grad_D": grad_D, "grad_bias": grad_bias}
    for first in range(0, heads, at_once):
        _walk(scan, saved, grad_y, grad_final, None, grad_initial, (first, at_once))
        launch(
            backward_kernel,
            scan.total_slots * at_once * blocks,
            (scan.key, *mode.values()),
            {**tensors, "first_head": first},
            lambda: {**scan.strides, **mode, **scan.flags, **scan.layout.backward},
        )
        _launch_sums(scan, sums, (first, at_once), lines, direct=direct)
    grad_dt = part_dt.view(scan.dt.shape) if blocks == 1 else part_dt.sum(-1)
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial


def _launch_sums(
    scan: Scan, tensors: dict[str, Tensor | None], heads: tuple[int, int], lines: int, *, direct: bool
) -> None:
    """Add the partial sums of some heads; `direct` where those of B and C are the gradients themselves."""
    first, count = heads
    share = scan.tail[0] // scan.B.shape[2]
    groups, block_n = max(1, count // share), scan.layout.backward["BLOCK_N"]
    block_rows = max(1, SUM_TILE // block_n)
    extra = 0 if direct else 2 * cdiv(lines * groups, block_rows) * cdiv(scan.tail[2], block_n)
    numbers = {
        "rows": lines * groups,
        "total_slots": scan.total_slots,
        "first_head": first,
        "first_group": first // share,
    }
    mode = {
        "HEADS": count,
        "GROUPS": groups,
        "SHARE": min(count, share) * scan.layout.blocks,
        "MORE": first % share != 0,
        "D_STEP": scan.skip_step,
    }
    sizes = {
        "G": scan.B.shape[2],
        "P": scan.tail[1],
        "N": scan.tail[2],
        "BLOCK_P": scan.layout.block_p,
        "BLOCK_N": block_n,
        "BLOCK_ROWS": block_rows,
        "BLOCK_SLOTS": max(1, SUM_TILE // scan.layout.block_p),
        **FUSION,
    }
    key = (scan.layout.key, *mode.values())
    launch(sum_kernel, count + extra, key, {**tensors, **numbers}, lambda: {**mode, **sizes})


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
