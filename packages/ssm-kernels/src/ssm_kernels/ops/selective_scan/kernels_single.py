"""Launchers of the scans with one state per channel (N = 1), in one and two dimensions.

The general kernels spend a program's time waiting where there is but one state: a step is a handful of instructions.
Here a thread holds all of a tile's steps, so that their loads, exponentials and products overlap. Many rows run one
program per row and block of channels; few long rows are cut into spans, after a pass that finds what every span adds
to a zero state, and every span carries what the spans before it left. See docs/selective_scan.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .kernels_device_single import forward_kernel, local_kernel
from .kernels_device_single_sums import sum_kernel
from .kernels_plan import cdiv
from .kernels_single_plan import Single, prepare, suits

SUM_BLOCK = 2048  # numbers per program where partial results are added


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
    with on_device(scan.x):
        ends, totals = launch_local(scan, scan.x, scan.B, adjoint=False)
        forward_kernel[scan.programs(scan.spans)](
            x=scan.x,
            x_b=scan.x.stride(0),
            X_T=scan.x.stride(1),
            D=scan.D,
            D_rows=1 if scan.D is None else scan.D.shape[0],
            initial=scan.initial,
            added=added,
            y=out,
            saved=saved if save_states else None,
            ends=ends,
            totals=totals,
            final=final,
            batches=scan.x.shape[0],
            CHUNK=scan.chunk,
            **scan.common(scan.z),
            **scan.weights("B", scan.B),
            **scan.weights("C", scan.C),
        )
    return final, saved


def launch_local(
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
    local_kernel[scan.programs(scan.spans - 1)](
        x=values,
        x_b=values.stride(0),
        X_T=values.stride(1),
        ends=ends,
        totals=totals,
        ADJOINT=adjoint,
        **scan.common(scan.z if adjoint else None),
        **scan.weights("W", weights),
    )
    return ends, totals


def add_parts(parts: Tensor, out: Tensor) -> Tensor:
    """Add the partial results of K directions, (K, ...), in their order, into `out`; return it."""
    if parts.shape[0] == 1 and parts.dtype == out.dtype:
        return parts[0]
    size = out.numel()
    with on_device(out):
        sum_kernel[(cdiv(size, SUM_BLOCK),)](
            parts, out, size, KINDS=parts.shape[0], BLOCK=SUM_BLOCK, num_warps=8, enable_fp_fusion=True
        )
    return out


def on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
