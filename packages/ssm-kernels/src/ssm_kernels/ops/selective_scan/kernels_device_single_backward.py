"""The backward of scans with one state per channel on the device. Letters and terms are those of kernels_device_single.py."""

# This is Triton's language: a branch on a constexpr is decided when compiling; the file is left out of pyright
# (pyproject.toml).
# ruff: noqa: E501, PLR0912, PLR0915, SIM102

import triton
import triton.language as tl
from triton.language.standard import _sum_combine

from .kernels_device_single import AHEAD, SIZES, TENSORS, place_program
from .kernels_device_single_steps import (
    address,
    enter_span,
    load_tile,
    load_weights,
    locate,
    run,
    run_adjoint,
    time_steps,
)
from .kernels_device_steps import exponent, less, load_parameter, power, sigmoid


@triton.jit
def states_before(
    x, dt, B, rates, bias, state, begin, tiles, skipped, height, line, magic, count, back, column, d,
    WAY: tl.constexpr,
    ORDER: tl.constexpr,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    B_T: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MOST: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Return the state before each of `tiles` tiles of T steps but the `skipped` first ones, at most MOST."""
    t = tl.arange(0, T)
    k = tl.arange(0, MOST)
    starts = tl.zeros([MOST, BLOCK_D], tl.float32)
    place, offsets = locate(begin, t, count, height, line, magic, back, column, WAY, ORDER)
    xs = load_tile(x, d, place, offsets, X_T, WAY)
    dts = load_tile(dt, d, place, offsets, DT_T, WAY)
    Bs = load_weights(B, place, offsets, B_T)
    for tile in range(0, tiles - 1):
        place, offsets = locate(begin + (tile + 1) * T, t, count, height, line, magic, back, column, WAY, ORDER)
        xs_next = load_tile(x, d, place, offsets, X_T, WAY)
        dts_next = load_tile(dt, d, place, offsets, DT_T, WAY)
        Bs_next = load_weights(B, place, offsets, B_T)
        starts = tl.where((k == tile - skipped)[:, None], state[None, :], starts)
        delta, _ = time_steps(dts, bias[None, :], SOFTPLUS, PRECISE)
        a = power(delta * rates[None, :], PRECISE)
        _, _, state = run(a, delta * xs.to(tl.float32) * Bs.to(tl.float32)[:, None], state, t, T)
        xs = xs_next
        dts = dts_next
        Bs = Bs_next
    return tl.where((k == tiles - 1 - skipped)[:, None], state[None, :], starts)


@triton.jit
def sum_products(a, b, c, PRECISE: tl.constexpr):
    """Return the sum of a * b * c over the steps of a tile, in double precision if PRECISE."""
    if PRECISE:
        a = a.to(tl.float64)
    return tl.sum(a * b * c, 0)


@triton.jit
def backward_walk(
    x, dt, B, C, z, added, grad_y, grad_x, grad_dt, grad_z, part_BC, starts,
    A, rates, skip, bias, live, passed, sum_A, sum_D, sum_bias,
    begin, tiles, count, height, line, magic, back, column, d, here,
    WAY: tl.constexpr,
    ORDER: tl.constexpr,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    Z_T: tl.constexpr,
    B_T: tl.constexpr,
    C_T: tl.constexpr,
    GRAD_T: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    DIRS: tl.constexpr,
    SKIP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    SCALE: tl.constexpr,
    EVEN: tl.constexpr,
    MOST: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Differentiate `tiles` tiles of T steps, the last one first; return what passes on and the sums over time."""
    t = tl.arange(0, T)
    k = tl.arange(0, MOST)
    place, offsets = locate(begin + (tiles - 1) * T, t, count, height, line, magic, back, column, WAY, ORDER)
    xs = load_tile(x, d, place, offsets, X_T, WAY)
    dts = load_tile(dt, d, place, offsets, DT_T, WAY)
    gs = load_tile(grad_y, d, place, offsets, GRAD_T, WAY)
    Bs = load_weights(B, place, offsets, B_T)
    Cs = load_weights(C, place, offsets, C_T)
    gates = xs
    if z is not None:
        gates = load_tile(z, d, place, offsets, Z_T, WAY)
    for turn in range(0, tiles):
        tile = tiles - 1 - turn
        there, ahead = locate(
            begin + tl.maximum(tile - 1, 0) * T, t, count, height, line, magic, back, column, WAY, ORDER
        )
        xs_next = load_tile(x, d, there, ahead, X_T, WAY)
        dts_next = load_tile(dt, d, there, ahead, DT_T, WAY)
        gs_next = load_tile(grad_y, d, there, ahead, GRAD_T, WAY)
        Bs_next = load_weights(B, there, ahead, B_T)
        Cs_next = load_weights(C, there, ahead, C_T)
        gates_next = xs_next
        if z is not None:
            gates_next = load_tile(z, d, there, ahead, Z_T, WAY)
        if WAY != 1:
            place, offsets = locate(begin + tile * T, t, count, height, line, magic, back, column, WAY, ORDER)
        state = tl.reduce(tl.where((k == tile)[:, None], starts, 0.0), 0, _sum_combine)
        value = xs.to(tl.float32)
        into = Bs.to(tl.float32)[:, None]
        delta, slope = time_steps(dts, bias[None, :], SOFTPLUS, PRECISE)
        a = power(delta * rates[None, :], PRECISE)
        u = delta * value
        after, before, state = run(a, u * into, state, t, T)
        e = gs.to(tl.float32)
        if not EVEN:
            e *= live[None, :]
        if SCALE != 1.0:
            e *= SCALE
        out_weight = Cs.to(tl.float32)[:, None]
        if z is not None:
            gate = gates.to(tl.float32)
            sigma = sigmoid(gate, PRECISE)
            grad_gate = after * out_weight
            if SKIP:
                grad_gate += skip[None, :] * value
            grad_gate *= e * sigma * (1.0 + gate * (1.0 - sigma))
            if added is not None:
                grad_gate += load_tile(added, d, place, offsets, CHANNELS, WAY)
            at = address(grad_z, d, place, offsets, CHANNELS, WAY)
            tl.store(at, grad_gate.to(grad_z.dtype.element_ty), mask=here[None, :])
            e *= gate * sigma
        grads, passed = run_adjoint(a, e * out_weight, passed, t, T)
        kept = a * before  # times grads it is the gradient of delta * A
        grad_u = grads * into
        grad_delta = grad_u * value + kept * grads * A[None, :]
        if SOFTPLUS:
            grad_delta *= slope
        grad_value = grad_u * delta
        if SKIP:
            grad_value += skip[None, :] * e
            sum_D += sum_products(e, value, 1.0, PRECISE)
        sum_A += sum_products(kept, grads, delta, PRECISE)
        sum_bias += tl.sum(grad_delta.to(sum_bias.dtype), 0)
        at_x = address(grad_x, d, place, offsets, CHANNELS, WAY)
        at_dt = address(grad_dt, d, place, offsets, CHANNELS * DIRS, WAY)
        if EVEN:
            tl.store(at_x, grad_value.to(grad_x.dtype.element_ty))
            tl.store(at_dt, grad_delta.to(grad_dt.dtype.element_ty))
        else:
            tl.store(at_x, grad_value.to(grad_x.dtype.element_ty), mask=here[None, :])
            tl.store(at_dt, grad_delta.to(grad_dt.dtype.element_ty), mask=here[None, :])
        at_BC = part_BC + place * (2 * SHARED) + offsets * (2 * SHARED)
        tl.store(at_BC, tl.sum(grads * u, 1).to(part_BC.dtype.element_ty))
        tl.store(at_BC + 1, tl.sum(e * after, 1).to(part_BC.dtype.element_ty))
        xs = xs_next
        dts = dts_next
        gs = gs_next
        Bs = Bs_next
        Cs = Cs_next
        gates = gates_next
        if WAY == 1:
            offsets = ahead
    return passed, sum_A, sum_D, sum_bias


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=TENSORS)
def backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, grad_y, grad_final, saved, ends, totals, added,
    grad_x, grad_dt, grad_z, part_BC, sums, grad_initial,
    length, span, spans, height, line, magic, batches, A_rows, D_rows,
    x_b, dt_b, dt_k, z_b, B_b, B_g, C_b, C_g, grad_b,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    Z_T: tl.constexpr,
    B_T: tl.constexpr,
    C_T: tl.constexpr,
    GRAD_T: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    SCALE: tl.constexpr,
    CODES: tl.constexpr,
    KINDS: tl.constexpr,
    DIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    T: tl.constexpr,
) -> None:  # fmt: skip
    """Differentiate a span chunk by chunk, the last one first, with s[t] = a[t] * (C[t] * e[t] + s[t+1]) in registers.

    A chunk is walked twice: forwards from its saved state for the state before every tile, then backwards. The sums
    over the channels of a block go to `part_BC` (blocks, B, L, groups or directions, 2), those over time of A, D and
    the bias to `sums` (3, rows * spans, D).
    """
    WIDTH: tl.constexpr = CHANNELS // GROUPS
    EVEN: tl.constexpr = WIDTH % BLOCK_D == 0
    SHARED: tl.constexpr = GROUPS * DIRS
    # against the order of memory: never, always, or as the direction says
    ORDER: tl.constexpr = 0 if KINDS < 4 else (1 if KINDS % 4 == 0 else 2)
    program = tl.program_id(0).to(tl.int64)
    row, batch, direction, number, begin, steps, group, block, d, here = place_program(
        program, length, span, spans, CHANNELS, GROUPS, DIRS, BLOCK_D
    )
    column = ((CODES >> (2 * direction)) & 1) != 0
    back = ((CODES >> (2 * direction)) & 2) != 0
    x += batch * x_b
    dt += batch * dt_b + direction * dt_k.to(tl.int64)
    B += batch * B_b + (group + direction) * B_g.to(tl.int64)
    C += batch * C_b + (group + direction) * C_g.to(tl.int64)
    grad_y += batch * grad_b
    grad_x += (direction * batches + batch) * length * CHANNELS
    grad_dt += (batch * length * DIRS + direction) * CHANNELS
    if z is not None:
        z += batch * z_b
        grad_z += batch * length * CHANNELS
    if added is not None:
        added += batch * length * CHANNELS
    saved += row * tl.cdiv(length, CHUNK) * CHANNELS + d
    part_BC += ((block * batches + batch) * length * SHARED + group + direction) * 2
    raw_rates = tl.load(A + (row % A_rows) * CHANNELS + d)
    rates = exponent(raw_rates, PRECISE)
    skip = load_parameter(D, (row % D_rows) * CHANNELS, d, here, BLOCK_D)
    bias = load_parameter(dt_bias, direction * CHANNELS, d, here, BLOCK_D)
    live = tl.where(here, 1.0, 0.0)
    passed = load_parameter(grad_final, row * CHANNELS, d, here, BLOCK_D)
    if ends is not None:
        at = (row * spans + spans - 1) * CHANNELS + d[None, :]
        passed = enter_span(ends + at, totals + at, passed, spans - 1 - number, -CHANNELS, here[None, :], AHEAD)
    LONG: tl.constexpr = tl.float64 if PRECISE else tl.float32  # of sums over time, in which terms cancel
    sum_A = tl.zeros([BLOCK_D], LONG)
    sum_D = tl.zeros([BLOCK_D], LONG)
    sum_bias = tl.zeros([BLOCK_D], LONG)
    full = steps // T * T
    if full < steps:  # what fills no tile comes last, and first here
        first = full // CHUNK * CHUNK
        state = tl.load(saved + ((begin + first) // CHUNK).to(tl.int64) * CHANNELS, mask=here, other=0.0)
        starts = states_before(
            x, dt, B, rates, bias, state, begin + first, steps - first, full - first, height, line, magic, length, back,
            column, d, 2, 2, X_T, DT_T, B_T, SOFTPLUS, PRECISE, BLOCK_D, T, 1,
        )  # fmt: skip
        passed, sum_A, sum_D, sum_bias = backward_walk(
            x, dt, B, C, z, added, grad_y, grad_x, grad_dt, grad_z, part_BC, starts,
            raw_rates, rates, skip, bias, live, passed, sum_A, sum_D, sum_bias,
            begin + full, steps - full, length, height, line, magic, back, column, d, here,
            2, 2, X_T, DT_T, Z_T, B_T, C_T, GRAD_T, CHANNELS, SHARED, DIRS,
            D is not None, SOFTPLUS, PRECISE, SCALE, EVEN, T, 1,
        )  # fmt: skip
    chunks = tl.cdiv(full, CHUNK)
    for way in tl.static_range(2):
        if KINDS & (5 << way):
            if column == (way == 1):
                for turn in range(0, chunks):
                    first = (chunks - 1 - turn) * CHUNK
                    tiles = tl.minimum(full - first, CHUNK).to(tl.int32) // T
                    i = begin + first
                    state = tl.load(saved + (i // CHUNK).to(tl.int64) * CHANNELS, mask=here, other=0.0)
                    starts = states_before(
                        x, dt, B, rates, bias, state, i, tiles, 0, height, line, magic, length, back, column, d,
                        way, ORDER, X_T, DT_T, B_T, SOFTPLUS, PRECISE, BLOCK_D, CHUNK // T, T,
                    )  # fmt: skip
                    passed, sum_A, sum_D, sum_bias = backward_walk(
                        x, dt, B, C, z, added, grad_y, grad_x, grad_dt, grad_z, part_BC, starts,
                        raw_rates, rates, skip, bias, live, passed, sum_A, sum_D, sum_bias,
                        i, tiles, length, height, line, magic, back, column, d, here,
                        way, ORDER, X_T, DT_T, Z_T, B_T, C_T, GRAD_T, CHANNELS, SHARED, DIRS,
                        D is not None, SOFTPLUS, PRECISE, SCALE, EVEN, CHUNK // T, T,
                    )  # fmt: skip
    at = (row * spans + number) * CHANNELS + d
    parts = (tl.num_programs(0) // (GROUPS * ((WIDTH + BLOCK_D - 1) // BLOCK_D))).to(tl.int64) * CHANNELS
    tl.store(sums + at, sum_A.to(tl.float32), mask=here)
    tl.store(sums + parts + at, sum_D.to(tl.float32), mask=here)
    tl.store(sums + 2 * parts + at, sum_bias.to(tl.float32), mask=here)
    tl.store(grad_initial + row * CHANNELS + d, passed, mask=here & less(begin, 1, d))
