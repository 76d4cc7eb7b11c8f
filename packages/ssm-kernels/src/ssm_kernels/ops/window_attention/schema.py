"""Operator contract of window attention: schemas, what runs, shapes and dtypes of the results."""

from __future__ import annotations

import torch
from torch import Tensor

from .torch_impl import window_attention_backward_torch, window_attention_torch

_SETTINGS = "int window, int key_window, int shift, float scale, str impl"
torch.library.define(
    "ssm_kernels::window_attention", f"(Tensor q, Tensor k, Tensor v, Tensor? bias_table, {_SETTINGS}) -> Tensor"
)
torch.library.define(
    "ssm_kernels::window_attention_backward",
    f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? bias_table, {_SETTINGS})"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_table)",
)
window_attention_op = torch.ops.ssm_kernels.window_attention.default
window_attention_backward_op = torch.ops.ssm_kernels.window_attention_backward.default


@torch.library.impl("ssm_kernels::window_attention", "CompositeExplicitAutograd")
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
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        return window_attention_torch(q, k, v, bias_table, window, key_window, shift, scale)


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
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.impl("ssm_kernels::window_attention_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        return window_attention_backward_torch(grad, q, k, v, bias_table, window, key_window, shift, scale)


@torch.library.register_fake("ssm_kernels::window_attention_backward")
def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = q.new_empty(0) if bias_table is None else bias_table.new_empty(bias_table.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), table
