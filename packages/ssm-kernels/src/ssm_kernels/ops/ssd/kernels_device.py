"""The forward of the Mamba-2 scan on the device; kernels.py launches it.

Letters: H heads, G groups, P head dim, N state. A row is what one recurrence runs along, a batch row or a packed
sequence; a slot is one of its chunks, counted over all rows; a unit is what one program walks, a whole row or a span of
its chunks, for one head and one block of P. The state is held as (N, P) in registers. Inside a chunk all is products of
matrices: y = (C B^T * decays) x + C state, and the state gains B^T x.
"""
# Kernels take constexpr parameters as plain values.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# ruff: noqa: PLR0915

import triton
import triton.language as tl

from ..selective_scan.kernels_device_steps import count_steps, find_unit, power, sigmoid
from .kernels_device_chunk import (
    SIZES,
    at_end,
    decay_since_start,
    decay_to_end,
    decay_within,
    elapse,
    find_places,
    load_state,
    load_tile,
    operand,
    step_sizes,
    store_state,
)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x, dt, A, B, C, D, z, dt_bias, initial, y, entering, final,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans,
    x_t, dt_t, B_t, C_t, z_t,
    H: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARALLEL: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    D_STEP: tl.constexpr,
    PRECISE: tl.constexpr,
    OPERAND: tl.constexpr,
    LOST: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:  # fmt: skip
    """Walk a unit with the state in registers. D_STEP is the stride of D over p: 0 for one weight a head."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    program = tl.program_id(0)
    unit = (program // (H * BLOCKS)).to(tl.int64)
    head = (program // BLOCKS) % H
    row, batch, begin, count, _slots, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, 1
    )
    steps = count_steps(count, first, span, PARALLEL, CHUNK)
    n = tl.arange(0, BLOCK_N)
    p = (program % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    line = batch * length + begin
    x += line * x_t + head * P
    dt += line * dt_t + head
    B += line * B_t + (head // (H // G)) * N
    C += line * C_t + (head // (H // G)) * N
    y += line * (H * P) + head * P
    if z is not None:
        z += line * z_t + head * P
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32) if dt_bias is not None else 0.0
    SIZE: tl.constexpr = P * N
    if PARALLEL:
        state = load_state(entering + (unit * H + head) * SIZE, n, p, N, P, 1, N)
    elif initial is not None:
        state = load_state(initial + (row * H + head) * SIZE, n, p, N, P, 1, N)
    else:
        state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    for k in range(0, steps, CHUNK):
        places, alive = find_places((first * CHUNK).to(tl.int32) + k, steps - k, count, CHUNK, REVERSE, WIDE)
        values = load_tile(x, x_t, places, p, P, P % BLOCK_P == 0)
        into = load_tile(B, B_t, places, n, N, N == BLOCK_N).to(OPERAND)
        out_of = load_tile(C, C_t, places, n, N, N == BLOCK_N).to(OPERAND)
        _, delta = step_sizes(dt, places, dt_t, alive, bias, SOFTPLUS, PRECISE)
        high, low = elapse(delta, rate, PRECISE)
        wide = values.to(tl.float32)
        fed = wide * delta[:, None]
        mixed = tl.dot(out_of, tl.trans(into), input_precision=PRODUCT) * decay_within(high, low, CHUNK, PRECISE)
        out = tl.dot(out_of, operand(state, OPERAND, LOST), input_precision=PRODUCT)
        out *= decay_since_start(high, low, PRECISE)[:, None]
        out += tl.dot(operand(mixed, OPERAND, LOST), operand(fed, OPERAND, LOST), input_precision=PRODUCT)
        leaving = operand(fed * decay_to_end(high, low, CHUNK, PRECISE)[:, None], OPERAND, LOST)
        passed = power(at_end(high + low, CHUNK), PRECISE)
        state = state * passed + tl.dot(tl.trans(into), leaving, input_precision=PRODUCT)
        if D is not None:
            skip = tl.load(D + head * (P if D_STEP == 1 else 1) + p * D_STEP, mask=p < P, other=0.0)
            out += skip.to(tl.float32)[None, :] * wide
        if z is not None:
            gate = load_tile(z, z_t, places, p, P, P % BLOCK_P == 0).to(tl.float32)
            out *= gate * sigmoid(gate, PRECISE)
        at = y + places[:, None] * (H * P) + p[None, :]
        tl.store(at, out.to(y.dtype.element_ty), mask=alive[:, None] & (p < P)[None, :])
    if not PARALLEL:
        store_state(final + (row * H + head) * SIZE, state, n, p, N, P, 1, N)


@triton.jit(do_not_specialize=SIZES)
def output_kernel(
    x, dt, A, B, C, D, z, dt_bias, saved, y,
    cu_seqlens, slot_base, slot_row,
    length, slots,
    x_t, dt_t, B_t, C_t, z_t,
    H: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    D_STEP: tl.constexpr,
    PRECISE: tl.constexpr,
    OPERAND: tl.constexpr,
    LOST: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:  # fmt: skip
    """Make the outputs of one chunk from the state before it, for states that are too large for registers."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    BLOCKS_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    slot = (tl.program_id(0) // (H * BLOCKS)).to(tl.int64)
    head = (tl.program_id(0) // BLOCKS) % H
    _, batch, begin, count, _, first = find_unit(
        slot, cu_seqlens, slot_base, slot_base, slot_row, length, slots, 1, slots, True, 1
    )
    steps = count_steps(count, first, 1, True, CHUNK)
    if steps <= 0:  # packed rows may have fewer chunks than there are programs
        return
    p = (tl.program_id(0) % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    line = batch * length + begin
    x += line * x_t + head * P
    dt += line * dt_t + head
    B += line * B_t + (head // (H // G)) * N
    C += line * C_t + (head // (H // G)) * N
    y += line * (H * P) + head * P
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32) if dt_bias is not None else 0.0
    places, alive = find_places((first * CHUNK).to(tl.int32), steps, count, CHUNK, REVERSE, WIDE)
    _, delta = step_sizes(dt, places, dt_t, alive, bias, SOFTPLUS, PRECISE)
    high, low = elapse(delta, rate, PRECISE)
    wide = load_tile(x, x_t, places, p, P, P % BLOCK_P == 0).to(tl.float32)
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    out = tl.zeros([CHUNK, BLOCK_P], tl.float32)
    for block in tl.static_range(BLOCKS_N):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        into = load_tile(B, B_t, places, n, N, N % BLOCK_N == 0).to(OPERAND)
        out_of = load_tile(C, C_t, places, n, N, N % BLOCK_N == 0).to(OPERAND)
        state = load_state(saved + (slot * H + head) * (P * N), n, p, N, P, P, 1)
        scores = tl.dot(out_of, tl.trans(into), scores, input_precision=PRODUCT)
        out = tl.dot(out_of, operand(state, OPERAND, LOST), out, input_precision=PRODUCT)
    out *= decay_since_start(high, low, PRECISE)[:, None]
    mixed = operand(scores * decay_within(high, low, CHUNK, PRECISE), OPERAND, LOST)
    out += tl.dot(mixed, operand(wide * delta[:, None], OPERAND, LOST), input_precision=PRODUCT)
    if D is not None:
        skip = tl.load(D + head * (P if D_STEP == 1 else 1) + p * D_STEP, mask=p < P, other=0.0)
        out += skip.to(tl.float32)[None, :] * wide
    if z is not None:
        z += line * z_t + head * P
        gate = load_tile(z, z_t, places, p, P, P % BLOCK_P == 0).to(tl.float32)
        out *= gate * sigmoid(gate, PRECISE)
    at = y + places[:, None] * (H * P) + p[None, :]
    tl.store(at, out.to(y.dtype.element_ty), mask=alive[:, None] & (p < P)[None, :])
