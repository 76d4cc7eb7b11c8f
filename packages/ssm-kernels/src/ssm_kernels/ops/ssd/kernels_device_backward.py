"""The backward of the Mamba-2 scan on the device; kernels.py launches it. Letters and terms as in kernels_device.py.

A program walks its unit from the last chunk, with the gradient of the state (the adjoint) in registers, and makes the
chunk's tables again from the inputs and the saved state before the chunk.
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


@triton.jit
def crossings(pairs, CHUNK: tl.constexpr, PRECISE: tl.constexpr):
    """Sum, for every step t, over the pairs (row, column) with column < t <= row: those that its decay lies between.

    What lies behind t altogether counts once as a row and once as a column and drops out of a difference, but for its
    rounding: PRECISE leaves it out.
    """
    if PRECISE:
        i = tl.arange(0, CHUNK)
        before = tl.cumsum(pairs, 1) - pairs
        total = tl.sum(tl.where(i[:, None] >= i[None, :], before, 0.0), 0)
    else:
        total = tl.cumsum(tl.sum(pairs, 1) - tl.sum(pairs, 0), 0, reverse=True)
    return total


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, grad_y, grad_final, saved, adjoints,
    grad_x, grad_dt, grad_z, part_B, part_C, part_sums, grad_initial,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans,
    x_t, dt_t, B_t, C_t, z_t, grad_t,
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
    HALF: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:  # fmt: skip
    """Make the gradients of a unit: of x, dt and z in place, of what programs share as partial sums."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    PARTS: tl.constexpr = H * BLOCKS
    EVEN_P: tl.constexpr = P % BLOCK_P == 0
    EVEN_N: tl.constexpr = N == BLOCK_N
    SIZE: tl.constexpr = P * N
    program = tl.program_id(0)
    unit = (program // PARTS).to(tl.int64)
    part = program % PARTS
    head = part // BLOCKS
    row, batch, begin, count, base, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, 1
    )
    steps = count_steps(count, first, span, PARALLEL, CHUNK)
    n = tl.arange(0, BLOCK_N)
    local = tl.arange(0, BLOCK_P)
    p = (part % BLOCKS) * BLOCK_P + local
    here_p = p < P
    line = batch * length + begin
    x += line * x_t + head * P
    dt += line * dt_t + head
    B += line * B_t + (head // (H // G)) * N
    C += line * C_t + (head // (H // G)) * N
    grad_y += line * grad_t + head * P
    grad_x += line * (H * P) + head * P
    grad_dt += line * PARTS + part
    part_B += line * (PARTS * N) + part * N
    part_C += line * (PARTS * N) + part * N
    if z is not None:
        z += line * z_t + head * P
        grad_z += line * (H * P) + head * P
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32) if dt_bias is not None else 0.0
    skip = tl.zeros([BLOCK_P], tl.float32)
    if D is not None:
        skip = tl.load(D + head * (P if D_STEP == 1 else 1) + p * D_STEP, mask=here_p, other=0.0).to(tl.float32)
    if PARALLEL:
        adjoint = load_state(adjoints + (unit * H + head) * SIZE, n, p, N, P, 1, N)
    elif grad_final is not None:
        adjoint = load_state(grad_final + (row * H + head) * SIZE, n, p, N, P, 1, N)
    else:
        adjoint = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    sum_A = rate * 0.0
    sum_bias = rate * 0.0
    sum_D = tl.zeros([BLOCK_P], tl.float32)
    chunks = (steps + CHUNK - 1) // CHUNK
    for j in range(0, chunks):
        chunk = chunks - 1 - j
        k = chunk * CHUNK
        places, alive = find_places((first * CHUNK).to(tl.int32) + k, steps - k, count, CHUNK, REVERSE, WIDE)
        raw, delta = step_sizes(dt, places, dt_t, alive, bias, SOFTPLUS, PRECISE)
        high, low = elapse(delta, rate, PRECISE)
        values = load_tile(x, x_t, places, p, P, EVEN_P).to(OPERAND)
        into = load_tile(B, B_t, places, n, N, EVEN_N).to(OPERAND)
        out_of = load_tile(C, C_t, places, n, N, EVEN_N).to(OPERAND)
        state = load_state(saved + ((base + first + chunk) * H + head) * SIZE, n, p, N, P, P, 1)
        state_in = operand(state, OPERAND, HALF)
        grad = load_tile(grad_y, grad_t, places, p, P, EVEN_P).to(tl.float32)
        grad = tl.where(alive[:, None], grad, 0.0)
        since_start = decay_since_start(high, low, PRECISE)
        leaves = delta * decay_to_end(high, low, CHUNK, PRECISE)
        within = decay_within(high, low, CHUNK, PRECISE)
        scores = tl.dot(out_of, tl.trans(into), input_precision=PRODUCT)
        wide = values.to(tl.float32)
        if z is not None:
            gate = load_tile(z, z_t, places, p, P, EVEN_P).to(tl.float32)
            open_ = sigmoid(gate, PRECISE)
            mixed = operand(scores * within * delta[None, :], OPERAND, HALF)
            out = tl.dot(out_of, state_in, input_precision=PRODUCT) * since_start[:, None]
            out += tl.dot(mixed, values, input_precision=PRODUCT) + skip[None, :] * wide
            at = grad_z + places[:, None] * (H * P) + p[None, :]
            found = grad * out * open_ * (1.0 + gate * (1.0 - open_))
            tl.store(at, found.to(grad_z.dtype.element_ty), mask=alive[:, None] & here_p[None, :])
            grad *= gate * open_
        grad_in = operand(grad, OPERAND, HALF)
        pairs = tl.dot(grad_in, tl.trans(values), input_precision=PRODUCT) * within
        spread = operand(pairs * delta[None, :], OPERAND, HALF)
        mixed = operand(scores * within * delta[None, :], OPERAND, HALF)
        pairs *= scores
        grad_delta = tl.sum(pairs, 0)
        lapse = crossings(pairs * delta[None, :], CHUNK, PRECISE)

        adjoint_in = operand(adjoint, OPERAND, HALF)
        fed = tl.dot(into, adjoint_in, input_precision=PRODUCT)
        stored = leaves * tl.sum(wide * fed, 1)
        grad_delta += decay_to_end(high, low, CHUNK, PRECISE) * tl.sum(wide * fed, 1)
        found = fed * leaves[:, None] + skip[None, :] * grad
        found += tl.dot(tl.trans(mixed), grad_in, input_precision=PRODUCT)
        at = grad_x + places[:, None] * (H * P) + p[None, :]
        tl.store(at, found.to(grad_x.dtype.element_ty), mask=alive[:, None] & here_p[None, :])
        sum_D += tl.sum(grad * wide, 0)

        found = tl.dot(grad_in, tl.trans(state_in), input_precision=PRODUCT) * since_start[:, None]
        lapse += tl.cumsum(tl.sum(found * out_of.to(tl.float32), 1), 0, reverse=True)
        found += tl.dot(spread, into, input_precision=PRODUCT)
        at = places[:, None] * (PARTS * N) + n[None, :]
        here = alive[:, None] & (n < N)[None, :]
        tl.store(part_C + at, found.to(part_C.dtype.element_ty), mask=here)
        found = tl.dot(values, tl.trans(adjoint_in), input_precision=PRODUCT) * leaves[:, None]
        found += tl.dot(tl.trans(spread), out_of, input_precision=PRODUCT)
        tl.store(part_B + at, found.to(part_B.dtype.element_ty), mask=here)

        passed = power(at_end(high + low, CHUNK), PRECISE)
        lapse += tl.cumsum(stored, 0) - stored + passed * tl.sum(tl.sum(state * adjoint, 1), 0)
        grad_delta += rate * lapse
        sum_A += tl.sum(lapse * delta, 0)
        if SOFTPLUS:
            grad_delta *= sigmoid(raw, PRECISE)
        grad_delta = tl.where(alive, grad_delta, 0.0)
        sum_bias += tl.sum(grad_delta, 0)
        tl.store(grad_dt + places * PARTS, grad_delta.to(grad_dt.dtype.element_ty), mask=alive)
        arriving = operand(grad * since_start[:, None], OPERAND, HALF)
        adjoint = adjoint * passed + tl.dot(tl.trans(out_of), arriving, input_precision=PRODUCT)
    part_sums += (unit * PARTS + part) * (BLOCK_P + 2)
    tl.store(part_sums + local, sum_D)
    tl.store(part_sums + BLOCK_P, sum_A)
    tl.store(part_sums + BLOCK_P + 1, sum_bias)
    if grad_initial is not None and not PARALLEL:
        store_state(grad_initial + (row * H + head) * SIZE, adjoint, n, p, N, P, 1, N)


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(
    part_B, part_C, grad_B, grad_C, part_sums, grad_A, grad_D, grad_bias, rows, units,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    D_STEP: tl.constexpr,
) -> None:  # fmt: skip
    """Add partial sums in their order: of A, D, bias in the first H programs, of B, C (rows, SHARE, N) in the others.

    SHARE is how many programs of the backward share a row; with 1 there are no others.
    """
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    program = tl.program_id(0)
    if program < H:
        u = tl.arange(0, BLOCK_UNITS)
        local = tl.arange(0, BLOCK_P)
        total_A = tl.zeros([BLOCK_UNITS], tl.float32)
        total_bias = tl.zeros([BLOCK_UNITS], tl.float32)
        total_D = tl.zeros([BLOCK_UNITS], tl.float32)
        for block in tl.static_range(BLOCKS):
            total = tl.zeros([BLOCK_UNITS, BLOCK_P], tl.float32)
            for i in range(0, units, BLOCK_UNITS):
                here = i + u < units
                at = part_sums + ((i + u).to(tl.int64) * (H * BLOCKS) + program * BLOCKS + block) * (BLOCK_P + 2)
                total_A += tl.load(at + BLOCK_P, mask=here, other=0.0)
                total_bias += tl.load(at + BLOCK_P + 1, mask=here, other=0.0)
                total += tl.load(at[:, None] + local[None, :], mask=here[:, None], other=0.0)
            if grad_D is not None:
                p = block * BLOCK_P + local
                if D_STEP == 1:
                    tl.store(grad_D + program * P + p, tl.sum(total, 0).to(grad_D.dtype.element_ty), mask=p < P)
                else:
                    total_D += tl.sum(tl.where((p < P)[None, :], total, 0.0), 1)
        tl.store(grad_A + program, tl.sum(total_A, 0).to(grad_A.dtype.element_ty))
        if grad_bias is not None:
            tl.store(grad_bias + program, tl.sum(total_bias, 0).to(grad_bias.dtype.element_ty))
        if grad_D is not None and D_STEP == 0:
            tl.store(grad_D + program, tl.sum(total_D, 0).to(grad_D.dtype.element_ty))
    else:
        n = tl.arange(0, BLOCK_N)
        r = ((program - H) // 2).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        here = (r < rows)[:, None] & (n < N)[None, :]
        source = part_B
        target = grad_B
        if (program - H) % 2 == 1:
            source = part_C
            target = grad_C
        total = tl.zeros([BLOCK_ROWS, BLOCK_N], tl.float32)
        at = r[:, None] * (SHARE * N) + n[None, :]
        for i in range(0, SHARE):
            total += tl.load(source + at + i * N, mask=here, other=0.0).to(tl.float32)
        tl.store(target + r[:, None] * N + n[None, :], total.to(target.dtype.element_ty), mask=here)
