"""Launchers of window attention's Triton kernels. Imported on the first launch only.

The forward pass is one kernel and, for a position bias, a small one ahead of it that brings the table into order. The
backward pass is one kernel for queries, one for keys and values, and two for the table. See docs/window_attention.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels_device import LOG2_E, forward_kernel, table_kernel
from .kernels_device_backward import bias_kernel, key_kernel, merge_kernel, pairs_kernel, query_kernel

FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
PRECISION = "tf32x3"  # of float32 products, on tensor cores: a few roundings of float32 (docs/gpu-check.md)
ENOUGH_PROGRAMS = 1024  # of the gradient of the bias: about 8 on every multiprocessor of a large GPU
# Queries and keys of a program, warps, stages and windows that share a bias, for heads of up to 64 in half precision
FORWARD, QUERIES, KEYS, BIAS = (64, 32, 4, 2, 2), (64, 32, 4, 2, 2), (32, 64, 4, 2, 2), (64, 64, 4, 3, 1)
LARGER_BIAS = 64, 32, 4, 3, 1  # for heads of 33 to 64
# The largest head with a limit, and the limit, with which three or four programs fit on a processor of an H100, not two
REGISTERS = {"forward": (32, 128), "queries": (64, 168), "keys": (32, 168)}
TABLE_BLOCK, MERGE_BLOCK = 1024, 1024


@dataclass(frozen=True)
class Plan:
    """What the launches of one call share, apart from the tensors. It depends on few numbers, and is kept."""

    forward: tuple[dict[str, Any], ...]  # settings of a launch each
    queries: dict[str, Any]
    keys: dict[str, Any]
    bias: dict[str, Any]

    @staticmethod
    def programs(settings: dict[str, Any], name: str, count: int, windows: int, heads: int) -> tuple[int]:
        """Count the programs that take blocks of `count` queries or keys of groups of windows."""
        return (-(-count // settings[name]) * -(-windows // settings["GROUP"]) * heads,)


def _cut(size: int, most: int) -> int:
    """Give the block for `size` queries or keys: a power of two, at least 16, as tensor cores need."""
    return max(16, min(most, triton.next_power_of_2(size)))


def _settings(dim: int, queries: int, keys: int, most: tuple[int, ...], wide: bool) -> dict[str, Any]:
    """Choose blocks, warps and stages of a kernel; `most` is for heads of up to 64 in half precision.

    Three products stand for one of float32, each with its own operands in registers.
    """
    block_q, block_k, warps, stages, group = most
    if wide:
        block_q, block_k, stages, group = *((32, 32) if dim <= 64 else (16, 16)), 1, 1
    elif dim > 64:
        block_q, block_k, group = min(block_q, 64), min(block_k, 32), 1
    block_q, block_k = _cut(queries, block_q), _cut(keys, block_k)
    if not (wide and dim > 64):
        warps = min(warps, max(1, block_q * block_k // 512))
    return {"BLOCK_Q": block_q, "BLOCK_K": block_k, "GROUP": group, "num_warps": warps, "num_stages": stages}


def _launches(settings: dict[str, Any], queries: int) -> tuple[dict[str, Any], ...]:
    """Cut queries into whole blocks and, where few are left over, a launch with small blocks for those."""
    block, rest = settings["BLOCK_Q"], queries % settings["BLOCK_Q"]
    small = _cut(rest, block)
    if queries < block or rest == 0 or 4 * small > block:
        return ({**settings, "FIRST": 0, "COUNT": queries},)
    last = {**settings, "BLOCK_Q": small, "num_warps": 1, "FIRST": queries - rest, "COUNT": rest}
    last.pop("maxnreg", None)
    return {**settings, "FIRST": 0, "COUNT": queries - rest}, last


def _limit(name: str, settings: dict[str, Any], dim: int) -> dict[str, Any]:
    """Give the limit of registers of a kernel with whole blocks, in half precision."""
    largest, registers = REGISTERS[name]
    full = dim <= largest and settings["num_warps"] == 4
    return {"maxnreg": registers} if full and not torch.version.hip else {}


def common_settings(dim: int, vector: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Make the settings of kernels that depend on the tensors alone."""
    interpreted = device == "cpu"
    return {
        "D": dim,
        "VECTOR": vector,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        # Triton's interpreter cannot multiply bfloat16
        "KIND": tl.float32 if interpreted and dtype == torch.bfloat16 else KINDS[dtype],
        "PRECISION": PRECISION,
        "WIDE": dtype == torch.float32,
        **FUSION,
    }


