"""Operator contract of window attention: schemas, what runs, shapes and dtypes of the results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..eager import implements
from .torch_impl import window_attention_backward_torch, window_attention_torch

LARGEST_HEAD = 128  # numbers of a head that a program of the Triton kernels can hold

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? bias_table"
_SETTINGS = "int window, int key_window, int shift, float scale, str impl"
# lse is for the backward alone: (windows, heads, 1 or 2 for float32, window^2) from the kernels, empty from PyTorch
torch.library.define("ssm_kernels::window_attention", f"({_INPUTS}, {_SETTINGS}) -> (Tensor out, Tensor lse)")
torch.library.define(
    "ssm_kernels::window_attention_backward",
    f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, {_SETTINGS})"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_table)",
)
window_attention_op = torch.ops.ssm_kernels.window_attention.default
window_attention_backward_op = torch.ops.ssm_kernels.window_attention_backward.default


def _on_triton(impl: str, q: Tensor, *others: Tensor | None) -> bool:
    """Leave float64, which any argument asks for, and the largest heads to PyTorch."""
    wide = any(x is not None and x.dtype == torch.float64 for x in others)
    return use_triton(impl, q) and not wide and q.shape[4] <= LARGEST_HEAD


@implements("ssm_kernels::window_attention")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    args = (q, k, v, bias_table, window, key_window, shift, scale)
    with torch.autocast(q.device.type, enabled=False):
        if _on_triton(impl, q, k, v, bias_table):
            from . import kernels  # on the first launch, not on import

            return kernels.window_attention_triton(*args)
        return window_attention_torch(*args), q.new_empty(0, dtype=torch.float32)


@torch.library.register_fake("ssm_kernels::window_attention")
def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    windows = q.shape[0] * (q.shape[1] // window) * (q.shape[2] // window)
    numbers = 1 if q.dtype == k.dtype == v.dtype != torch.float32 else 2
    shape = (windows, q.shape[3], numbers, window**2) if _on_triton(impl, q, k, v, bias_table) else (0,)
    return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)


@implements("ssm_kernels::window_attention_backward")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        if _on_triton(impl, q, k, v, bias_table):
            from . import kernels

            args = (grad, q, k, v, bias_table, out, lse, window, key_window, shift, scale)
            return kernels.window_attention_backward_triton(*args)
        return window_attention_backward_torch(grad, q, k, v, bias_table, window, key_window, shift, scale)


@torch.library.register_fake("ssm_kernels::window_attention_backward")
def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = q.new_empty(0) if bias_table is None else bias_table.new_empty(bias_table.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), table
