"""Layer norm and root mean square norm in the place of PyTorch's: same arguments, same keys, with a residual."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.checks import refuse
from ..ops.layer_norm import layer_norm, rms_norm

Results = Tensor | tuple[Tensor, Tensor]


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` on `ssm_kernels.layer_norm`, with the sum in front of it.

    Arguments and keys of the state dict are those of `torch.nn.LayerNorm`. Under autocast the result has autocast's
    dtype, to which a linear layer behind it would convert, where PyTorch's has float32; statistics are float32 in both.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Results:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise x; with `residual`, of the shape of x, return the norm of their sum, and the sum."""
        norm = partial(layer_norm, weight=_row(self.weight), bias=_row(self.bias), eps=self.eps)
        return _normalise("LayerNorm", norm, self.normalized_shape, x, residual)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` on `ssm_kernels.rms_norm`, with the sum in front of it.

    Arguments and keys of the state dict are those of `torch.nn.RMSNorm`; for dtypes see `LayerNorm`.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Results:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise x; with `residual`, of the shape of x, return the norm of their sum, and the sum."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        norm = partial(rms_norm, weight=_row(self.weight), eps=eps)
        return _normalise("RMSNorm", norm, self.normalized_shape, x, residual)


def _row(parameter: Tensor | None) -> Tensor | None:
    """Lay a parameter of several axes in one."""
    return parameter if parameter is None or parameter.dim() == 1 else parameter.flatten()


def _normalise(
    name: str, norm: Callable[..., Any], axes: tuple[int, ...], x: Tensor, residual: Tensor | None
) -> Results:
    """Call the operator; several axes are one to it."""
    if tuple(x.shape[-len(axes) :]) != tuple(axes):
        wanted = f"(..., {', '.join(map(str, axes))})"
        refuse(name, "x", wanted, tuple(x.shape), "these are the axes given to the constructor")
    dtype = _dtype_of_result(x)
    if len(axes) == 1:
        return norm(x, residual=residual, dtype=dtype)
    rows = x.flatten(-len(axes))
    if residual is None:
        return norm(rows, dtype=dtype).view(x.shape)
    y, total = norm(rows, residual=residual.flatten(-len(axes)), dtype=dtype)
    return y.view(x.shape), total.view(x.shape)


def _dtype_of_result(x: Tensor) -> torch.dtype:
    """Return autocast's dtype inside of one, that of x elsewhere."""
    if x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
