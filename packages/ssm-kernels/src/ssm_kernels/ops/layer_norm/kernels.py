"""Launchers of the norms' Triton kernels. Imported on the first launch only.

The forward gives every program one tile of rows. The backward is one pass by a fixed number of programs, each of which
walks over tiles and keeps the sums for weight and bias in registers; a second kernel adds what they found, always in
the same order. The number of programs does not depend on the GPU, and so neither do the gradients. See
docs/layer_norm.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from ..launch import launch
from .kernels_device import backward_kernel, forward_kernel, sum_kernel

TILE = 1024  # numbers in a tile, unless one row is longer
LANE = 16  # numbers of a thread
PROGRAMS = 1024  # of the backward at most
SUM_ROWS, SUM_CHANNELS = 512, 8  # parts added at a time, one 32-byte sector wide
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so


def _on_device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows(channels: int) -> int:
    """Choose the rows of a tile."""
    return max(1, TILE // triton.next_power_of_2(channels))


def _spaced(x: Tensor) -> tuple[Tensor, int]:
    """Return x and how far apart its rows are; a copy unless they are evenly spaced, by less than two rows.

    A kernel is compiled for every distance: one that follows from the length of a sequence would be another each time.
    """
    channels = x.shape[-1]
    if x.is_contiguous():
        return x, channels
    apart = x.stride(-2) if x.dim() > 1 and x.stride(-1) == 1 else 0
    step = apart
    for size, stride in zip(x.shape[-2::-1], x.stride()[-2::-1], strict=True):
        if size > 1 and stride != step:
            return x.contiguous(), channels
        step *= size
    return (x, apart) if channels <= apart < 2 * channels else (x.contiguous(), channels)


def _constants(channels: int, apart: int, eps: float, centered: bool) -> dict[str, object]:
    """Return what both kernels are compiled for: the tile, the warps that share it, and which norm it is."""
    rows, block = _rows(channels), triton.next_power_of_2(channels)
    tile = {"CHANNELS": channels, "APART": apart, "ROWS": rows, "BLOCK": block, "CENTERED": centered}
    return {**tile, "eps": eps, "num_warps": min(16, max(1, rows * block // (32 * LANE))), **FUSION}


def layer_norm_triton(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """Normalise in one pass; the sum is an empty tensor without a residual."""
    channels = x.shape[-1]
    rows = _rows(channels)
    x, apart = _spaced(x)
    tensors: dict[str, Tensor | int | None] = {"x": x}
    tensors |= {
        name: None if part is None else part.contiguous()
        for name, part in (("weight", weight), ("bias", bias), ("residual", residual))
    }
    with _on_device(x):
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        if residual is None:
            total = torch.empty(0, dtype=x.dtype, device=x.device)
        else:
            total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
        count = x.numel() // channels
        if count == 0:
            return y, total
        tensors |= {"y": y, "total": None if residual is None else total, "rows": count}
        launch(
            forward_kernel,
            triton.cdiv(count, rows),
            (channels, apart, eps, centered),
            tensors,
            lambda: _constants(channels, apart, eps, centered),
        )
    return y, total


def layer_norm_backward_triton(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    parameters: bool,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute all gradients, every tensor read once; those that are not wanted are empty tensors.

    Args:
        grad: Of the result.
        grad_total: Of the sum, None where nobody used it on.
        total: What was normalised.
        weight: The factor.
        bias: What was added.
        dtypes: Of the gradients of the sum: one for x, one for the residual (None: no second one).
        parameters: Whether gradients of weight and bias are wanted.
        eps: Added to the variance.
        centered: Whether the mean was subtracted.
    """
    channels = total.shape[-1]
    rows = _rows(channels)
    total, apart = _spaced(total)
    count = total.numel() // channels
    programs = min(PROGRAMS, triton.cdiv(count, rows))
    with _on_device(total):
        first, second = (
            torch.empty(0 if dtype is None else total.shape, dtype=dtype or total.dtype, device=total.device)
            for dtype in dtypes
        )
        grads = [
            torch.empty(0, dtype=total.dtype, device=total.device)
            if x is None or not parameters
            else torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for x in (weight, bias)
        ]
        if count == 0:
            return first, second, grads[0].zero_(), grads[1].zero_()
        weight_parts, bias_parts = (
            torch.empty(programs, channels, dtype=torch.float32, device=total.device) if g.numel() else None
            for g in grads
        )
        tensors: dict[str, Tensor | int | None] = {
            "grad": grad.contiguous(),
            "grad_total": None if grad_total is None else grad_total.contiguous(),
            "total": total,
            "weight": None if weight is None else weight.contiguous(),
            "grad_x": first,
            "grad_residual": None if dtypes[1] is None else second,
            "weight_parts": weight_parts,
            "bias_parts": bias_parts,
            "rows": count,
        }
        launch(
            backward_kernel,
            programs,
            (channels, apart, eps, centered),
            tensors,
            lambda: _constants(channels, apart, eps, centered),
        )
        _add_parts(weight_parts, bias_parts, grads, programs, channels)
    return first, second, grads[0], grads[1]


def _add_parts(
    weight_parts: Tensor | None, bias_parts: Tensor | None, grads: list[Tensor], programs: int, channels: int
) -> None:
    """Add what the programs of the backward found."""
    if weight_parts is None and bias_parts is None:
        return
    launch(
        sum_kernel,
        sum(part is not None for part in (weight_parts, bias_parts)) * triton.cdiv(channels, SUM_CHANNELS),
        (),
        {
            "weight_parts": weight_parts,
            "bias_parts": bias_parts,
            "grad_weight": None if weight_parts is None else grads[0],
            "grad_bias": None if bias_parts is None else grads[1],
            "parts": programs,
            "channels": channels,
        },
        lambda: {"ROWS": SUM_ROWS, "BLOCK": SUM_CHANNELS, **FUSION},
    )
