"""Launchers of the selective scans' Triton kernels, in one and two dimensions. Imported on the first launch only.

Two ways through a row, chosen by size: many rows run one program per row and block of channels, which walks the row
with its state in registers; few long rows are cut into spans of chunks that run side by side, after a pass that finds
what every span adds to a zero state and a pass that carries the states from span to span. The backward does the same
from the other end. Programs write partial sums of the gradients that they share, which are added in a fixed order, so
that results repeat exactly. See docs/selective_scan.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..launch import launch
from .kernels_device import carry_kernel, forward_kernel, local_kernel, sum_kernel, sum_pairs_kernel
from .kernels_device_backward import backward_kernel
from .kernels_plan import (
    FUSION,
    LANES,
    Scan,
    cdiv,
    partial_dtype,
    prepare,
    transposed,
    unit_stride,
)
from .kernels_sums import add_parts

FLAT_BLOCK = 512  # numbers per program where the state is just a vector
SCRATCH_BYTES = 33 * 2**20  # of the programs of the backward that run at a time: 8 per processor of an H100
AHEAD = 8  # units whose states the carry loads at once; partial sums that are loaded at once
PAIRS_BLOCK = 128  # numbers of the gradient of B per program
LOCAL_STEPS = 8  # loaded ahead in the pass that finds what spans add
BACKWARD_STATES = 8  # n at a time in the backward
BACKWARD_STEPS = 4  # between the states that it keeps of a chunk
RESIDENT_STATES = 16  # that its registers hold
BACKWARD_REGISTERS: int | None = None  # per thread, at most; None leaves it to the compiler


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
    save_states: bool,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and the states before every chunk; no chunks unless `save_states`.

    The states of chunks are for `backward` alone: in memory they are (slots, N, D), whatever their shape says.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    scan = prepare(*tensors, dt_softplus, reverse, chunk=chunk, span=span)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final, saved = launch_forward(scan, save_states=save_states, out=y)
    return y, final.mT, saved.view(saved.shape[0], *A.shape[-2:])


def launch_forward(scan: Scan, *, save_states: bool, out: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the forward into `out`; return the final states and those of the chunks.

    Args:
        scan: The call.
        save_states: Keep the states before every chunk.
        out: Written, (B, L, D); in two dimensions (K, B, L, D), one result per direction.
        added: (B, L, D) float32, joins C.h + D * x ahead of the gate.
    """
    final = scan.buffer(scan.rows)
    saved = scan.buffer(scan.total_slots if save_states else 0)
    entering = None
    with _on_device(scan.x):
        if scan.span:
            entering = scan.buffer(scan.units * scan.pieces)
            _launch_local(scan, scan.x, scan.B, entering, scan.initial, final, adjoint=False)
        tensors = {"x": scan.x, "B": scan.B, "C": scan.C, "D": scan.D, "initial": scan.initial, "added": added}
        tensors |= {"y": out, "saved": saved if save_states else None, "entering": entering, "final": final}

        def constants() -> dict[str, object]:
            weights = scan.strides("B", scan.B) | scan.strides("C", scan.C)
            return scan.constants() | scan.sizes() | weights | {"x_b": scan.x.stride(0), "x_t": scan.x.stride(1)}

        programs = scan.units * scan.groups * scan.blocks
        launch(forward_kernel, programs, scan.key, tensors | scan.tensors(), constants)
    return final, saved


