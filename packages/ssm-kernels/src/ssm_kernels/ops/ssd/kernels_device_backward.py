"""The gradients of the Mamba-2 scan on the device; kernels.py launches it. Letters and terms as in kernels_device.py.

A program makes a chunk's gradients for one head and one block of P from the inputs, the state before the chunk and the
adjoint behind it. It takes N in blocks, twice: what sums over N comes first, the gradients of B and C last.
"""
# Kernels take constexpr parameters as plain values.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# ruff: noqa: PLR0912, PLR0915

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
)


@triton.jit
def crossings(pairs, CHUNK: tl.constexpr, PRECISE: tl.constexpr):
    """Sum, for every step t, over the pairs (row, column) with column < t <= row: those that its decay lies between.

    What lies behind t altogether counts once as a row and once as a column and drops out of a difference, but for its
    rounding: PRECISE leaves it out. No decay lies within a step: its pair is left out before anything is subtracted,
    since a product that is fused into a difference leaves its rounding where there should be nothing.
    """
    i = tl.arange(0, CHUNK)
    pairs = tl.where(i[:, None] > i[None, :], pairs, 0.0)
    if PRECISE:
        before = tl.cumsum(pairs, 1) - pairs
        total = tl.sum(tl.where(i[:, None] >= i[None, :], before, 0.0), 0)
    else:
        total = tl.cumsum(tl.sum(pairs, 1) - tl.sum(pairs, 0), 0, reverse=True)
    return total


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, grad_y, saved, grad_x, grad_dt, grad_z, part_B, part_C, part_sums,
    cu_seqlens, slot_base, slot_row,
    length, slots, total_slots, first_head,
    x_t, dt_t, B_t, C_t, z_t, grad_t,
    HEADS: tl.constexpr,
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
    """Make the gradients of a chunk: of x, dt and z in place, of what programs share as partial sums."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    BLOCKS_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    PARTS: tl.constexpr = HEADS * BLOCKS
    EVEN_P: tl.constexpr = P % BLOCK_P == 0
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    SIZE: tl.constexpr = P * N
    slot = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    own = part // BLOCKS
    head = first_head + own
    _, batch, begin, count, _, first = find_unit(
        slot, cu_seqlens, slot_base, slot_base, slot_row, length, slots, 1, slots, True, 1
    )
    steps = count_steps(count, first, 1, True, CHUNK)
    local_n = tl.arange(0, BLOCK_N)
    local = tl.arange(0, BLOCK_P)
    part_sums += (slot * PARTS + part) * (BLOCK_P + 2)
    if steps <= 0:  # packed rows may have fewer chunks than there are programs
        tl.store(part_sums + local, local * 0.0)
        tl.store(part_sums + BLOCK_P, 0.0)
        tl.store(part_sums + BLOCK_P + 1, 0.0)
        return
    p = (part % BLOCKS) * BLOCK_P + local
    here_p = p < P
    line = batch * length + begin
    x += line * x_t + head * P
    dt += line * dt_t + head
    B += line * B_t + (head // (H // G)) * N
    C += line * C_t + (head // (H // G)) * N
    grad_y += line * grad_t + head * P
    grad_x += line * (H * P) + head * P
    grad_dt += line * (H * BLOCKS) + head * BLOCKS + part % BLOCKS
    part_B += line * (PARTS * N) + part * N
    part_C += line * (PARTS * N) + part * N
    states = saved + (slot * HEADS + own) * SIZE
    adjoints = saved + ((total_slots + slot) * HEADS + own) * SIZE
    if z is not None:
        z += line * z_t + head * P
        grad_z += line * (H * P) + head * P
    rate = tl.load(A + head).to(tl.float32)
    bias = tl.load(dt_bias + head).to(tl.float32) if dt_bias is not None else 0.0

    places, alive = find_places((first * CHUNK).to(tl.int32), steps, count, CHUNK, REVERSE, WIDE)
    here = alive[:, None] & here_p[None, :]
    at = places[:, None] * (H * P) + p[None, :]
    raw, delta = step_sizes(dt, places, dt_t, alive, bias, SOFTPLUS, PRECISE)
    high, low = elapse(delta, rate, PRECISE)
    wide = load_tile(x, x_t, places, p, P, EVEN_P).to(tl.float32)
    grad = load_tile(grad_y, grad_t, places, p, P, EVEN_P).to(tl.float32)
    grad = tl.where(alive[:, None], grad, 0.0)
    fed = operand(wide * delta[:, None], OPERAND, LOST)
    skip = tl.zeros([BLOCK_P], tl.float32)
    if D is not None:
        skip = tl.load(D + head * (P if D_STEP == 1 else 1) + p * D_STEP, mask=here_p, other=0.0).to(tl.float32)

    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    behind = tl.zeros([CHUNK, BLOCK_P], tl.float32)  # what the adjoint gives to delta * x, less its decay
    ahead = tl.zeros([CHUNK, BLOCK_P], tl.float32)  # what the state gives to y, less its decay
    overlap = rate * 0.0
    for block in tl.static_range(BLOCKS_N):
        n = block * BLOCK_N + local_n
        into = load_tile(B, B_t, places, n, N, EVEN_N).to(OPERAND)
        out_of = load_tile(C, C_t, places, n, N, EVEN_N).to(OPERAND)
        state = load_state(states, n, p, N, P, P, 1)
        adjoint = load_state(adjoints, n, p, N, P, P, 1)
        overlap += tl.sum(tl.sum(state * adjoint, 1), 0)
        state_in = operand(state, OPERAND, LOST)
        adjoint_in = operand(adjoint, OPERAND, LOST)
        scores = tl.dot(out_of, tl.trans(into), scores, input_precision=PRODUCT)
        behind = tl.dot(into, adjoint_in, behind, input_precision=PRODUCT)
        if z is not None:
            ahead = tl.dot(out_of, state_in, ahead, input_precision=PRODUCT)
    scores *= decay_within(high, low, CHUNK, PRECISE)
    mixed = operand(scores, OPERAND, LOST)
    since_start = decay_since_start(high, low, PRECISE)
    to_end = decay_to_end(high, low, CHUNK, PRECISE)
    if z is not None:
        gate = load_tile(z, z_t, places, p, P, EVEN_P).to(tl.float32)
        opened = sigmoid(gate, PRECISE)
        out = ahead * since_start[:, None] + skip[None, :] * wide
        out += tl.dot(mixed, fed, input_precision=PRODUCT)
        found = grad * out * opened * (1.0 + gate * (1.0 - opened))
        tl.store(grad_z + at, found.to(grad_z.dtype.element_ty), mask=here)
        grad *= gate * opened
    grad_in = operand(grad, OPERAND, LOST)
    behind *= to_end[:, None]
    stored = tl.where(alive, delta * tl.sum(wide * behind, 1), 0.0)  # a product that no difference is fused with
    behind += tl.dot(tl.trans(mixed), grad_in, input_precision=PRODUCT)
    grad_delta = tl.sum(wide * behind, 1)
    found = behind * delta[:, None]
    if D is not None:
        found += skip[None, :] * grad
        tl.store(part_sums + local, tl.sum(grad * wide, 0))
    tl.store(grad_x + at, found.to(grad_x.dtype.element_ty), mask=here)

    pairs = tl.dot(grad_in, tl.trans(fed), input_precision=PRODUCT)
    lapse = crossings(pairs * scores, CHUNK, PRECISE)
    spread = operand(pairs * decay_within(high, low, CHUNK, PRECISE), OPERAND, LOST)
    touched = grad_delta * 0.0
    for block in tl.static_range(BLOCKS_N):
        n = block * BLOCK_N + local_n
        if BLOCKS_N > 1:
            into = load_tile(B, B_t, places, n, N, EVEN_N).to(OPERAND)
            out_of = load_tile(C, C_t, places, n, N, EVEN_N).to(OPERAND)
            state_in = operand(load_state(states, n, p, N, P, P, 1), OPERAND, LOST)
            adjoint_in = operand(load_state(adjoints, n, p, N, P, P, 1), OPERAND, LOST)
        at = places[:, None] * (PARTS * N) + n[None, :]
        here = alive[:, None] & (n < N)[None, :]
        found = tl.dot(grad_in, tl.trans(state_in), input_precision=PRODUCT) * since_start[:, None]
        touched += tl.sum(found * out_of.to(tl.float32), 1)
        found += tl.dot(spread, into, input_precision=PRODUCT)
        tl.store(part_C + at, found.to(part_C.dtype.element_ty), mask=here)
        found = tl.dot(fed, tl.trans(adjoint_in), input_precision=PRODUCT) * to_end[:, None]
        found += tl.dot(tl.trans(spread), out_of, input_precision=PRODUCT)
        tl.store(part_B + at, found.to(part_B.dtype.element_ty), mask=here)

    lapse += tl.cumsum(touched, 0, reverse=True) + tl.cumsum(stored, 0) - stored
    lapse += power(at_end(high + low, CHUNK), PRECISE) * overlap
    grad_delta += rate * lapse
    if SOFTPLUS:
        grad_delta *= sigmoid(raw, PRECISE)
    grad_delta = tl.where(alive, grad_delta, 0.0)
    tl.store(grad_dt + places * (H * BLOCKS), grad_delta.to(grad_dt.dtype.element_ty), mask=alive)
    tl.store(part_sums + BLOCK_P, tl.sum(lapse * delta, 0))
    tl.store(part_sums + BLOCK_P + 1, tl.sum(grad_delta, 0))


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(
    part_B, part_C, grad_B, grad_C, part_sums, grad_A, grad_D, grad_bias,
    rows, total_slots, first_head, first_group,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    SHARE: tl.constexpr,
    MORE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    D_STEP: tl.constexpr,
) -> None:  # fmt: skip
    """Add partial sums in their order: those of A, D and bias in the first HEADS programs, of B and C in the others.

    A row of the partial sums of B and C is (GROUPS, SHARE, N), one of the sums (G, N) of which the GROUPS from
    first_group on are written, or added to with MORE.
    """
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    BLOCKS_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    if program < HEADS:
        u = tl.arange(0, BLOCK_SLOTS)
        local = tl.arange(0, BLOCK_P)
        head = first_head + program
        total_A = tl.zeros([BLOCK_SLOTS], tl.float32)
        total_bias = tl.zeros([BLOCK_SLOTS], tl.float32)
        total_D = tl.zeros([BLOCK_SLOTS], tl.float32)
        for block in tl.static_range(BLOCKS):
            sums = tl.zeros([BLOCK_SLOTS, BLOCK_P], tl.float32)
            for i in range(0, total_slots, BLOCK_SLOTS):
                here = i + u < total_slots
                at = part_sums + ((i + u).to(tl.int64) * (HEADS * BLOCKS) + program * BLOCKS + block) * (BLOCK_P + 2)
                total_A += tl.load(at + BLOCK_P, mask=here, other=0.0)
                total_bias += tl.load(at + BLOCK_P + 1, mask=here, other=0.0)
                if grad_D is not None:
                    sums += tl.load(at[:, None] + local[None, :], mask=here[:, None], other=0.0)
            if grad_D is not None:
                p = block * BLOCK_P + local
                if D_STEP == 1:
                    tl.store(grad_D + head * P + p, tl.sum(sums, 0).to(grad_D.dtype.element_ty), mask=p < P)
                else:
                    total_D += tl.sum(tl.where((p < P)[None, :], sums, 0.0), 1)
        tl.store(grad_A + head, tl.sum(total_A, 0).to(grad_A.dtype.element_ty))
        if grad_bias is not None:
            tl.store(grad_bias + head, tl.sum(total_bias, 0).to(grad_bias.dtype.element_ty))
        if grad_D is not None and D_STEP == 0:
            tl.store(grad_D + head, tl.sum(total_D, 0).to(grad_D.dtype.element_ty))
    else:
        program -= HEADS
        n = (program // 2 % BLOCKS_N) * BLOCK_N + tl.arange(0, BLOCK_N)
        r = (program // (2 * BLOCKS_N)).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # of (lines, GROUPS)
        here = (r < rows)[:, None] & (n < N)[None, :]
        source = part_B
        target = grad_B
        if program % 2 == 1:
            source = part_C
            target = grad_C
        to = target + (r // GROUPS * G + first_group + r % GROUPS)[:, None] * N + n[None, :]
        at = source + r[:, None] * (SHARE * N) + n[None, :]
        total = tl.zeros([BLOCK_ROWS, BLOCK_N], tl.float32)
        if MORE:
            total = tl.load(to, mask=here, other=0.0).to(tl.float32)
        for i in range(0, SHARE):
            total += tl.load(at + i * N, mask=here, other=0.0).to(tl.float32)
        tl.store(to, total.to(target.dtype.element_ty), mask=here)
