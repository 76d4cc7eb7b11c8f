"""The forward of the selective scans, in one and in two dimensions, on the device; kernels.py launches it.

Letters: B batch, L length, D channels, N state, G groups, K directions. A row is what one recurrence runs along: a batch
row, a packed sequence, or one direction of an image. A slot is one of its chunks, counted over all rows; a unit is what
one program walks, a whole row or a span of its chunks. Index i counts steps in scan order, p is a place in memory;
`find_place` and `onwards` are the map between them and nothing else.

Lanes are channels, so that loads are coalesced and a lane holds all N states of its channel in registers: no
reduction over n ever leaves a thread. For that every state is stored as (N, D), and addresses of states are kept from
being vectorised (`do_not_specialize_on_alignment`), since the compiler would spread N over the lanes. All arithmetic
is float32 from the load on. L, B and what depends on them is not specialised on, so that a new size compiles nothing.
"""
# This is Triton's language: a branch on a constexpr is decided when compiling, and tuples grow as they are unrolled,
# which no type checker follows in reasonable time; the file is left out of pyright (pyproject.toml).
# ruff: noqa: E501, PLR0912, PLR0915, RUF005, RUF059, SIM102, SIM108

import triton
import triton.language as tl

from .kernels_device_steps import (
    LARGEST,
    SIZES,
    STATES,
    advance,
    block_channels,
    count_steps,
    exponent,
    find_course,
    find_places,
    find_unit,
    less,
    load,
    load_parameter,
    load_steps,
    power,
    sigmoid,
    step_size,
    unpack,
)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def forward_kernel(
    x, dt, A, B, C, D, z, dt_bias, initial, added, y, saved, entering, final,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans, pieces, height, line, batches, groups, width, A_rows, D_rows, scale,
    x_b, x_t, dt_b, dt_k, dt_t, z_b, z_t, B_b, B_g, B_t, C_b, C_g, C_t,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    PARALLEL: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WORDS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    REVERSE: tl.constexpr,
    CODES: tl.constexpr,
    DIRS: tl.constexpr,
    PLANE: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
) -> None:  # fmt: skip
    """Walk a unit with the state in registers, the loads of the next STEPS steps under way during the present ones."""
    PER_WORD: tl.constexpr = 1 if WORDS == 0 else 2
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks)
    group, d, here_d = block_channels((program % (groups * blocks)).to(tl.int32), blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    steps = count_steps(count, first, span, PARALLEL, CHUNK)
    stride, wrap = find_course(direction, height, line, REVERSE, CODES, PLANE)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_N // PER_WORD)
    here_w = (w * PER_WORD < N) & less(0, steps, w)  # an empty sequence may begin behind the last step
    tile = n[None, :] * channels + d[:, None]
    here = here_d[:, None] & (n < N)[None, :]
    x += batch * x_b + begin * x_t + d
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t + d
    B += (batch * B_b + (group + row % DIRS) * B_g + begin * B_t) * ALIGN + w
    C += (batch * C_b + (group + row % DIRS) * C_g + begin * C_t) * ALIGN + w
    y += ((row % DIRS * batches + batch) * length + begin) * channels + d
    if z is not None:
        z += batch * z_b + begin * z_t + d
    if added is not None:
        added += (batch * length + begin) * channels + d
    rates = exponent(load(A + (row % A_rows) * channels * N + tile, here), PRECISE)
    skip = load_parameter(D, (row % D_rows) * channels, d, here_d, BLOCK_D)
    bias = load_parameter(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
    if PARALLEL:
        state = load(entering + unit * pieces * channels * N + tile, here)
    elif initial is not None:
        state = load(initial + row * channels * N + tile, here)
    else:
        state = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)

    begin_i = (first * CHUNK).to(tl.int64 if WIDE else tl.int32)
    places = find_places(
        0, begin_i, steps, count, direction, height, line, REVERSE, stride, wrap, STEPS, CODES, PLANE, WIDE
    )
    here_0 = here_d & less(0, steps, d)
    xs = load_steps(x, places, x_t, here_0, False, STEPS)
    dts = load_steps(dt, places, dt_t, here_0, False, STEPS)
    Bs = load_steps(B, places, B_t * ALIGN, here_w, False, STEPS)
    Cs = load_steps(C, places, C_t * ALIGN, here_w, False, STEPS)
    gates = xs
    if z is not None:
        gates = load_steps(z, places, z_t, here_0, False, STEPS)
    for i in range(0, steps, STEPS):
        if saved is not None:
            if i % CHUNK == 0:
                tl.store(saved + (base + first + i // CHUNK) * channels * N + tile, state, mask=here)
        places = find_places(
            i, begin_i, steps, count, direction, height, line, REVERSE, stride, wrap, STEPS, CODES, PLANE, WIDE
        )
        places_next = find_places(
            i + STEPS, begin_i, steps, count, direction, height, line, REVERSE, stride, wrap, STEPS, CODES, PLANE, WIDE
        )
        xs_next = load_steps(x, places_next, x_t, here_d, EVEN, STEPS)
        dts_next = load_steps(dt, places_next, dt_t, here_d, EVEN, STEPS)
        Bs_next = load_steps(B, places_next, B_t * ALIGN, here_w, FULL, STEPS)
        Cs_next = load_steps(C, places_next, C_t * ALIGN, here_w, FULL, STEPS)
        gates_next = xs_next
        if z is not None:
            gates_next = load_steps(z, places_next, z_t, here_d, EVEN, STEPS)
        for j in tl.static_range(STEPS):
            alive = here_d & less(i + j, steps, d)
            value = xs[j].to(tl.float32)
            delta = step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
            state = advance(state, rates, delta, delta * value, unpack(Bs[j], WORDS), PRECISE)
            out = tl.sum(state * unpack(Cs[j], WORDS)[None, :], 1) + skip * value
            at = places[j] * channels
            if added is not None:
                out += load(added + at, alive)
            if z is not None:
                gate = gates[j].to(tl.float32)
                out *= gate * sigmoid(gate, PRECISE)
            tl.store(y + at, (out * scale).to(y.dtype.element_ty), mask=alive)
        xs = xs_next
        dts = dts_next
        Bs = Bs_next
        Cs = Cs_next
        gates = gates_next
    if PARALLEL:  # a row ends with its last unit; packed rows may have fewer units than there are
        here &= less(0, steps, tile) & less(count - first * CHUNK, span * CHUNK + 1, tile)
    tl.store(final + row * channels * N + tile, state, mask=here)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def local_kernel(
    x, dt, A, W, z, dt_bias, ends, totals,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans, pieces, height, line, groups, width, A_rows, scale,
    x_b, x_t, dt_b, dt_k, dt_t, z_b, z_t, W_b, W_g, W_t,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    PARALLEL: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WORDS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    REVERSE: tl.constexpr,
    CODES: tl.constexpr,
    DIRS: tl.constexpr,
    PLANE: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    ADJOINT: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
) -> None:  # fmt: skip
    """Run one of the pieces of a unit from zero: its end state and the product of its decays.

    Forwards x is x and W is B. ADJOINT walks the unit from its last step, x is the gradient of y and W is C. The unit
    at which the walk along the row ends is left out: nobody asks what leaves it.
    """
    PER_WORD: tl.constexpr = 1 if WORDS == 0 else 2
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(width, BLOCK_D)
    piece = program // (groups * blocks)
    unit = piece // pieces
    group, d, here_d = block_channels((program % (groups * blocks)).to(tl.int32), blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    if ADJOINT:
        wanted = first > 0
    else:
        wanted = (first + span) * CHUNK < count
    share = tl.cdiv(span, pieces)
    start = (piece - unit * pieces) * share
    steps = count_steps(count, first + start, tl.maximum(tl.minimum(share, span - start), 0), PARALLEL, CHUNK)
    steps = tl.where(wanted, steps, 0)
    first += start
    stride, wrap = find_course(direction, height, line, REVERSE, CODES, PLANE)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_N // PER_WORD)
    here_w = (w * PER_WORD < N) & less(0, steps, w)
    tile = n[None, :] * channels + d[:, None]
    here = here_d[:, None] & (n < N)[None, :]
    x += batch * x_b + begin * x_t + d
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t + d
    W += (batch * W_b + (group + row % DIRS) * W_g + begin * W_t) * ALIGN + w
    if z is not None:
        z += batch * z_b + begin * z_t + d
    rates = exponent(load(A + (row % A_rows) * channels * N + tile, here), PRECISE)
    bias = load_parameter(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
    state = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    elapsed = tl.zeros([BLOCK_D], tl.float32)

    begin_i = (first * CHUNK).to(tl.int64 if WIDE else tl.int32)
    places = find_places(
        0, begin_i, steps, count, direction, height, line, REVERSE, stride, wrap, STEPS, CODES, PLANE, WIDE, ADJOINT
    )
    here_0 = here_d & less(0, steps, d)
    xs = load_steps(x, places, x_t, here_0, False, STEPS)
    dts = load_steps(dt, places, dt_t, here_0, False, STEPS)
    Ws = load_steps(W, places, W_t * ALIGN, here_w, False, STEPS)
    gates = xs
    if z is not None:
        gates = load_steps(z, places, z_t, here_0, False, STEPS)
    for i in range(0, steps, STEPS):
        places_next = find_places(
            i + STEPS, begin_i, steps, count, direction, height, line, REVERSE, stride, wrap,
            STEPS, CODES, PLANE, WIDE, ADJOINT,
        )  # fmt: skip
        xs_next = load_steps(x, places_next, x_t, here_d, EVEN, STEPS)
        dts_next = load_steps(dt, places_next, dt_t, here_d, EVEN, STEPS)
        Ws_next = load_steps(W, places_next, W_t * ALIGN, here_w, FULL, STEPS)
        gates_next = xs_next
        if z is not None:
            gates_next = load_steps(z, places_next, z_t, here_d, EVEN, STEPS)
        for j in tl.static_range(STEPS):
            alive = here_d & less(i + j, steps, d)
            value = xs[j].to(tl.float32)
            delta = step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
            elapsed += delta
            weights = unpack(Ws[j], WORDS)
            if ADJOINT:
                value = tl.where(alive, value * scale, 0.0)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    value *= gate * sigmoid(gate, PRECISE)
                state = power(delta[:, None] * rates, PRECISE) * (state + value[:, None] * weights[None, :])
            else:
                state = advance(state, rates, delta, delta * value, weights, PRECISE)
        xs = xs_next
        dts = dts_next
        Ws = Ws_next
        gates = gates_next
    tl.store(ends + piece * channels * N + tile, state, mask=here)
    # a growing system may overflow here, yet its product with a zero state is zero
    total = tl.minimum(power(elapsed[:, None] * rates, PRECISE), LARGEST)
    tl.store(totals + piece * channels * N + tile, total, mask=here)


@triton.jit(do_not_specialize=SIZES)
def carry_kernel(
    ends, totals, initial, final, span_base, spans, size, ADJOINT: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr
) -> None:  # fmt: skip
    """Replace what every unit adds by the state that enters it, along one row; ADJOINT from the last unit."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    row = program // blocks
    entry = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    if span_base is None:
        base = row * spans
        units = (row * 0 + spans).to(tl.int32)
    else:
        base = tl.load(span_base + row)
        units = (tl.load(span_base + row + 1) - base).to(tl.int32)
    state = tl.zeros([BLOCK], tl.float32)
    if initial is not None:
        state = tl.load(initial + row * size + entry, mask=here, other=0.0)
    for first in range(0, units, AHEAD):
        slots = ()
        added = ()
        passed = ()
        for j in tl.static_range(AHEAD):
            unit = units - 1 - first - j if ADJOINT else first + j
            slot = (base + unit) * size + entry
            alive = here & less(first + j, units, entry)
            slots = slots + (slot,)
            added = added + (tl.load(ends + slot, mask=alive, other=0.0),)
            passed = passed + (tl.load(totals + slot, mask=alive, other=0.0),)
        for j in tl.static_range(AHEAD):
            alive = here & less(first + j, units, entry)
            tl.store(ends + slots[j], state, mask=alive)
            state = tl.where(alive, passed[j] * state + added[j], state)
    tl.store(final + row * size + entry, state, mask=here)


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(parts, out, base, size, BLOCK: tl.constexpr) -> None:
    """Add a row's partial sums in their order."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    row = program // blocks
    entry = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    begin = tl.load(base + row)
    count = (tl.load(base + row + 1) - begin).to(tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(0, count):
        total += tl.load(parts + (begin + j) * size + entry, mask=here, other=0.0)
    tl.store(out + row * size + entry, total, mask=here)


@triton.jit(do_not_specialize=SIZES)
def sum_pairs_kernel(parts, first, second, count, size, BLOCK: tl.constexpr, AHEAD: tl.constexpr) -> None:
    """Add (count, size, 2) over the first axis in its order, and part the pairs: the gradients of B and C."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    both = 2 * entry[:, None] + tl.arange(0, 2)[None, :]
    total = tl.zeros([BLOCK, 2], tl.float32)
    for begin in range(0, count, AHEAD):
        values = ()
        for j in tl.static_range(AHEAD):
            k = begin + j
            alive = here[:, None] & less(k, count, both)
            values = values + (tl.load(parts + k.to(tl.int64) * 2 * size + both, mask=alive, other=0.0),)
        for j in tl.static_range(AHEAD):
            total += values[j].to(tl.float32)
    left, right = tl.split(total)
    tl.store(first + entry, left.to(first.dtype.element_ty), mask=here)
    tl.store(second + entry, right.to(second.dtype.element_ty), mask=here)