def _launch_local(
    scan: Scan,
    values: Tensor,
    weights: Tensor,
    ends: Tensor,
    initial: Tensor | None,
    final: Tensor,
    *,
    adjoint: bool,
) -> None:
    """Fill `ends` with the state that enters every piece (the adjoint that does so from behind), `final` with the last.

    Args:
        scan: The call.
        values: x, or the gradient of y.
        weights: B, or C.
        ends: Written, (units * pieces, N, D).
        initial: State that enters a row, (rows, N, D), zero if None.
        final: Written: the state that leaves it.
        adjoint: Walk from the last step to the first.
    """
    totals = torch.empty_like(ends)
    tensors = {"x": values, "W": weights, "ends": ends, "totals": totals} | scan.tensors(gated=adjoint)

    def constants() -> dict[str, object]:
        own = {"x_b": values.stride(0), "x_t": values.stride(1), "ADJOINT": adjoint}
        own["STEPS"] = min(LOCAL_STEPS, scan.chunk)
        return scan.constants(gated=adjoint) | scan.strides("W", weights) | own

    key = (scan.key, values.stride(), adjoint)
    launch(local_kernel, scan.units * scan.pieces * scan.groups * scan.blocks, key, tensors, constants)
    size = final[0].numel()
    tensors = {"ends": ends, "totals": totals, "initial": initial, "final": final, "span_base": scan.span_base}
    sizes = {"spans": scan.spans * scan.pieces, "size": size, "ADJOINT": adjoint}
    sizes |= {"BLOCK": FLAT_BLOCK, "AHEAD": AHEAD, **FUSION}
    launch(carry_kernel, scan.rows * cdiv(size, FLAT_BLOCK), key, tensors, lambda: sizes)


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
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the nine floating arguments in their order, empty tensors for those that are None."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = prepare(*inputs, cu_seqlens, dt_softplus, reverse, chunk=chunk, span=span, backward=True)
    if chunk_states.shape[0] == 0:  # the forward was told that nobody would ask
        chunk_states = launch_forward(scan, save_states=True, out=torch.empty_like(scan.x))[1]
    grad_z = x.new_empty(0) if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    grads = launch_backward(scan, chunk_states, grad_y, grad_final, grad_z=grad_z)
    return like(grads, inputs)


