"""The operator's contract: schemas, fake kernels, and which implementation runs. Imports torch only.

Both operators return plain tensors: what a caller did not pass comes back as an empty tensor in its place.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..ahead import as_meta, compile_ahead, first_call, wait_for_compilation
from ..checks import refuse
from ..dispatch import use_triton
from ..eager import implements
from . import torch_impl

CHUNK = 64  # steps between the states that the forward saves for the backward

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? initial_state, Tensor? cu_seqlens"
)
torch.library.define(
    "ssm_kernels::selective_scan",
    f"({_INPUTS}, bool dt_softplus, bool reverse, bool save_states, str impl) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "ssm_kernels::selective_scan_backward",
    f"({_INPUTS}, Tensor chunk_states, Tensor? grad_y, Tensor? grad_final, bool dt_softplus, bool reverse, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
selective_scan_op = torch.ops.ssm_kernels.selective_scan.default
selective_scan_backward_op = torch.ops.ssm_kernels.selective_scan_backward.default


def check_bounds(cu_seqlens: Tensor, length: int) -> None:
    """Refuse sequence bounds that do not cut [0, length] in order. Reads the values, so it never runs while tracing."""
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a read would end the capture; the run before it has read them
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds):
        shown = f"[{', '.join(map(str, bounds[:8]))}{', ...' if len(bounds) > 8 else ''}]"
        remedy = "entry s is where sequence s begins in x"
        refuse("selective_scan", "cu_seqlens", f"non-decreasing from 0 to L={length}", shown, remedy)


@implements("ssm_kernels::selective_scan")
def _forward(
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
    save_states: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if cu_seqlens is not None:
        check_bounds(cu_seqlens, x.shape[1])
    args = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_softplus, reverse)
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels, kernels_single  # on the first launch, not on import

            chosen = kernels_single if kernels_single.suits(A, cu_seqlens) else kernels
            given = tuple([t is None for t in args[:10]])
            kind = ("selective_scan", x.dtype, B.dtype, A.shape, B.dim(), given, dt_softplus, reverse, save_states)
            if first_call(kind, x):
                meta = as_meta(args)
                y, _, states = _forward_fake(*meta, save_states=save_states, impl=impl)
                backward = partial(chosen.backward, *meta, states, y, None, chunk=CHUNK) if save_states else None
                forward = partial(chosen.forward, *meta, save_states=save_states, chunk=CHUNK)
                compile_ahead(x.device, forward, backward)
            return chosen.forward(*args, save_states=save_states, chunk=CHUNK)
        y, final, states = torch_impl.forward(*args, save_states=save_states, chunk=CHUNK)
        return y, final.mT.contiguous().mT, states  # channels next to one another, as the kernels leave it


@implements("ssm_kernels::selective_scan_backward")
def _backward(
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
    chunk_states: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    args = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_softplus, reverse)
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels, kernels_single

            wait_for_compilation()
            chosen = kernels_single if kernels_single.suits(A, cu_seqlens) else kernels
            return chosen.backward(*args, chunk_states, grad_y, grad_final, chunk=CHUNK)
        return torch_impl.backward(*args, chunk_states, grad_y, grad_final, chunk=CHUNK)


@torch.library.register_fake("ssm_kernels::selective_scan")
def _forward_fake(
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
    save_states: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    slots = batch * ((length + CHUNK - 1) // CHUNK) if cu_seqlens is None else length // CHUNK + rows
    saved = slots if save_states else 0
    state = A.shape[-1]
    return (
        x.new_empty(x.shape),
        x.new_empty((rows, state, channels), dtype=kind).mT,
        x.new_empty((saved, channels, state), dtype=kind),
    )


@torch.library.register_fake("ssm_kernels::selective_scan_backward")
def _backward_fake(
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
    chunk_states: Tensor,
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
