"""The forward of scans with one state per channel, on the device; kernels_single.py launches it.

Letters: B batch, L length, D channels, G groups, K directions, T steps of a tile. A row is what one recurrence runs
along: a batch row or one direction of an image. A span is a part of a row that one program walks, tile by tile, with
the raw values of the next tile under way while it computes the present one; steps that fill no tile go one by one.
Index i counts steps in scan order.

Channels that a block has too many are the last channel once more: its values are loaded, not stored, and cost no mask.
The number of channels and the strides along a row are compiled in, so that the addresses of a row's tile are one
register and constants; batch, length and the size of an image are not.
"""

# This is Triton's language: a branch on a constexpr is decided when compiling; the file is left out of pyright
# (pyproject.toml).
# ruff: noqa: E501, PLR0912, PLR0915, SIM102

import triton
import triton.language as tl

from .kernels_device_single_steps import address, enter_span, load_tile, load_weights, locate, run, time_steps
from .kernels_device_steps import LARGEST, exponent, less, load_parameter, power, sigmoid

# not specialised on: a new value compiles nothing, and nobody may conclude that addresses are aligned
SIZES = ["length", "span", "spans", "height", "line", "magic", "batches", "A_rows", "D_rows", "x_b", "dt_b", "dt_k"]
SIZES += ["z_b", "B_b", "B_g", "C_b", "C_g", "W_b", "W_g", "grad_b"]
TENSORS = [
    "x",
    "dt",
    "A",
    "B",
    "C",
    "W",
    "D",
    "z",
    "dt_bias",
    "initial",
    "added",
    "y",
    "saved",
    "ends",
    "totals",
    "final",
]
TENSORS += ["grad_y", "grad_final", "grad_x", "grad_dt", "grad_z", "part_BC", "sums", "grad_initial"]
AHEAD = tl.constexpr(16)  # spans whose ends are loaded at once


