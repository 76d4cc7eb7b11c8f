"""Launchers of the scans with one state per channel (N = 1), in one and two dimensions.

The general kernels spend a program's time waiting where there is but one state: a step is a handful of instructions.
Here a thread holds all of a tile's steps, so that their loads, exponentials and products overlap. Many rows run one
program per row and block of channels; few long rows are cut into spans, after a pass that finds what every span adds
to a zero state, and every span carries what the spans before it left. See docs/selective_scan.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..launch import launch
from .kernels import like
from .kernels_device_single import forward_kernel, local_kernel
from .kernels_device_single_backward import backward_kernel
from .kernels_device_single_sums import finish_kernel
from .kernels_plan import cdiv, parameter, partial_dtype
from .kernels_single_plan import Single, along, prepare, suits
from .kernels_sums import SUM_BLOCK

SPLIT_BLOCK = 256  # numbers per program where the gradients of B and C are
UNITS, UNIT_WIDTH = 32, 32  # sums over time and channels that a program adds at a time


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
    """Return y, the final state and the states before every chunk, as kernels.forward; only what `suits`."""
    assert suits(A, cu_seqlens)
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = prepare(*inputs, dt_softplus, reverse, chunk=chunk, span=span)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final, saved = launch_forward(scan, save_states=save_states, out=y)
    return y, final[:, None].mT, saved[..., None]


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
    """Return the gradients of the nine floating arguments in their order, as kernels.backward; only what `suits`."""
    assert suits(A, cu_seqlens)
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = prepare(*inputs, dt_softplus, reverse, chunk=chunk, span=span)
    if chunk_states.shape[0] == 0:  # the forward was told that nobody would ask
        chunk_states = launch_forward(scan, save_states=True, out=torch.empty_like(scan.x))[1]
    grad_z = x.new_empty(0) if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    return like(launch_backward(scan, chunk_states, grad_y, grad_final, grad_z=grad_z), inputs)


def launch_forward(
    scan: Single, *, save_states: bool, out: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the forward into `out`; return the final states and those of the chunks, both (.., D).

    Args:
        scan: The call.
        save_states: Keep the states before every chunk.
        out: Written, (B, L, D); in two dimensions (K, B, L, D), one result per direction.
        added: (B, L, D) float32, joins C.h + D * x ahead of the gate.
    """
    final = scan.buffer(scan.rows)
    saved = scan.buffer(scan.slots if save_states else 0)
    ends, totals = _launch_local(scan, scan.x, scan.B, adjoint=False)
    arguments = {
        "x": scan.x,
        "x_b": scan.x.stride(0),
        "B": scan.B,
        "B_b": scan.B.stride(0),
        "B_g": scan.B.stride(2),
        "C": scan.C,
        "C_b": scan.C.stride(0),
        "C_g": scan.C.stride(2),
        "D": scan.D,
        "D_rows": 1 if scan.D is None else scan.D.shape[0],
        "initial": scan.initial,
        "added": added,
        "y": out,
        "saved": saved if save_states else None,
        "ends": ends,
        "totals": totals,
        "final": final,
        "batches": scan.x.shape[0],
    }
    constants = {
        "X_T": scan.x.stride(1),
        "B_T": scan.B.stride(1),
        "C_T": scan.C.stride(1),
        "CHUNK": scan.chunk,
    }
    _launch(
        forward_kernel,
        scan.programs(scan.spans),
        scan.arguments(scan.z) | arguments,
        scan.constants(scan.z) | constants,
    )
    return final, saved


