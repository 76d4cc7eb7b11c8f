"""Triton kernels, parallel over chunks of the scan: end states of the chunks, carry over the chunks, outputs.

B batch, L = height * width, D channels, N state, K directions. A chunk is CHUNK positions in line order: along the rows
for "row" and "row_reversed", down the columns for the other two. A program owns one chunk and one block of channels as
a tile [CHUNK, BLOCK] and handles every direction of its axis: the reversed ones scan the same tile from its other end,
so that x is read once an axis, and no copy in scan order exists. The two axes are two launches, and the second adds to
what the first stored: no atomics, one order of summation. Buffers between the launches, (B, K, N, chunks, D), count the
chunks in scan order. Positions behind the last pixel have decay 1 and input 0, so a scan from either end passes them
unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
# These change with the image or the batch; a kernel compiled for one size serves every other.
SIZES = ["height", "width", "length", "chunks", "x_batch", "dt_batch", "dt_k", "b_batch", "b_k", "c_batch", "c_k"]


@triton.jit
def _follow(decay_before, state_before, decay, state):
    """Join two stretches of the recurrence h = decay * h + state."""
    return decay_before * decay, decay * state_before + state


@triton.jit
def _softplus(z):
    """Compute log(1 + exp(z)), to a few units in the last place for any z."""
    e = tl.exp(-tl.abs(z))
    s = e / (2.0 + e)  # log1p(e) = 2 atanh(s), and s is at most 1/3
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(z, 0.0) + 2.0 * s * series


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _pixel(position, height, width, COLUMN: tl.constexpr):
    """Map positions in line order to row-major pixel indices."""
    pixel = position
    if COLUMN:
        pixel = (position % height) * width + position // height
    return pixel


@triton.jit
def _tile(chunks, length, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Return batch index, chunk, positions, channels, and where they are real; the channel block runs fastest."""
    program = tl.program_id(0).to(tl.int64)
    chunk = program // BLOCKS % chunks
    position = chunk * CHUNK + tl.arange(0, CHUNK)
    channel = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    return program // BLOCKS // chunks, chunk, position, channel, position < length, channel < CHANNELS


@triton.jit
def _load(pointers, mask):
    """Load in float32 at once: arithmetic in bfloat16 is wrong in the interpreter, and never wanted."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _biased(dt, bias_ptr, offsets, real):
    """Add dt_bias, if there is one, to a tile of dt."""
    z = dt
    if bias_ptr is not None:
        z += _load(bias_ptr + offsets, real)[None, :]
    return z


@triton.jit
def _step_size(z, inside, SOFTPLUS: tl.constexpr):
    """Turn dt + dt_bias into the step size; 0 behind the last pixel and the last channel."""
    delta = z
    if SOFTPLUS:
        delta = _softplus(z)
    return tl.where(inside, delta, 0.0)


@triton.jit
def _row_of(tile, row, CHUNK: tl.constexpr):
    """Return one row of [CHUNK, BLOCK]."""
    return tl.sum(tl.where((tl.arange(0, CHUNK) == row)[:, None], tile, 0.0), axis=0)


@triton.jit
def _scan_order(chunk, chunks, REVERSE: tl.constexpr):
    """Count a chunk from where the scan starts."""
    order = chunk
    if REVERSE:
        order = chunks - 1 - chunk
    return order


@triton.jit
def _chunk_states(
    delta, scaled, gy, A_ptr, b_ptr, c_ptr, decay_ptr, end_ptr, adjoint_ptr, step, here, real,
    REVERSE: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scan one direction of a tile from zero; with a gradient `gy` its adjoint too. Pointers are at n = 0."""
    LAST: tl.constexpr = 0 if REVERSE else CHUNK - 1
    for n in range(N):
        exponent = _load(A_ptr + n * CHANNELS, real) * LOG2_E
        decay = tl.exp2(delta * exponent[None, :])
        added = scaled * _load(b_ptr + n, here)[:, None]
        product, state = tl.associative_scan((decay, added), 0, _follow, REVERSE)
        tl.store(decay_ptr + n * step, _row_of(product, LAST, CHUNK), mask=real)
        tl.store(end_ptr + n * step, _row_of(state, LAST, CHUNK), mask=real)
        if gy is not None:
            received = decay * gy * _load(c_ptr + n, here)[:, None]
            _, adjoint = tl.associative_scan((decay, received), 0, _follow, not REVERSE)
            tl.store(adjoint_ptr + n * step, _row_of(adjoint, CHUNK - 1 - LAST, CHUNK), mask=real)


@triton.jit(do_not_specialize=[*SIZES, "g_batch"])
def _chunk_states_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, bias_ptr, gy_ptr,
    decay_ptr, end_ptr, adjoint_ptr,
    height, width, length, chunks,
    x_batch, x_pixel, dt_batch, dt_pixel, dt_k, b_batch, b_pixel, b_k, c_batch, c_pixel, c_k, g_batch, g_pixel,
    CODES: tl.constexpr, K: tl.constexpr, COLUMN: tl.constexpr, SOFTPLUS: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Store the decay product and the end state of each chunk from zero; for the backward pass, with `gy`, also the
    adjoint of the state that enters it.
    """
    batch, chunk, position, channel, here, real = _tile(chunks, length, CHANNELS, CHUNK, BLOCK, BLOCKS)
    inside = here[:, None] & real[None, :]
    pixel = _pixel(position, height, width, COLUMN)
    x = _load(x_ptr + batch * x_batch + pixel[:, None] * x_pixel + channel[None, :], inside)
    gy = None
    if gy_ptr is not None:
        gy = _load(gy_ptr + batch * g_batch + pixel[:, None] * g_pixel + channel[None, :], inside)
    for k in tl.static_range(K):
        if (CODES >> (2 * k)) & 1 == COLUMN:
            dt = _load(dt_ptr + batch * dt_batch + k * dt_k + pixel[:, None] * dt_pixel + channel[None, :], inside)
            delta = _step_size(_biased(dt, bias_ptr, k * CHANNELS + channel, real), inside, SOFTPLUS)
            order = _scan_order(chunk, chunks, (CODES >> (2 * k)) & 2 == 2)
            at = ((batch * K + k) * N * chunks + order) * CHANNELS + channel
            c_ptr = C_ptr
            if gy is not None:
                c_ptr += batch * c_batch + k * c_k + pixel * c_pixel
            _chunk_states(
                delta, delta * x, gy, A_ptr + k * N * CHANNELS + channel,
                B_ptr + batch * b_batch + k * b_k + pixel * b_pixel, c_ptr,
                decay_ptr + at, end_ptr + at, adjoint_ptr + at, chunks * CHANNELS, here, real,
                (CODES >> (2 * k)) & 2 == 2, N, CHANNELS, CHUNK,
            )  # fmt: skip