@lru_cache(maxsize=256)
def plan(dim: int, vector: int, window: int, key_window: int, shift: int, dtype: torch.dtype, device: str) -> Plan:
    """Make the settings of the kernels for a kind of call."""
    geometry = {"WINDOW": window, "KEY_WINDOW": key_window, "SHIFT": shift}
    common = {**common_settings(dim, vector, dtype, device), **geometry}
    wide = dtype == torch.float32
    sizes = dim, window**2, key_window**2
    forward, queries, keys = (_settings(*sizes, most, wide) for most in (FORWARD, QUERIES, KEYS))
    bias = _settings(*sizes, LARGER_BIAS if 32 < dim <= 64 else BIAS, wide)
    del bias["GROUP"]
    if not wide:
        forward |= _limit("forward", forward, dim)
        queries |= _limit("queries", queries, dim)
        keys |= _limit("keys", keys, dim)
    return Plan(
        forward=_launches({**common, **forward}, window**2),
        queries={**common, **queries},
        keys={**common, **keys},
        bias={**common, **bias},
    )


@dataclass(frozen=True)
class Call:
    """The tensors of one call in the form that the kernels read.

    Attributes:
        q: (B, H, W, heads, d), as k and v: one dtype, one stride per pixel and one per head for all three.
        k: Keys.
        v: Values.
        bias: The table as the kernels read it, or None.
        plan: Settings of the kernels.
        sizes: H, W, heads, the two strides and the number of windows, arguments of every kernel.
        window: Side of a window.
        key_window: Side of the square of keys.
        windows: How many windows there are.
        scale: Of the scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    plan: Plan
    sizes: tuple[int, int, int, int, int, int]
    window: int
    key_window: int
    windows: int
    scale: float

    @property
    def factor(self) -> float:
        """Of the products, in units of log 2."""
        return self.scale * LOG2_E.value


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _steps(x: Tensor) -> tuple[int, int] | None:
    """Give the strides of pixels and heads; None if two numbers do not describe the tensor."""
    batch, height, width, heads, dim = x.shape
    s_batch, s_row, s_pixel, s_head, s_number = x.stride()
    if width == 1:
        s_pixel = s_row
    if height == width == 1:
        s_pixel = s_batch
    regular = (
        (s_number == 1 or dim == 1)
        and (s_row == width * s_pixel or height == 1)
        and (s_batch == height * width * s_pixel or batch == 1)
    )
    return (s_pixel, s_head if heads > 1 else dim) if regular else None


def aligned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Give all three one dtype and one pair of strides, of pixels and heads; copies only what has others."""
    if not q.dtype == k.dtype == v.dtype:
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    steps = _steps(q)
    if steps is None or not steps == _steps(k) == _steps(v):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        steps = q.shape[3] * q.shape[4], q.shape[4]
    return q, k, v, steps


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
) -> Call:
    """Bring the arguments into the form that the kernels read."""
    q, k, v, steps = aligned(q, k, v)
    batch, height, width, heads, dim = q.shape
    vector = gcd(*steps, dim, 8)
    settings = plan(dim, vector, window, key_window, shift, q.dtype, q.device.type)
    bias = None
    if bias_table is not None:
        side = window + key_window - 1
        length = side**2 + (window - 1) * (side + 1) + 1
        bias = torch.empty(heads, length, dtype=torch.float32, device=q.device)
        table_kernel[(heads * triton.cdiv(length, TABLE_BLOCK),)](
            bias_table, bias, heads, *bias_table.stride(), WINDOW=window, KEY_WINDOW=key_window, BLOCK=TABLE_BLOCK,
            **FUSION,
        )  # fmt: skip
    windows = batch * (height // window) * (width // window)
    sizes = height, width, heads, steps[0] // vector, steps[1] // vector, windows
    return Call(q, k, v, bias, settings, sizes, window, key_window, windows, scale)


def window_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the result, and the sums of exponentials for the backward, (windows, heads, 1 or 2, queries)."""
    heads, queries = q.shape[3], window**2
    with on_device(q):
        call = _prepare(q, k, v, bias_table, window, key_window, shift, scale)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        numbers = 2 if call.q.dtype == torch.float32 else 1
        lse = torch.empty(call.windows, heads, numbers, queries, dtype=torch.float32, device=q.device)
        for settings in call.plan.forward:
            forward_kernel[Plan.programs(settings, "BLOCK_Q", settings["COUNT"], call.windows, heads)](
                call.q, call.k, call.v, call.bias, out, lse, *call.sizes, call.factor, **settings
            )
    return out, lse


def window_attention_backward_triton(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the table (an empty tensor without one)."""
    heads, queries, keys = q.shape[3], window**2, key_window**2
    with on_device(q):
        call = _prepare(q, k, v, bias_table, window, key_window, shift, scale)
        grad, out = grad.contiguous(), out.contiguous()
        grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        delta = torch.empty(call.windows, heads, queries, dtype=torch.float32, device=q.device)
        inputs = grad, call.q, call.k, call.v, call.bias
        settings = call.plan.queries
        query_kernel[Plan.programs(settings, "BLOCK_Q", queries, call.windows, heads)](
            *inputs, out, lse, grad_q, delta, *call.sizes, call.factor, scale, **settings
        )
        key_grads = grad_k, grad_v
        if key_window > window:
            shape = call.windows, keys, heads, q.shape[4]
            key_grads = tuple(torch.empty(shape, dtype=x.dtype, device=x.device) for x in (k, v))
        settings = call.plan.keys
        key_kernel[Plan.programs(settings, "BLOCK_K", keys, call.windows, heads)](
            *inputs, lse, delta, *key_grads, *call.sizes, call.factor, scale, **settings
        )
        if key_window > window:
            _merge(*key_grads, grad_k, grad_v, window, key_window)
        table = q.new_empty(0) if bias_table is None else _table_gradient(call, inputs, lse, delta, bias_table)
    return grad_q, grad_k, grad_v, table


def _merge(
    key_parts: Tensor, value_parts: Tensor, grad_k: Tensor, grad_v: Tensor, window: int, key_window: int
) -> None:
    """Add up the gradients of keys that several windows see."""
    batch, height, width, heads, dim = grad_k.shape
    channels = heads * dim
    merge_kernel[(batch * height * triton.cdiv(width * channels, MERGE_BLOCK),)](
        key_parts, value_parts, grad_k, grad_v, height, width, channels,
        WINDOW=window, KEY_WINDOW=key_window, BLOCK=MERGE_BLOCK, **FUSION,
    )  # fmt: skip


def _table_gradient(
    call: Call, inputs: tuple[Tensor | None, ...], lse: Tensor, delta: Tensor, bias_table: Tensor
) -> Tensor:
    """Sum the gradient of the scores over the windows, and then over the pairs that share a row of the table."""
    heads, queries, keys = call.q.shape[3], call.window**2, call.key_window**2
    settings = call.plan.bias
    blocks = heads * triton.cdiv(queries, settings["BLOCK_Q"]) * triton.cdiv(keys, settings["BLOCK_K"])
    run = triton.cdiv(call.windows, min(call.windows, triton.cdiv(ENOUGH_PROGRAMS, blocks)))
    runs = triton.cdiv(call.windows, run)
    parts = torch.empty(runs, heads, queries, keys, dtype=torch.float32, device=call.q.device)
    bias_kernel[(runs * blocks,)](*inputs, lse, delta, parts, *call.sizes, call.factor, run, **settings)
    table = torch.empty(bias_table.shape, dtype=bias_table.dtype, device=bias_table.device)
    pairs_kernel[(table.numel(),)](
        parts.sum(0) if runs > 1 else parts, table, heads, WINDOW=call.window, KEY_WINDOW=call.key_window,
        BLOCK=triton.next_power_of_2(queries), num_warps=1, **FUSION,
    )  # fmt: skip
    return table
