"""Operator contract of the norms on Triton: schemas, shapes and dtypes of the results.

Elsewhere the norms are PyTorch's own operators: see plain.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager import implements

_SETTINGS = "float eps, bool centered"
torch.library.define(
    "ssm_kernels::layer_norm",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, ScalarType dtype, "
    f"{_SETTINGS}) -> (Tensor y, Tensor total)",
)
torch.library.define(
    "ssm_kernels::layer_norm_backward",
    "(Tensor grad, Tensor? grad_total, Tensor total, Tensor? weight, Tensor? bias, "
    f"ScalarType x_dtype, ScalarType? residual_dtype, bool parameters, {_SETTINGS})"
    " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)",
)
layer_norm_op = torch.ops.ssm_kernels.layer_norm.default
layer_norm_backward_op = torch.ops.ssm_kernels.layer_norm_backward.default


@implements("ssm_kernels::layer_norm")
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    from . import kernels  # on the first launch, not on import

    return kernels.layer_norm_triton(x, weight, bias, residual, dtype, eps, centered)


@torch.library.register_fake("ssm_kernels::layer_norm")
def _forward_fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=dtype)
    if residual is None:
        return y, x.new_empty(0)
    return y, x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))


@implements("ssm_kernels::layer_norm_backward")
def _backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
    parameters: bool,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import kernels

    dtypes = x_dtype, residual_dtype
    return kernels.layer_norm_backward_triton(grad, grad_total, total, weight, bias, dtypes, parameters, eps, centered)


@torch.library.register_fake("ssm_kernels::layer_norm_backward")
def _backward_fake(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
    parameters: bool,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    other = total.new_empty(0) if residual_dtype is None else total.new_empty(total.shape, dtype=residual_dtype)
    sums = [total.new_empty(0) if x is None or not parameters else x.new_empty(x.shape) for x in (weight, bias)]
    return total.new_empty(total.shape, dtype=x_dtype), other, sums[0], sums[1]
