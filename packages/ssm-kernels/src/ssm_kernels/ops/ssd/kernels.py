"""Launchers of the Mamba-2 scan's Triton kernels. Imported on the first launch only.

Two ways through a row, chosen by size: many rows and heads run one program each, which walks the row chunk by chunk
with its state in registers, one launch in all; few long rows are cut into spans of chunks that run side by side, after
a pass that finds what every span adds to a zero state and a pass that carries the states from span to span. The
backward does the same from the other end. Programs write partial sums of the gradients that they share, which are added
in a fixed order, so that results repeat exactly. See docs/ssd.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..selective_scan.kernels_plan import cdiv, partial_dtype
from .kernels_device import carry_kernel, forward_kernel, local_kernel
from .kernels_device_backward import backward_kernel, sum_kernel
from .kernels_plan import FUSION, Scan, in_rows, prepare

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
    save_states: bool,
    kept: torch.dtype,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and the states before every chunk; no chunks unless `save_states`.

    The states of chunks are for `backward` alone: in memory they are (slots, H, N, P), whatever their shape says.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    scan = prepare(*tensors, dt_softplus, reverse, kept=kept, chunk=chunk, span=span)
    with _on_device(x):
        return launch_forward(scan, save_states=save_states, kept=kept)


def launch_forward(scan: Scan, *, save_states: bool, kept: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward; return y, the final states and those of the chunks."""
    x, z = scan.x, scan.z
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = scan.buffer(scan.rows)
    saved = torch.empty((scan.total_slots if save_states else 0, *scan.tail), dtype=kept, device=x.device)
    entering = None
    if scan.span:
        entering = scan.buffer(scan.units)
        _launch_local(scan, x, scan.B, entering, scan.initial, final, adjoint=False)
    forward_kernel[(scan.programs,)](
        x,
        scan.dt,
        scan.A,
        scan.B,
        scan.C,
        scan.D,
        z,
        scan.dt_bias,
        scan.initial,
        y,
        saved if save_states else None,
        entering,
        final,
        *scan.rows_at(),
        x.stride(1),
        scan.dt.stride(1),
        scan.B.stride(1),
        scan.C.stride(1),
        0 if z is None else z.stride(1),
        D_STEP=scan.skip_step,
        **scan.flags(),
        **scan.layout.forward,
    )
    return y, final, saved


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
    """Fill `ends` with the state that enters every unit (the adjoint that does so from behind), `final` with the last.

    Args:
        scan: The call.
        values: x, or the gradient of y.
        weights: B, or C.
        ends: Written, (units, H, P, N).
        initial: State that enters a row, (rows, H, P, N), zero if None.
        final: Written: the state that leaves it.
        adjoint: Walk from the last step to the first.
    """
    z = scan.z if adjoint else None
    totals = torch.empty((scan.units, scan.heads), dtype=torch.float32, device=ends.device)
    local_kernel[(scan.programs,)](
        values,
        scan.dt,
        scan.A,
        weights,
        z,
        scan.dt_bias,
        ends,
        totals,
        *scan.rows_at(),
        values.stride(1),
        scan.dt.stride(1),
        weights.stride(1),
        0 if z is None else z.stride(1),
        ADJOINT=adjoint,
        **scan.flags(),
        **scan.layout.forward,
    )
    size = scan.tail[1] * scan.tail[2]
    carry_kernel[(scan.rows * scan.heads * cdiv(size, FLAT_BLOCK),)](
        ends, totals, initial, final, scan.span_base, scan.spans, H=scan.heads, SIZE=size, ADJOINT=adjoint,
        PRECISE=scan.layout.forward["PRECISE"], BLOCK=FLAT_BLOCK, **FUSION,
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
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    kept: torch.dtype,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the nine floating arguments in their order, empty tensors for those that are None."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = prepare(*inputs, cu_seqlens, dt_softplus, reverse, kept=kept, chunk=chunk, span=span)
    with _on_device(x):
        if chunk_states.shape[0] == 0:  # the forward was told that nobody would ask
            chunk_states = launch_forward(scan, save_states=True, kept=kept)[2]
        grad_final = None if grad_final is None else grad_final.contiguous()
        grads = launch_backward(scan, chunk_states, in_rows(grad_y), grad_final)
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


def launch_backward(
    scan: Scan, chunk_states: Tensor, grad_y: Tensor, grad_final: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of the arguments.

    Args:
        scan: The call.
        chunk_states: What the forward saved.
        grad_y: Gradient of y, (B, L, H, P).
        grad_final: Gradient of the final states, (rows, H, P, N).
    """
    x, z, groups = scan.x, scan.z, scan.B.shape[2]
    batch, length = x.shape[:2]
    heads, _, state = scan.tail
    parts = heads * scan.layout.blocks
    grad_x, grad_z, grad_A, grad_B, grad_C, grad_D, grad_bias = (
        None if t is None else torch.empty(t.shape, dtype=t.dtype, device=x.device)
        for t in (x, z, scan.A, scan.B, scan.C, scan.D, scan.dt_bias)
    )
    assert grad_x is not None and grad_A is not None and grad_B is not None and grad_C is not None
    blocks = scan.layout.blocks
    part_dt = torch.empty(
        (batch, length, heads, blocks), dtype=scan.dt.dtype if blocks == 1 else torch.float32, device=x.device
    )
    part_B, part_C = grad_B, grad_C
    if parts > groups:
        kind = partial_dtype(torch.bfloat16 if scan.B.dtype == scan.C.dtype == torch.bfloat16 else torch.float32)
        part_B, part_C = torch.empty((2, batch, length, parts, state), dtype=kind, device=x.device)
    part_sums = torch.empty((scan.units, parts, scan.layout.block_p + 2), dtype=torch.float32, device=x.device)
    grad_initial = None
    if scan.initial is not None or scan.span:
        grad_initial = scan.buffer(scan.rows)
    adjoints = None
    if scan.span and grad_initial is not None:
        adjoints = scan.buffer(scan.units)
        _launch_local(scan, grad_y, scan.C, adjoints, grad_final, grad_initial, adjoint=True)
    backward_kernel[(scan.programs,)](
        x,
        scan.dt,
        scan.A,
        scan.B,
        scan.C,
        scan.D,
        z,
        scan.dt_bias,
        grad_y,
        grad_final,
        chunk_states,
        adjoints,
        grad_x,
        part_dt,
        grad_z,
        part_B,
        part_C,
        part_sums,
        grad_initial,
        *scan.rows_at(),
        x.stride(1),
        scan.dt.stride(1),
        scan.B.stride(1),
        scan.C.stride(1),
        0 if z is None else z.stride(1),
        grad_y.stride(1),
        D_STEP=scan.skip_step,
        **scan.flags(),
        **scan.layout.backward,
    )
    _launch_sums(scan, part_B, part_C, part_sums, (grad_A, grad_B, grad_C, grad_D, grad_bias))
    grad_dt = part_dt.view(scan.dt.shape) if blocks == 1 else part_dt.sum(-1).to(scan.dt.dtype)
    if scan.initial is None:
        grad_initial = None
    elif grad_initial is not None:
        grad_initial = grad_initial.to(scan.initial.dtype)
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial


def _launch_sums(
    scan: Scan, part_B: Tensor, part_C: Tensor, part_sums: Tensor, grads: tuple[Tensor | None, ...]
) -> None:
    """Add partial sums into the gradients of A, B, C, D and the bias."""
    grad_A, grad_B, grad_C, grad_D, grad_bias = grads
    batch, length = scan.x.shape[:2]
    heads, width, state = scan.tail
    groups = scan.B.shape[2]
    share = heads * scan.layout.blocks // groups
    rows = batch * length * groups
    block_rows = max(1, SUM_TILE // scan.layout.block_n)
    extra = 0 if part_B is grad_B else 2 * cdiv(rows, block_rows)
    sum_kernel[(heads + extra,)](
        part_B,
        part_C,
        grad_B,
        grad_C,
        part_sums,
        grad_A,
        grad_D,
        grad_bias,
        rows,
        scan.units,
        H=heads,
        P=width,
        N=state,
        SHARE=share,
        BLOCK_P=scan.layout.block_p,
        BLOCK_N=scan.layout.block_n,
        BLOCK_ROWS=block_rows,
        BLOCK_UNITS=max(1, SUM_TILE // scan.layout.block_p),
        D_STEP=scan.skip_step,
        **FUSION,
    )


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
