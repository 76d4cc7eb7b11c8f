"""Operator contract of sliding-window attention: schemas, what runs, shapes and dtypes of the results."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..eager import implements
from .torch_impl import sliding_window_attention_backward_torch, sliding_window_attention_torch

LARGEST_HEAD = 128  # numbers of a head that a program of the Triton kernels can hold

_INPUTS = "Tensor q, Tensor k, Tensor v"
_SETTINGS = "int window, bool band, str impl"
# lse is for the backward alone: (B, heads, 1 or 2 for float32, H * W) from the kernels, empty from PyTorch
torch.library.define("ssm_kernels::sliding_window_attention", f"({_INPUTS}, {_SETTINGS}) -> (Tensor out, Tensor lse)")
torch.library.define(
    "ssm_kernels::sliding_window_attention_backward",
    f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, {_SETTINGS}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
)
sliding_window_attention_op = torch.ops.ssm_kernels.sliding_window_attention.default
sliding_window_attention_backward_op = torch.ops.ssm_kernels.sliding_window_attention_backward.default


def _on_triton(impl: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Leave float64, which any argument asks for, and the largest heads to PyTorch."""
    return use_triton(impl, q) and torch.float64 not in (k.dtype, v.dtype) and q.shape[4] <= LARGEST_HEAD


@implements("ssm_kernels::sliding_window_attention")
def _forward(q: Tensor, k: Tensor, v: Tensor, window: int, band: bool, impl: str) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        if _on_triton(impl, q, k, v):
            from . import kernels  # on the first launch, not on import

            return kernels.sliding_window_attention_triton(q, k, v, window, band)
        return sliding_window_attention_torch(q, k, v, window, band), q.new_empty(0, dtype=torch.float32)


@torch.library.register_fake("ssm_kernels::sliding_window_attention")
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, window: int, band: bool, impl: str) -> tuple[Tensor, Tensor]:
    numbers = 1 if q.dtype == k.dtype == v.dtype != torch.float32 else 2
    shape = (q.shape[0], q.shape[3], numbers, q.shape[1] * q.shape[2]) if _on_triton(impl, q, k, v) else (0,)
    return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)


@implements("ssm_kernels::sliding_window_attention_backward")
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, band: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        if _on_triton(impl, q, k, v):
            from . import kernels

            return kernels.sliding_window_attention_backward_triton(grad, q, k, v, out, lse, window, band)
        return sliding_window_attention_backward_torch(grad, q, k, v, window, band)


@torch.library.register_fake("ssm_kernels::sliding_window_attention_backward")
def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, band: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
