"""Launchers of sliding-window attention's Triton kernels. Imported on the first launch only.

The forward pass is one kernel, the backward pass one for queries and one for keys and values. See
docs/sliding_window_attention.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
import triton
from torch import Tensor

from ..window_attention.kernels import aligned, common_settings, on_device
from ..window_attention.kernels_device import LOG2_E
from .kernels_device import forward_kernel, key_kernel, query_kernel

Shape = tuple[int, int]  # rows and columns
# Tile, block, warps and stages for heads of up to 64 in half precision, by the number of axes
FORWARD = {1: ((1, 128), (1, 64), 8, 2), 2: ((8, 16), (8, 8), 8, 2)}
BACKWARD = {1: ((1, 64), (1, 64), 4, 2), 2: ((8, 8), (8, 8), 4, 2)}
# and of float32, for heads of up to 64 and of more; and of larger heads in half precision
SMALL = {1: ((1, 32), (1, 32), 4, 1), 2: ((4, 8), (4, 8), 4, 1)}
SMALLEST = {1: ((1, 16), (1, 16), 4, 1), 2: ((4, 4), (4, 4), 4, 1)}
LARGE_HEAD = {1: ((1, 64), (1, 32), 4, 2), 2: ((8, 8), (4, 8), 4, 2)}


@dataclass(frozen=True)
class Plan:
    """What the launches of one call share, apart from the tensors. It depends on few numbers, and is kept."""

    forward: dict[str, object]
    backward: dict[str, object]
    forward_tile: Shape
    backward_tile: Shape


@lru_cache(maxsize=256)
def plan(dim: int, vector: int, window: int, band: bool, dtype: torch.dtype, device: str) -> Plan:
    """Make the settings of the kernels for a kind of call."""
    axes = 1 if band else 2
    common = {**common_settings(dim, vector, dtype, device), "WINDOW": window, "BAND": band}
    if dtype == torch.float32:
        forward = backward = SMALL[axes] if dim <= 64 else SMALLEST[axes]
    elif dim > 64:
        forward = backward = LARGE_HEAD[axes]
    else:
        forward, backward = FORWARD[axes], BACKWARD[axes]

    def settings(choice: tuple[Shape, Shape, int, int]) -> dict[str, object]:
        tile, block, warps, stages = choice
        blocks = {"TILE_Y": tile[0], "TILE_X": tile[1], "BLOCK_Y": block[0], "BLOCK_X": block[1]}
        return {**common, **blocks, "num_warps": warps, "num_stages": stages}

    return Plan(settings(forward), settings(backward), forward[0], backward[0])


@dataclass(frozen=True)
class Call:
    """The tensors of one call in the form that the kernels read, their settings, and what every kernel is told."""

    q: Tensor
    k: Tensor
    v: Tensor
    plan: Plan
    sizes: tuple[int, int, int, int, int]
    scale: float
    factor: float

    def programs(self, tile: Shape) -> tuple[int]:
        """Count the tiles of all heads."""
        batch, height, width, heads, _ = self.q.shape
        return (batch * heads * triton.cdiv(height, tile[0]) * triton.cdiv(width, tile[1]),)


def _prepare(q: Tensor, k: Tensor, v: Tensor, window: int, band: bool) -> Call:
    q, k, v, steps = aligned(q, k, v)
    _, height, width, heads, dim = q.shape
    vector = gcd(*steps, dim, 8)
    sizes = height, width, heads, steps[0] // vector, steps[1] // vector
    scale = dim**-0.5
    settings = plan(dim, vector, window, band, q.dtype, q.device.type)
    return Call(q, k, v, settings, sizes, scale, scale * LOG2_E.value)


def sliding_window_attention_triton(q: Tensor, k: Tensor, v: Tensor, window: int, band: bool) -> tuple[Tensor, Tensor]:
    """Return the result, and the sums of exponentials for the backward, (B, heads, 1 or 2, H * W)."""
    batch, height, width, heads, _ = q.shape
    with on_device(q):
        call = _prepare(q, k, v, window, band)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        numbers = 2 if call.q.dtype == torch.float32 else 1
        lse = torch.empty(batch, heads, numbers, height * width, dtype=torch.float32, device=q.device)
        forward_kernel[call.programs(call.plan.forward_tile)](
            call.q, call.k, call.v, out, lse, *call.sizes, call.factor, **call.plan.forward
        )
    return out, lse


def sliding_window_attention_backward_triton(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, band: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    batch, height, width, heads, _ = q.shape
    with on_device(q):
        call = _prepare(q, k, v, window, band)
        grad, out = grad.contiguous(), out.contiguous()
        grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        delta = torch.empty(batch, heads, height * width, dtype=torch.float32, device=q.device)
        grid, settings = call.programs(call.plan.backward_tile), call.plan.backward
        numbers = *call.sizes, call.factor, call.scale
        query_kernel[grid](grad, call.q, call.k, call.v, out, lse, grad_q, delta, *numbers, **settings)
        key_kernel[grid](grad, call.q, call.k, call.v, lse, delta, grad_k, grad_v, *numbers, **settings)
    return grad_q, grad_k, grad_v
