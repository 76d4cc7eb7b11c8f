"""The operator's contract: schemas, fake kernels, and which implementation runs. Imports torch only.

The backward returns plain tensors: what a caller did not pass comes back as an empty tensor in its place. It keeps
nothing but the inputs and makes the states before every chunk again.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import torch
from torch import Tensor

from ..ahead import as_meta, compile_ahead, first_call
from ..checks import refuse
from ..dispatch import use_triton
from ..eager import implements
from . import torch_impl

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? initial_state, Tensor? cu_seqlens"
)
torch.library.define(
    "ssm_kernels::ssd",
    f"({_INPUTS}, bool dt_softplus, bool reverse, int chunk, str impl) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "ssm_kernels::ssd_backward",
    f"({_INPUTS}, Tensor? grad_y, Tensor? grad_final, bool dt_softplus, bool reverse, int chunk, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
ssd_op = torch.ops.ssm_kernels.ssd.default
ssd_backward_op = torch.ops.ssm_kernels.ssd_backward.default


def check_bounds(cu_seqlens: Tensor, length: int) -> None:
    """Refuse sequence bounds that do not cut [0, length] in order. Reads the values, so it never runs while tracing."""
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a read would end the capture; the run before it has read them
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds):
        shown = f"[{', '.join(map(str, bounds[:8]))}{', ...' if len(bounds) > 8 else ''}]"
        remedy = "entry s is where sequence s begins in x"
        refuse("ssd", "cu_seqlens", f"non-decreasing from 0 to L={length}", shown, remedy)


def _kind(name: str, args: tuple[Tensor | bool | None, ...], chunk: int) -> Hashable:
    """Return what decides about compilation: dtypes, widths, what is given, and options."""
    return (name, *[(t.dtype, t.shape[2:]) if isinstance(t, Tensor) else t for t in args], chunk)


@implements("ssm_kernels::ssd")
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
    chunk: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is not None:
        check_bounds(cu_seqlens, x.shape[1])
    args = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_softplus, reverse)
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels  # on the first launch, not on import

            if first_call(_kind("ssd", args, chunk), x):
                compile_ahead(x.device, partial(kernels.forward, *as_meta(args), chunk=chunk), None)
            return kernels.forward(*args, chunk=chunk)
        return torch_impl.forward(*args, chunk=chunk)


@implements("ssm_kernels::ssd_backward")
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
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    impl: str,
) -> tuple[Tensor, ...]:
    args = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_softplus, reverse)
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels

            args = (*args, grad_y, grad_final)
            if first_call(_kind("ssd_backward", args, chunk), x):
                compile_ahead(x.device, partial(kernels.backward, *as_meta(args), chunk=chunk), None)
            return kernels.backward(*args, chunk=chunk)
        return torch_impl.backward(*args, grad_y, grad_final, chunk=chunk)


@torch.library.register_fake("ssm_kernels::ssd")
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
    chunk: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, _, heads, width = x.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty((rows, heads, width, B.shape[-1]), dtype=kind)


@torch.library.register_fake("ssm_kernels::ssd_backward")
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
    grad_y: Tensor | None,
    grad_final: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    impl: str,
) -> tuple[Tensor, ...]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