def like(grads: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Give every gradient the shape and dtype of its argument; an empty tensor where there is no argument."""
    x = inputs[0]
    assert x is not None
    return tuple(
        x.new_empty(0) if grad is None or given is None else grad.reshape(given.shape).to(given.dtype).contiguous()
        for grad, given in zip(grads, inputs, strict=True)
    )


def launch_backward(
    scan: Scan,
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    grad_z: Tensor,
    added: Tensor | None = None,
    adds: bool = True,
) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of the arguments.

    Args:
        scan: The call.
        chunk_states: What the forward saved, (slots, N, D).
        grad_y: Gradient of y, (B, L, D).
        grad_final: Gradient of the final states, (rows, D, N).
        grad_z: Written, the gradient of z.
        added: (B, L, D), joins the gradient of z.
        adds: Whether it does: no other kernel is compiled for a call that leaves it alone.
    """
    x, (batch, length, channels), state = scan.x, scan.x.shape, scan.A.shape[1]
    grad_y = unit_stride(grad_y)
    grad_final = None if grad_final is None else transposed(grad_final)
    grad_initial, resident = scan.buffer(scan.rows), state <= RESIDENT_STATES
    started = scan.span > 0 or grad_final is not None  # otherwise every adjoint begins as zero
    adjoints = scan.buffer(scan.units * scan.pieces) if started or not resident else None
    if scan.span and adjoints is not None:  # ahead of all other buffers: what it needs besides is free again
        with _on_device(x):
            _launch_local(scan, grad_y, scan.C, adjoints, grad_final, grad_initial, adjoint=True)
    elif grad_final is not None and adjoints is not None:
        adjoints.copy_(grad_final)
    elif adjoints is not None:
        adjoints.zero_()
    # the gradients of A (N rows), D and dt_bias (a row each), to be added over the parts
    parts = x.new_empty(scan.total_slots if scan.precise else scan.units, state + 2, channels, dtype=torch.float32)
    shape = (scan.blocks, batch, length, scan.groups * scan.directions, state, 2)
    part_BC = x.new_empty(shape, dtype=partial_dtype(scan.weight_dtype))
    if scan.precise and scan.cu_seqlens is not None:  # there may be fewer chunks than there could be
        parts.zero_()
    kinds = (scan.directions, *x.shape)
    grad_x = x.new_empty(kinds, dtype=x.dtype if scan.codes is None else partial_dtype(x.dtype))
    grad_dt = torch.empty(scan.dt.shape, dtype=scan.dt.dtype, device=x.device)
    steps = min(BACKWARD_STEPS, scan.chunk)
    items = scan.units * scan.groups * scan.blocks
    scratch_each = scan.chunk // steps * state * LANES
    programs = min(items, SCRATCH_BYTES // (4 * scratch_each))
    scratch = x.new_empty(programs, scratch_each, dtype=torch.float32)
    with _on_device(x):
        tensors = {"x": x, "B": scan.B, "C": scan.C, "D": scan.D, "grad_y": grad_y, "saved": chunk_states}
        tensors |= {"adjoints": adjoints, "scratch": scratch, "added": added, "grad_initial": grad_initial}
        tensors |= {"grad_x": grad_x, "grad_dt": grad_dt, "grad_z": grad_z}
        tensors |= {"parts": parts, "part_BC": part_BC, "adds": int(adds)} | scan.tensors()

        def constants() -> dict[str, object]:
            own = {"x_b": x.stride(0), "x_t": x.stride(1), "grad_b": grad_y.stride(0), "grad_t": grad_y.stride(1)}
            own |= {"STEPS": steps, "RESIDENT": resident}
            own |= {} if BACKWARD_REGISTERS is None else {"maxnreg": BACKWARD_REGISTERS}
            own |= {"BLOCK_K": min(scan.block[0], BACKWARD_STATES)}
            weights = scan.strides("B", scan.B) | scan.strides("C", scan.C)
            made = scan.constants() | scan.sizes() | weights | own
            made["reverse"] = int(made.pop("REVERSE"))  # one kernel for both: it is the one that takes long to compile
            return made

        for first in range(0, items, programs):
            some = min(programs, items - first)
            launch(backward_kernel, some, (scan.key, grad_y.stride()), tensors | {"first_program": first}, constants)
        grad_A, grad_D, grad_bias = _sum_parts(scan, parts)
        grad_B, grad_C = (torch.empty(shape[1:-1], dtype=scan.weight_dtype, device=x.device) for _ in range(2))
        tensors = {"parts": part_BC, "first": grad_B, "second": grad_C}
        tensors |= {"count": scan.blocks, "size": grad_B.numel()}
        sizes = {"BLOCK": PAIRS_BLOCK, "AHEAD": AHEAD, **FUSION}
        launch(sum_pairs_kernel, cdiv(grad_B.numel(), PAIRS_BLOCK), None, tensors, lambda: sizes)
    summed = add_parts(grad_x, x)
    return summed, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial.mT


def _sum_parts(scan: Scan, parts: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Add the partial gradients of A, D and dt_bias; each has its own number of rows, often the same."""
    kinds = {scan.A.shape[0], scan.directions} | ({scan.D.shape[0]} if scan.D is not None else set())
    sums = {kind: _sum_units(scan, parts, kind) for kind in sorted(kinds)}
    state = scan.A.shape[1]
    grad_D = None if scan.D is None else sums[scan.D.shape[0]][:, state]
    grad_bias = None if scan.dt_bias is None else sums[scan.directions][:, state + 1]
    return sums[scan.A.shape[0]][:, :state].mT, grad_D, grad_bias


def _sum_units(scan: Scan, parts: Tensor, kinds: int) -> Tensor:
    """Add partial sums (units or chunks, ...) that share a parameter; `kinds` is how many parameters there are."""
    if kinds == 1:
        return parts.sum(0, keepdim=True)
    if scan.cu_seqlens is None:
        return parts.view(scan.rows // kinds, kinds, -1, *parts.shape[1:]).sum((0, 2))
    base = scan.slot_base if scan.precise else scan.span_base
    if base is None:
        return parts
    out = parts.new_empty(scan.rows, *parts.shape[1:])
    size = out[0].numel()
    tensors = {"parts": parts, "out": out, "base": base, "size": size}
    launch(sum_kernel, scan.rows * cdiv(size, FLAT_BLOCK), None, tensors, lambda: {"BLOCK": FLAT_BLOCK, **FUSION})
    return out


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
