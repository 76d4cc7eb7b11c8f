"""Public functions of the norms: documentation, checks, one dispatch."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..checks import FLOATING, check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl, use_triton
from .autograd import layer_norm_op
from .plain import norm_plain
from .reference import norm_reference

MOST_CHANNELS = 16384  # of a Triton program, which holds a row


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Give every row mean 0 and variance 1, then scale and shift its channels; add a residual first if there is one.

    total = x + residual, y = (total - mean) / sqrt(variance + eps) * weight + bias, over the last axis.

    Args:
        x: Rows, (..., C), any C >= 1. float32, bfloat16, float16 or float64, any strides.
        weight: Factor of every channel, (C,), in any of these dtypes; None is one.
        bias: Added to every channel, (C,); None is zero.
        residual: Added to x before, of its shape; its dtype may be another one, as that of a float32 residual stream
            is. None leaves the sum out.
        eps: Added to the variance.
        dtype: Of y; None is that of x. Autocast has no say in it.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere (and for float64 and C > 16384); "triton", "torch" and
            "reference" (the definition) never fall back.

    Returns:
        y (..., C); with `residual` also the sum, in the dtype that both promote to. What is normalised is the sum as
        returned. Statistics are computed in float32 (float64 if an argument is float64).

    Raises:
        ValueError: A shape, size, dtype, device or option is wrong.

    Cost: every tensor is read or written once, in the backward as well, which computes the statistics again.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    return _norm("layer_norm", x, weight, bias, residual, eps, dtype, impl)


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide every row by its root mean square, then scale its channels: `layer_norm` that leaves the mean alone.

    total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight + bias, over the last axis.

    Args:
        x: Rows, (..., C); see `layer_norm`.
        weight: Factor of every channel, (C,); None is one.
        bias: Added to every channel, (C,); None is zero.
        residual: Added to x before, of its shape.
        eps: Added to the mean square.
        dtype: Of y; None is that of x.
        impl: See `layer_norm`.

    Returns:
        y (..., C), with `residual` also the sum: see `layer_norm`.

    Raises:
        ValueError: A shape, size, dtype, device or option is wrong.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    return _norm("rms_norm", x, weight, bias, residual, eps, dtype, impl)


def _norm(
    op: Literal["layer_norm", "rms_norm"],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    impl: Impl,
) -> Tensor | tuple[Tensor, Tensor]:
    check_impl(op, impl, x)
    _check(op, x, weight, bias, residual, dtype)
    dtype, centered = dtype or x.dtype, op == "layer_norm"
    reason = _why_not_triton(x.shape[-1], dtype, weight, bias, residual)
    if impl == "triton" and reason is not None:
        refuse(op, *reason, "impl='auto' would use PyTorch")
    if use_triton(impl, x) and reason is None:
        y, total = layer_norm_op(x, weight, bias, residual, dtype, eps, centered)
        return y if residual is None else (y, total)
    norm = norm_reference if impl == "reference" else norm_plain
    total = x if residual is None else x + residual
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # autocast knows no meta device
        with torch.autocast(x.device.type, enabled=False):
            y = norm(total, weight, bias, eps=eps, dtype=dtype, centered=centered)
    else:  # an exported graph then has nothing but the norm
        y = norm(total, weight, bias, eps=eps, dtype=dtype, centered=centered)
    return y if residual is None else (y, total)


def _why_not_triton(
    channels: int, dtype: torch.dtype, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> tuple[str, str, object] | None:
    """Name what the kernels cannot do: argument, what they want, and what it is; None if there is nothing."""
    if channels > MOST_CHANNELS:
        return "C of x", f"at most {MOST_CHANNELS} with impl='triton'", channels
    if dtype == torch.float64:
        return "dtype", "float32 or narrower with impl='triton'", "float64"
    for name, part in (("weight", weight), ("bias", bias), ("residual", residual)):
        if part is not None and part.dtype == torch.float64:
            return name, "float32 or narrower with impl='triton'", "float64"
    return None


def _check(
    op: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype | None,
) -> None:
    check_floating(op, "x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        refuse(op, "x", "(..., C) with C >= 1", tuple(x.shape), "the last axis is what is normalised")
    for name, part in (("weight", weight), ("bias", bias), ("residual", residual)):
        if part is None:
            continue
        check_floating(op, name, part)
        check_device(op, name, part, x)
        if name == "residual":
            check_shape(op, name, part, [x.shape], "the shape of x", "both are added")
        else:
            check_shape(op, name, part, [x.shape[-1:]], "(C,)", "it has one number per channel")
    if dtype is not None and dtype not in FLOATING:
        refuse(op, "dtype", "float32, bfloat16, float16 or float64", dtype, "leave it out for that of x")
