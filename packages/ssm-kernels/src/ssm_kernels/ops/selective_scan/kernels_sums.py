"""The launcher that adds the results of several directions up."""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..launch import launch
from .kernels_device_single_sums import sum_kernel
from .kernels_plan import cdiv

SUM_BLOCK = 1024  # numbers per program


def add_parts(parts: Tensor, like: Tensor) -> Tensor:
    """Add the partial results of K directions, (K, ...), in their order; return the sum in the dtype of `like`."""
    if parts.shape[0] == 1 and parts.dtype == like.dtype:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=like.dtype, device=parts.device)
    size = out.numel()
    tensors = {"parts": parts, "out": out, "size": size}
    constants = {"KINDS": parts.shape[0], "BLOCK": SUM_BLOCK, "num_warps": 4, "enable_fp_fusion": True}
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        launch(sum_kernel, cdiv(size, SUM_BLOCK), (parts.shape[0], size >= 1 << 31), tensors, lambda: constants)
    return out