@triton.jit
def place_program(program, length, span, spans, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, DIRS: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Return a program's row, batch index, direction, span, its first step and number of steps, group, block, channels and which of them exist."""
    WIDTH: tl.constexpr = CHANNELS // GROUPS
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    unit = program // (GROUPS * BLOCKS)
    part = (program % (GROUPS * BLOCKS)).to(tl.int32)
    row = unit // spans
    number = (unit - row * spans).to(length.dtype)
    begin = number * span
    steps = tl.minimum(length - begin, span)
    group = part // BLOCKS
    block = part % BLOCKS
    local = block * BLOCK_D + tl.arange(0, BLOCK_D)
    # the hint makes channels the lanes of a warp; addresses are never aligned enough for it to make a thread load two
    d = tl.max_contiguous(group * WIDTH + tl.minimum(local, WIDTH - 1), BLOCK_D)
    return row, row // DIRS, (row % DIRS).to(tl.int32), number, begin, steps, group, block, d, local < WIDTH


@triton.jit
def forward_walk(
    x, dt, B, C, z, added, y, saved, rates, skip, bias, state, begin, steps, count, height, line, magic, back, column, d, here,
    WAY: tl.constexpr,
    ORDER: tl.constexpr,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    Z_T: tl.constexpr,
    B_T: tl.constexpr,
    C_T: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    SKIP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    SCALE: tl.constexpr,
    EVEN: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Walk `steps` steps, a multiple of T and not 0; return the state behind them."""
    t = tl.arange(0, T)
    last = begin + steps - T
    place, offsets = locate(begin, t, count, height, line, magic, back, column, WAY, ORDER)
    xs = load_tile(x, d, place, offsets, X_T, WAY)
    dts = load_tile(dt, d, place, offsets, DT_T, WAY)
    Bs = load_weights(B, place, offsets, B_T)
    Cs = load_weights(C, place, offsets, C_T)
    gates = xs
    if z is not None:
        gates = load_tile(z, d, place, offsets, Z_T, WAY)
    for walked in range(0, steps, T):
        i = begin + walked
        if saved is not None:
            if i % CHUNK == 0:
                tl.store(saved + (i // CHUNK).to(tl.int64) * CHANNELS, state, mask=here)
        there, ahead = locate(tl.minimum(i + T, last), t, count, height, line, magic, back, column, WAY, ORDER)
        xs_next = load_tile(x, d, there, ahead, X_T, WAY)
        dts_next = load_tile(dt, d, there, ahead, DT_T, WAY)
        Bs_next = load_weights(B, there, ahead, B_T)
        Cs_next = load_weights(C, there, ahead, C_T)
        gates_next = xs_next
        if z is not None:
            gates_next = load_tile(z, d, there, ahead, Z_T, WAY)
        if WAY != 1:
            place, offsets = locate(i, t, count, height, line, magic, back, column, WAY, ORDER)
        value = xs.to(tl.float32)
        delta, _ = time_steps(dts, bias[None, :], SOFTPLUS, PRECISE)
        a = power(delta * rates[None, :], PRECISE)
        states, _, state = run(a, delta * value * Bs.to(tl.float32)[:, None], state, t, T)
        out = states * Cs.to(tl.float32)[:, None]
        if SKIP:
            out += skip[None, :] * value
        if added is not None:
            out += load_tile(added, d, place, offsets, CHANNELS, WAY)
        if z is not None:
            gate = gates.to(tl.float32)
            out *= gate * sigmoid(gate, PRECISE)
        if SCALE != 1.0:
            out *= SCALE
        at = address(y, d, place, offsets, CHANNELS, WAY)
        if EVEN:
            tl.store(at, out.to(y.dtype.element_ty))
        else:
            tl.store(at, out.to(y.dtype.element_ty), mask=here[None, :])
        xs = xs_next
        dts = dts_next
        Bs = Bs_next
        Cs = Cs_next
        gates = gates_next
        if WAY == 1:
            offsets = ahead
    return state


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=TENSORS)
def forward_kernel(
    x, dt, A, B, C, D, z, dt_bias, initial, added, y, saved, ends, totals, final,
    length, span, spans, height, line, magic, batches, A_rows, D_rows,
    x_b, dt_b, dt_k, z_b, B_b, B_g, C_b, C_g,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    Z_T: tl.constexpr,
    B_T: tl.constexpr,
    C_T: tl.constexpr,
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
    """Walk a span with the state in registers, from the state that the spans before it leave.

    Two bits of CODES per direction: the lower for columns, the upper for reversed. KINDS has a bit for each of the four
    that occur: a walk is compiled for each, since its addresses depend on it.
    """
    EVEN: tl.constexpr = (CHANNELS // GROUPS) % BLOCK_D == 0
    program = tl.program_id(0).to(tl.int64)
    row, batch, direction, number, begin, steps, group, _, d, here = place_program(
        program, length, span, spans, CHANNELS, GROUPS, DIRS, BLOCK_D
    )
    code = (CODES >> (2 * direction)) & 3
    x += batch * x_b
    dt += batch * dt_b + direction * dt_k.to(tl.int64)
    B += batch * B_b + (group + direction) * B_g.to(tl.int64)
    C += batch * C_b + (group + direction) * C_g.to(tl.int64)
    y += (direction * batches + batch) * length * CHANNELS
    if z is not None:
        z += batch * z_b
    if added is not None:
        added += batch * length * CHANNELS
    if saved is not None:
        saved += row * tl.cdiv(length, CHUNK) * CHANNELS + d
    rates = exponent(tl.load(A + (row % A_rows) * CHANNELS + d), PRECISE)
    skip = load_parameter(D, (row % D_rows) * CHANNELS, d, here, BLOCK_D)
    bias = load_parameter(dt_bias, direction * CHANNELS, d, here, BLOCK_D)
    state = load_parameter(initial, row * CHANNELS, d, here, BLOCK_D)
    if ends is not None:
        at = row * spans * CHANNELS + d[None, :]
        state = enter_span(ends + at, totals + at, state, number, CHANNELS, here[None, :], AHEAD)
    full = steps // T * T
    for kind in tl.static_range(4):
        if (KINDS >> kind) & 1:
            if (full > 0) & (code == kind):
                state = forward_walk(
                    x, dt, B, C, z, added, y, saved, rates, skip, bias, state, begin, full, length, height, line, magic,
                    kind >= 2, False, d, here, kind & 1, kind >> 1, X_T, DT_T, Z_T, B_T, C_T, CHANNELS, CHUNK, D is not None,
                    SOFTPLUS, PRECISE, SCALE, EVEN, T,
                )  # fmt: skip
    if full < steps:
        state = forward_walk(
            x, dt, B, C, z, added, y, saved, rates, skip, bias, state, begin + full, steps - full, length, height, line,
            magic, (code & 2) != 0, (code & 1) != 0, d, here, 2, 2, X_T, DT_T, Z_T, B_T, C_T, CHANNELS, CHUNK, D is not None,
            SOFTPLUS, PRECISE, SCALE, EVEN, 1,
        )  # fmt: skip
    tl.store(final + row * CHANNELS + d, state, mask=here & less(length - begin - steps, 1, d))


@triton.jit
def local_walk(
    x, dt, W, z, rates, bias, state, elapsed, begin, steps, count, height, line, magic, back, column, d,
    WAY: tl.constexpr,
    ORDER: tl.constexpr,
    ADJOINT: tl.constexpr,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    Z_T: tl.constexpr,
    W_T: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    SCALE: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Walk `steps` steps, a multiple of T and not 0; return the state behind them and the sum of all delta."""
    t = tl.arange(0, T)
    last = begin + steps - T
    place, offsets = locate(begin, t, count, height, line, magic, back, column, WAY, ORDER)
    xs = load_tile(x, d, place, offsets, X_T, WAY)
    dts = load_tile(dt, d, place, offsets, DT_T, WAY)
    Ws = load_weights(W, place, offsets, W_T)
    gates = xs
    if z is not None:
        gates = load_tile(z, d, place, offsets, Z_T, WAY)
    for walked in range(0, steps, T):
        place, offsets = locate(
            tl.minimum(begin + walked + T, last), t, count, height, line, magic, back, column, WAY, ORDER
        )
        xs_next = load_tile(x, d, place, offsets, X_T, WAY)
        dts_next = load_tile(dt, d, place, offsets, DT_T, WAY)
        Ws_next = load_weights(W, place, offsets, W_T)
        gates_next = xs_next
        if z is not None:
            gates_next = load_tile(z, d, place, offsets, Z_T, WAY)
        delta, _ = time_steps(dts, bias[None, :], SOFTPLUS, PRECISE)
        value = xs.to(tl.float32)
        a = power(delta * rates[None, :], PRECISE)
        if ADJOINT:
            if SCALE != 1.0:
                value *= SCALE
            if z is not None:
                gate = gates.to(tl.float32)
                value *= gate * sigmoid(gate, PRECISE)
            value *= a
        else:
            value *= delta
        _, _, state = run(a, value * Ws.to(tl.float32)[:, None], state, t, T)
        elapsed += tl.sum(delta, 0)
        xs = xs_next
        dts = dts_next
        Ws = Ws_next
        gates = gates_next
    return state, elapsed


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=TENSORS)
def local_kernel(
    x, dt, A, W, z, dt_bias, ends, totals,
    length, span, spans, height, line, magic, A_rows,
    x_b, dt_b, dt_k, z_b, W_b, W_g,
    X_T: tl.constexpr,
    DT_T: tl.constexpr,
    Z_T: tl.constexpr,
    W_T: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    SCALE: tl.constexpr,
    CODES: tl.constexpr,
    KINDS: tl.constexpr,
    DIRS: tl.constexpr,
    ADJOINT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    T: tl.constexpr,
) -> None:  # fmt: skip
    """Run one span from zero: its end state and the product of its decays.

    Forwards x is x and W is B; the last span is left out, since nobody asks what leaves it. ADJOINT walks a row the
    other way round, x is the gradient of y, W is C, and the first span is left out.
    """
    program = tl.program_id(0).to(tl.int64)
    row, batch, direction, number, begin, steps, group, _, d, here = place_program(
        program, length, span, spans - 1, CHANNELS, GROUPS, DIRS, BLOCK_D
    )
    code = (CODES >> (2 * direction)) & 3
    if ADJOINT:
        number += 1
        steps = tl.minimum(length - begin - span, span)
        begin = length - begin - span - steps
        code = code ^ 2
    x += batch * x_b
    dt += batch * dt_b + direction * dt_k.to(tl.int64)
    W += batch * W_b + (group + direction) * W_g.to(tl.int64)
    if z is not None:
        z += batch * z_b
    rates = exponent(tl.load(A + (row % A_rows) * CHANNELS + d), PRECISE)
    bias = load_parameter(dt_bias, direction * CHANNELS, d, here, BLOCK_D)
    state = tl.zeros([BLOCK_D], tl.float32)
    elapsed = tl.zeros([BLOCK_D], tl.float32)
    full = steps // T * T
    for kind in tl.static_range(4):
        if (KINDS >> (kind ^ 2 if ADJOINT else kind)) & 1:
            if (full > 0) & (code == kind):
                state, elapsed = local_walk(
                    x, dt, W, z, rates, bias, state, elapsed, begin, full, length, height, line, magic, kind >= 2, False, d,
                    kind & 1, kind >> 1, ADJOINT, X_T, DT_T, Z_T, W_T, SOFTPLUS, PRECISE, SCALE, T,
                )  # fmt: skip
    if full < steps:
        state, elapsed = local_walk(
            x, dt, W, z, rates, bias, state, elapsed, begin + full, steps - full, length, height, line, magic, (code & 2) != 0, (code & 1) != 0, d,
            2, 2, ADJOINT, X_T, DT_T, Z_T, W_T, SOFTPLUS, PRECISE, SCALE, 1,
        )  # fmt: skip
    at = (row * spans + number) * CHANNELS + d
    tl.store(ends + at, state, mask=here)
    # a growing system may overflow here, yet its product with a zero state is zero
    tl.store(totals + at, tl.minimum(power(elapsed * rates, PRECISE), LARGEST), mask=here)