def _launch_local(
    scan: Single, values: Tensor, weights: Tensor, *, adjoint: bool
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return what every span adds to a zero state (or to the adjoint behind it) and the product of its decays.

    Args:
        scan: The call.
        values: x, or the gradient of y.
        weights: B, or C.
        adjoint: Walk from the last step to the first.
    """
    if scan.spans == 1:
        return None, None
    ends, totals = scan.buffer(2 * scan.rows * scan.spans).unflatten(0, (2, -1)).unbind(0)
    z = scan.z if adjoint else None
    arguments = {
        "x": values,
        "x_b": values.stride(0),
        "W": weights,
        "W_b": weights.stride(0),
        "W_g": weights.stride(2),
        "ends": ends,
        "totals": totals,
    }
    constants = {"X_T": values.stride(1), "W_T": weights.stride(1), "ADJOINT": adjoint}
    _launch(local_kernel, scan.programs(scan.spans - 1), scan.arguments(z) | arguments, scan.constants(z) | constants)
    return ends, totals


def launch_backward(
    scan: Single,
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    grad_z: Tensor,
    added: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of the arguments, in any shape of as many numbers.

    Args:
        scan: The call.
        chunk_states: What the forward saved, (slots, D).
        grad_y: Gradient of y, (B, L, D).
        grad_final: Gradient of the final states, (rows, D, 1).
        grad_z: Written, the gradient of z.
        added: (B, L, D) float32, joins the gradient of z.
    """
    x, (batch, length) = scan.x, scan.x.shape[:2]
    grad_y = along(grad_y)
    if scan.plane and length * grad_y.stride(1) >= 1 << 31:
        grad_y = grad_y.contiguous()
    directions, shared = len(scan.codes), scan.B.shape[2]
    both_half = scan.B.dtype == scan.C.dtype == torch.bfloat16
    kind = torch.bfloat16 if both_half else torch.float32
    part_BC = torch.empty((scan.blocks, batch, length, shared, 2), dtype=kind, device=x.device)
    kind = x.dtype if directions == 1 else partial_dtype(x.dtype)
    grad_x = torch.empty((directions, *x.shape), dtype=kind, device=x.device)
    grad_dt = torch.empty(scan.dt.shape, dtype=scan.dt.dtype, device=x.device)
    sums, grad_initial = scan.buffer(3 * scan.rows * scan.spans), scan.buffer(scan.rows)
    ends, totals = _launch_local(scan, grad_y, scan.C, adjoint=True)
    arguments = {
        "x": x,
        "x_b": x.stride(0),
        "B": scan.B,
        "B_b": scan.B.stride(0),
        "B_g": scan.B.stride(2),
        "C": scan.C,
        "C_b": scan.C.stride(0),
        "C_g": scan.C.stride(2),
        "D": scan.D,
        "D_rows": 1 if scan.D is None else scan.D.shape[0],
        "grad_y": grad_y,
        "grad_b": grad_y.stride(0),
        "grad_final": None if grad_final is None else parameter(grad_final),
        "saved": chunk_states,
        "ends": ends,
        "totals": totals,
        "added": added,
        "grad_x": grad_x,
        "grad_dt": grad_dt,
        "grad_z": None if scan.z is None else grad_z,
        "part_BC": part_BC,
        "sums": sums,
        "grad_initial": grad_initial,
        "batches": batch,
    }
    constants = {
        "X_T": x.stride(1),
        "B_T": scan.B.stride(1),
        "C_T": scan.C.stride(1),
        "GRAD_T": grad_y.stride(1),
        "CHUNK": scan.chunk,
    }
    _launch(
        backward_kernel,
        scan.programs(scan.spans),
        scan.arguments(scan.z) | arguments,
        scan.constants(scan.z) | constants,
    )
    grad_B, grad_C = (torch.empty(t.shape, dtype=t.dtype, device=x.device) for t in (scan.B, scan.C))
    summed = grad_x[0] if directions == 1 else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sum_A, sum_D, sum_bias = _finish(scan, sums, part_BC, grad_B, grad_C, grad_x, summed)
    return summed, grad_dt, sum_A, grad_B, grad_C, sum_D, grad_z, sum_bias, grad_initial


def _finish(
    scan: Single, sums: Tensor, part_BC: Tensor, grad_B: Tensor, grad_C: Tensor, grad_x: Tensor, summed: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Add partial sums up in one launch, in a fixed order; return the gradients of A, D and the bias.

    Args:
        scan: The call.
        sums: Over time, of A, D and the bias, (3 * rows * spans, D).
        part_BC: Of the gradients of B and C, (blocks, B, L, groups or directions, 2).
        grad_B: Written.
        grad_C: Written.
        grad_x: One per direction.
        summed: Written, the sum of those; in one dimension it is `grad_x`, and left alone.
    """
    channels, several = scan.x.shape[2], len(scan.codes) > 1
    rows = [0 if t is None else t.shape[0] for t in (scan.A, scan.D)]
    rows.append(0 if scan.dt_bias is None else len(scan.codes))
    alike = len(set(rows) - {0}) == 1  # else parameters of the batch and of the layer: rare, and left to torch
    kinds = rows[0]
    found = scan.buffer(3 * kinds)
    units = 3 * kinds * cdiv(channels, UNIT_WIDTH) if alike else 0
    splits = cdiv(grad_B.numel(), SPLIT_BLOCK)
    arguments = {
        "sums": sums,
        "summed": found,
        "part_BC": part_BC,
        "grad_B": grad_B,
        "grad_C": grad_C,
        "parts": grad_x if several else None,
        "out": summed if several else None,
        "size": summed.numel(),
        "weights": grad_B.numel(),
        "unit_programs": units,
        "split_programs": splits,
        "channels": channels,
        "batches": scan.rows // kinds,
        "kinds": kinds,
        "spans": scan.spans,
    }
    constants = {
        "KINDS": len(scan.codes),
        "BLOCKS": scan.blocks,
        "BLOCK": SUM_BLOCK,
        "SPLIT": SPLIT_BLOCK,
        "UNITS": UNITS,
        "WIDTH": UNIT_WIDTH,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    _launch(finish_kernel, units + splits + (cdiv(summed.numel(), SUM_BLOCK) if several else 0), arguments, constants)
    if alike:
        sum_A, sum_D, sum_bias = found.view(3, kinds, channels).unbind(0)
    else:
        each = sums.view(3, scan.rows, scan.spans, channels)
        sum_A, sum_D, sum_bias = (
            part.view(-1, max(n, 1), *part.shape[1:]).sum((0, 2)) for n, part in zip(rows, each, strict=True)
        )
    return sum_A, sum_D if rows[1] else None, sum_bias if rows[2] else None


def _launch(
    kernel: object, programs: int, arguments: dict[str, Tensor | int | None], constants: dict[str, object]
) -> None:
    """Run a kernel on the device of its arguments; Triton itself launches on the current one."""
    x = next(value for value in arguments.values() if isinstance(value, Tensor))
    large = tuple([isinstance(value, int) and value >= 1 << 31 for value in arguments.values()])
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        launch(kernel, programs, (large, *constants.values()), arguments, lambda: constants)
