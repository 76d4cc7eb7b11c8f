"""States and adjoints along rows, on the device; kernels.py launches it. Letters and terms as in kernels_device.py.

Side 0 carries the state from the first step on: it gains B^T (delta x). Side 1 carries the adjoint, the gradient of the
state, from the last step on: it gains C^T grad_y. They are the same walk, so that one launch makes both; blocks of N
and P do not depend on one another. Either side's tensors are stacked: (sides, ...).
"""
# Kernels take constexpr parameters as plain values.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
# A branch on a constexpr is decided when compiling, one on a number is not: they cannot be one.
# ruff: noqa: PLR0912, PLR0915, SIM102

import triton
import triton.language as tl

from ..selective_scan.kernels_device_steps import count_steps, find_unit, power, sigmoid
from .kernels_device_chunk import (
    SIZES,
    at_end,
    decay_since_start,
    decay_to_end,
    elapse,
    find_places,
    load_state,
    load_tile,
    operand,
    step_sizes,
    store_state,
)


@triton.jit(do_not_specialize=SIZES)
def walk_kernel(
    x, dt, A, B, C, z, dt_bias, grad_y, initial, grad_final, entering, saved, ends, totals, final, grad_initial,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans, units, total_slots, first_head,
    x_t, dt_t, B_t, C_t, z_t, grad_t,
    SIDES: tl.constexpr,
    LOCAL: tl.constexpr,
    HEADS: tl.constexpr,
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
    PRECISE: tl.constexpr,
    OPERAND: tl.constexpr,
    LOST: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:  # fmt: skip
    """Walk a unit. LOCAL starts from zero and writes what leaves, and the logarithm of the unit's decay.

    Otherwise it starts from what enters and writes what is there before every chunk (behind it, on side 1).
    HEADS heads from first_head on take part.
    """
    BLOCKS_P: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    BLOCKS_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    SIZE: tl.constexpr = P * N
    block = tl.program_id(0) % (BLOCKS_P * BLOCKS_N)
    own = (tl.program_id(0) // (BLOCKS_P * BLOCKS_N)) % HEADS
    side = (tl.program_id(0) // (BLOCKS_P * BLOCKS_N * HEADS)) % SIDES
    unit = (tl.program_id(0) // (BLOCKS_P * BLOCKS_N * HEADS * SIDES)).to(tl.int64)
    head = first_head + own
    row, batch, begin, count, base, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, 1
    )
    steps = count_steps(count, first, span, PARALLEL, CHUNK)
    n = (block % BLOCKS_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = (block // BLOCKS_N) * BLOCK_P + tl.arange(0, BLOCK_P)
    line = batch * length + begin
    dt += line * dt_t + head
    values_at = x
    values_t = x_t
    weights_at = B
    weights_t = B_t
    if SIDES == 2:
        if side == 1:
            values_at = grad_y
            values_t = grad_t
            weights_at = C
            weights_t = C_t
    values_at += line * values_t + head * P
    weights_at += line * weights_t + (head // (H // G)) * N
    if z is not None:
        z += line * z_t + head * P
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32) if dt_bias is not None else 0.0
    state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    if PARALLEL:
        if not LOCAL:
            state = load_state(entering + ((side * units + unit) * HEADS + own) * SIZE, n, p, N, P, 1, N)
    else:
        if initial is not None:
            if side == 0:
                state = load_state(initial + (row * H + head) * SIZE, n, p, N, P, 1, N)
        if grad_final is not None:
            if side == 1:
                state = load_state(grad_final + (row * H + head) * SIZE, n, p, N, P, 1, N)
    elapsed = rate * 0.0
    chunks = (steps + CHUNK - 1) // CHUNK
    ends_first = tl.arange(0, CHUNK) * 0 + side == 0
    for j in range(0, chunks):
        chunk = tl.where(side == 0, j, chunks - 1 - j)
        k = chunk * CHUNK
        places, alive = find_places((first * CHUNK).to(tl.int32) + k, steps - k, count, CHUNK, REVERSE, WIDE)
        values = load_tile(values_at, values_t, places, p, P, P % BLOCK_P == 0).to(tl.float32)
        weights = load_tile(weights_at, weights_t, places, n, N, N % BLOCK_N == 0).to(OPERAND)
        _, delta = step_sizes(dt, places, dt_t, alive, bias, SOFTPLUS, PRECISE)
        high, low = elapse(delta, rate, PRECISE)
        if not LOCAL:
            slot = (side * total_slots + base + first + chunk) * HEADS + own
            store_state(saved + slot * SIZE, state, n, p, N, P, P, 1)
        if SIDES == 2:
            if z is not None:
                if side == 1:
                    gate = load_tile(z, z_t, places, p, P, P % BLOCK_P == 0).to(tl.float32)
                    values *= gate * sigmoid(gate, PRECISE)
        since_start = tl.where(alive, decay_since_start(high, low, PRECISE), 0.0)
        share = tl.where(ends_first, delta * decay_to_end(high, low, CHUNK, PRECISE), since_start)
        over = at_end(high + low, CHUNK)
        elapsed += over
        gained = operand(values * share[:, None], OPERAND, LOST)
        state = state * power(over, PRECISE) + tl.dot(tl.trans(weights), gained, input_precision=PRODUCT)
    if LOCAL:
        store_state(ends + ((side * units + unit) * HEADS + own) * SIZE, state, n, p, N, P, 1, N)
        tl.store(totals + (side * units + unit) * HEADS + own, elapsed)
    elif not PARALLEL:
        if final is not None:
            if side == 0:
                store_state(final + (row * H + head) * SIZE, state, n, p, N, P, 1, N)
        if grad_initial is not None:
            if side == 1:
                store_state(grad_initial + (row * H + head) * SIZE, state, n, p, N, P, 1, N)


@triton.jit(do_not_specialize=SIZES)
def carry_kernel(
    ends, totals, initial, grad_final, final, grad_initial, span_base, rows, spans, units, first_head,
    SIDES: tl.constexpr,
    HEADS: tl.constexpr,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Replace what every unit adds by what enters it, along one row, and write what leaves the row."""
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    own = (tl.program_id(0) // BLOCKS) % HEADS
    side = (tl.program_id(0) // (BLOCKS * HEADS)) % SIDES
    row = (tl.program_id(0) // (BLOCKS * HEADS * SIDES)).to(tl.int64)
    head = first_head + own
    entry = (tl.program_id(0) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    here = entry < SIZE
    if span_base is None:
        base = row * spans
        count = (row * 0 + spans).to(tl.int32)
    else:
        base = tl.load(span_base + row)
        count = (tl.load(span_base + row + 1) - base).to(tl.int32)
    at = (row * H + head) * SIZE + entry
    state = tl.zeros([BLOCK], tl.float32)
    if initial is not None:
        if side == 0:
            state = tl.load(initial + at, mask=here, other=0.0).to(tl.float32)
    if grad_final is not None:
        if side == 1:
            state = tl.load(grad_final + at, mask=here, other=0.0).to(tl.float32)
    for j in range(0, count):
        unit = base + tl.where(side == 0, j, count - 1 - j) + side * units
        added = tl.load(ends + (unit * HEADS + own) * SIZE + entry, mask=here, other=0.0)
        passed = power(tl.load(totals + unit * HEADS + own), PRECISE)
        tl.store(ends + (unit * HEADS + own) * SIZE + entry, state, mask=here)
        state = passed * state + added
    if final is not None:
        if side == 0:
            tl.store(final + at, state, mask=here)
    if grad_initial is not None:
        if side == 1:
            tl.store(grad_initial + at, state, mask=here)
