"""The operator's contract: schemas, fake kernels, and which implementation runs. Imports torch only.

A direction is (x, dt, A, B, C, D, dt_bias); the backward returns the gradients of both and of z, with an empty tensor
where an argument was None.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..ahead import as_meta, compile_ahead, first_call, wait_for_compilation
from ..dispatch import use_triton
from ..eager import implements
from . import torch_impl

CHUNK = 64  # steps between the states that the forward saves for the backward

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "Tensor x_b, Tensor dt_b, Tensor A_b, Tensor B_b, Tensor C_b, Tensor? D_b, Tensor? dt_bias_b, Tensor? z"
)
torch.library.define(
    "ssm_kernels::selective_scan_bidirectional",
    f"({_INPUTS}, bool dt_softplus, bool average, bool save_states, str impl) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "ssm_kernels::selective_scan_bidirectional_backward",
    f"({_INPUTS}, Tensor states, Tensor states_b, Tensor grad_y, bool dt_softplus, bool average, str impl) -> "
    f"({', '.join(['Tensor'] * 15)})",
    tags=(torch.Tag.pt2_compliant_tag,),
)
selective_scan_bidirectional_op = torch.ops.ssm_kernels.selective_scan_bidirectional.default
selective_scan_bidirectional_backward_op = torch.ops.ssm_kernels.selective_scan_bidirectional_backward.default


@implements("ssm_kernels::selective_scan_bidirectional")
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    x_b: Tensor,
    dt_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    dt_bias_b: Tensor | None,
    z: Tensor | None,
    dt_softplus: bool,
    average: bool,
    save_states: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    ahead, behind = (x, dt, A, B, C, D, dt_bias), (x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b)
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels  # on the first launch, not on import

            args = (ahead, behind, z)
            given = tuple([t is None for t in (*ahead, *behind, z)])
            kind = ("selective_scan_bidirectional", x.dtype, B.dtype, A.shape, B.dim(), given, dt_softplus, save_states)
            if first_call(kind, x):
                meta = as_meta(args)
                options = {"dt_softplus": dt_softplus, "average": average}
                fake = {**options, "save_states": save_states, "impl": impl}
                y, states, states_b = _forward_fake(*meta[0], *meta[1], z=meta[2], **fake)
                later = partial(kernels.backward, *meta, states, states_b, y, **options, chunk=CHUNK)
                now = partial(kernels.forward, *meta, **options, save_states=save_states, chunk=CHUNK)
                compile_ahead(x.device, now, later if save_states else None)
            return kernels.forward(*args, dt_softplus, average, save_states=save_states, chunk=CHUNK)
        return torch_impl.forward(ahead, behind, z, dt_softplus, average, save_states=save_states, chunk=CHUNK)


@implements("ssm_kernels::selective_scan_bidirectional_backward")
def _backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    x_b: Tensor,
    dt_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    dt_bias_b: Tensor | None,
    z: Tensor | None,
    states: Tensor,
    states_b: Tensor,
    grad_y: Tensor,
    dt_softplus: bool,
    average: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    ahead, behind = (x, dt, A, B, C, D, dt_bias), (x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b)
    args = (ahead, behind, z, states, states_b, grad_y, dt_softplus, average)
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels

            wait_for_compilation()
            return kernels.backward(*args, chunk=CHUNK)
        return torch_impl.backward(*args, chunk=CHUNK)


@torch.library.register_fake("ssm_kernels::selective_scan_bidirectional")
def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    x_b: Tensor,
    dt_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    dt_bias_b: Tensor | None,
    z: Tensor | None,
    dt_softplus: bool,
    average: bool,
    save_states: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    saved = batch * ((length + CHUNK - 1) // CHUNK) if save_states else 0
    states = [x.new_empty((saved, channels, rates.shape[-1]), dtype=kind) for rates in (A, A_b)]
    return x.new_empty(x.shape), states[0], states[1]


@torch.library.register_fake("ssm_kernels::selective_scan_bidirectional_backward")
def _backward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    x_b: Tensor,
    dt_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    dt_bias_b: Tensor | None,
    z: Tensor | None,
    states: Tensor,
    states_b: Tensor,
    grad_y: Tensor,
    dt_softplus: bool,
    average: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    inputs = (x, dt, A, B, C, D, dt_bias, x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b, z)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
