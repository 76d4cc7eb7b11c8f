"""What PyTorch knows of the operator: schema, fake kernel, and which implementation runs. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..ahead import as_meta, compile_ahead, first_call, wait_for_compilation
from ..dispatch import use_triton
from ..eager import implements
from .torch_impl import selective_scan_2d_torch, selective_scan_2d_torch_backward

CHUNK = 64  # steps between the states that the forward saves for the backward
_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "bool dt_softplus, int[] directions, str impl"
)
Gradients = tuple[Tensor, ...]  # of x, dt, A, B, C, D, dt_bias

torch.library.define("ssm_kernels::selective_scan_2d", f"({_INPUTS}, bool save_states) -> (Tensor, Tensor)")
torch.library.define(
    "ssm_kernels::selective_scan_2d_backward",
    f"(Tensor grad_y, Tensor chunk_states, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
selective_scan_2d_op = torch.ops.ssm_kernels.selective_scan_2d.default
selective_scan_2d_backward_op = torch.ops.ssm_kernels.selective_scan_2d_backward.default


@implements("ssm_kernels::selective_scan_2d")
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(device_type=x.device.type, enabled=False):  # a custom operator does not leave it by itself
        if use_triton(impl, x):
            from . import kernels  # on first launch, not on import

            args = (x, dt, A, B, C, D, dt_bias, dt_softplus, tuple(directions))
            kind = ("selective_scan_2d", x.dtype, B.dtype, A.shape, D is None, dt_bias is None, *args[7:], save_states)
            if first_call(kind, x):
                meta = as_meta(args)
                y, states = _forward_fake(*meta, impl=impl, save_states=save_states)
                now = partial(kernels.forward, *meta, save_states=save_states, chunk=CHUNK)
                later = partial(kernels.backward, *meta, states, y, chunk=CHUNK)
                compile_ahead(x.device, now, later if save_states else None)
            return kernels.forward(*args, save_states=save_states, chunk=CHUNK)
        y = selective_scan_2d_torch(x, dt, A, B, C, D, dt_bias, dt_softplus, directions)
        return y, x.new_empty((0, *A.shape[1:]), dtype=torch.float32)


@implements("ssm_kernels::selective_scan_2d_backward")
def _backward(
    grad_y: Tensor,
    chunk_states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
) -> Gradients:
    with torch.autocast(device_type=x.device.type, enabled=False):
        if use_triton(impl, x):
            from . import kernels

            wait_for_compilation()
            tensors = (x, dt, A, B, C, D, dt_bias)
            return kernels.backward(*tensors, dt_softplus, directions, chunk_states, grad_y, chunk=CHUNK)
        return selective_scan_2d_torch_backward(grad_y, x, dt, A, B, C, D, dt_bias, dt_softplus, directions)


@torch.library.register_fake("ssm_kernels::selective_scan_2d")
def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = x.shape
    slots = batch * len(directions) * ((height * width + CHUNK - 1) // CHUNK) if save_states else 0
    if not use_triton(impl, x):
        slots = 0  # the PyTorch form finds them anew
    return x.new_empty(x.shape), x.new_empty((slots, *A.shape[1:]), dtype=torch.float32)


@torch.library.register_fake("ssm_kernels::selective_scan_2d_backward")
def _backward_fake(
    grad_y: Tensor,
    chunk_states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
) -> Gradients:
    inputs = (x, dt, A, B, C, D, dt_bias)
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)
