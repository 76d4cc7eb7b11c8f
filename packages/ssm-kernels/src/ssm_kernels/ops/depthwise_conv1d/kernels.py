"""Launchers of the depthwise convolution's Triton kernels. Imported on the first launch only.

One program takes one chunk of one sequence and a block of channels. Chunks are as long as they can be while there are
programs enough for a GPU, so that few steps are read twice and the gradients of the parameters have few parts, which a
second kernel adds in a fixed order. See docs/depthwise_conv1d.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from .kernels_device import backward_kernel, forward_kernel, state_kernel, sum_kernel

ENOUGH_PROGRAMS = 2048  # of one warp each: about 16 on every multiprocessor of a large GPU
SHORTEST, LONGEST = 16, 256  # steps of a chunk, multiples of those loaded together
SUM_ROWS, SUM_CHANNELS = 512, 8  # parts added at a time, one 32-byte sector wide
STATE_BLOCK = 32  # channels of a program
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so


def _on_device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows(x: Tensor) -> Tensor:
    """Copy what the kernels cannot address: channels that do not lie next to one another."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _block(channels: int, lane: int) -> int:
    """Choose the channels of a program: `lane` for every lane of a warp, or two where fewer lanes are idle then."""
    if channels <= 32:
        return 32
    return min((32 * lane, 64), key=lambda block: triton.cdiv(channels, block) * block)


def _vector(channels: int, block: int, *tensors: Tensor) -> int:
    """Give how many channels of a lane may be moved at once: what divides D and all strides."""
    vector = block // 32
    for size in (channels, *(s for x in tensors for s, n in zip(x.stride()[:2], x.shape[:2], strict=True) if n > 1)):
        while size % vector:
            vector //= 2
    return vector


def _chunk(sequences: int, steps: int, blocks: int) -> int:
    """Choose the steps of a chunk: the longest that leave enough programs."""
    chunk = LONGEST
    while chunk > SHORTEST and sequences * triton.cdiv(steps, chunk) * blocks < ENOUGH_PROGRAMS:
        chunk //= 2
    return chunk


def _table(cu_seqlens: Tensor, length: int, chunk: int) -> Tensor:
    """List sequence, begin, count and first step of every chunk of packed sequences, (units, 4) int64.

    There are as many units as there can be, so that nothing waits for the device: those too many begin behind the end
    of the last sequence.
    """
    bounds = cu_seqlens.long()
    count = bounds.diff()
    last = ((count + (chunk - 1)) // chunk).cumsum(0)
    unit = torch.arange(length // chunk + count.shape[0], device=bounds.device)
    row = torch.searchsorted(last, unit, right=True).clamp_(max=count.shape[0] - 1)
    first = (unit - (last - (count + (chunk - 1)) // chunk)[row]) * chunk
    return torch.stack([row, bounds[row], count[row], first], 1)


def _split(x: Tensor, cu_seqlens: Tensor | None, block: int) -> tuple[int, int, Tensor | None, int]:
    """Cut the sequences into chunks: their length, how many a sequence has, the table of packed ones, the units."""
    batch, length, channels = x.shape
    chunk = _chunk(batch, length, triton.cdiv(channels, block))
    chunks = triton.cdiv(length, chunk)
    if cu_seqlens is None:
        return chunk, chunks, None, batch * chunks
    table = _table(cu_seqlens, length, chunk)
    return chunk, chunks, table, table.shape[0]


def _strides(vector: int, *tensors: Tensor) -> list[int]:
    """Give the strides of batch and steps in units of `vector`."""
    return [stride // vector for x in tensors for stride in x.stride()[:2]]


def _lead(taps: int, padding: str) -> int:
    """Count the steps of the filter before the one that it makes."""
    return taps - 1 if padding == "causal" else (taps - 1) // 2


def depthwise_conv1d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
) -> Tensor:
    """Convolve: x is read once and y (B, L, D) written once."""
    x = _rows(x)
    length, channels = x.shape[1:]
    taps = weight.shape[1]
    block = _block(channels, 4)
    vector = _vector(channels, block, x)
    with _on_device(x):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        chunk, chunks, table, units = _split(x, cu_seqlens, block)
        forward_kernel[(units * triton.cdiv(channels, block),)](
            x,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            None if initial_state is None else initial_state.contiguous(),
            y,
            table,
            length,
            chunks,
            chunk,
            channels // vector,
            *_strides(vector, x),
            K=taps,
            LEAD=_lead(taps, padding),
            REVERSE=reverse,
            SILU=activation is not None,
            BLOCK=block,
            VECTOR=vector,
            STEPS=8,
            num_warps=1,
            **FUSION,
        )
    return y


def depthwise_conv1d_backward_triton(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute all gradients, x and grad read once; those of a missing bias or state are empty tensors."""
    x, grad = _rows(x), _rows(grad)
    length, channels = x.shape[1:]
    taps = weight.shape[1]
    block = _block(channels, 2)  # four channels a lane take 255 registers
    vector = _vector(channels, block, x, grad)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    options = {"K": taps, "REVERSE": reverse, "SILU": activation is not None, "num_warps": 1, **FUSION}
    with _on_device(x):
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_weight = torch.empty_like(weight)
        grad_bias = torch.empty_like(bias) if bias is not None else torch.empty(0, dtype=x.dtype, device=x.device)
        grad_state = torch.empty(0, dtype=x.dtype, device=x.device)
        chunk, chunks, table, units = _split(x, cu_seqlens, block)
        parts = torch.empty(units, taps + 1, channels, dtype=torch.float32, device=x.device)
        state = None if initial_state is None else initial_state.contiguous()
        backward_kernel[(units * triton.cdiv(channels, block),)](
            grad,
            x,
            weight,
            bias,
            state,
            grad_x,
            parts,
            table,
            length,
            chunks,
            chunk,
            channels // vector,
            *_strides(vector, x, grad),
            LEAD=_lead(taps, padding),
            BLOCK=block,
            VECTOR=vector,
            STEPS=8 if taps <= 4 else 4,
            **options,
        )
        outputs = taps + (bias is not None)
        sum_kernel[(outputs * triton.cdiv(channels, SUM_CHANNELS),)](
            parts,
            grad_weight,
            grad_bias,
            units,
            channels,
            outputs,
            K=taps,
            BLOCK=SUM_CHANNELS,
            ROWS=SUM_ROWS,
            **FUSION,
        )
        if state is not None:
            grad_state = torch.empty_like(state)
            bounds = None if cu_seqlens is None else cu_seqlens.contiguous()
            tensors = (grad, x, weight, bias, state, grad_state, bounds)
            programs = state.shape[0] * triton.cdiv(channels, STATE_BLOCK)
            strides = _strides(1, x, grad)
            state_kernel[(programs,)](*tensors, length, channels, *strides, BLOCK=STATE_BLOCK, **options)
    return grad_x, grad_weight, grad_bias, grad_state
