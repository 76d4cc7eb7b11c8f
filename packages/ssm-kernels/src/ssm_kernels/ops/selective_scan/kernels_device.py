"""The device code of the selective scans, in one and in two dimensions; kernels.py launches it.

Letters: B batch, L length, D channels, N state, G groups, K directions. A row is what one recurrence runs along: a batch
row, a packed sequence, or one direction of an image. A slot is one of its chunks, counted over all rows; a unit is what
one program walks, a whole row or a span of its chunks. Index i counts steps in scan order, p is a place in memory;
`_place` and `_onwards` are the map between them and nothing else.

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

LARGEST = tl.constexpr(3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)

# not specialised on: a new value compiles nothing, and nobody may conclude how states are aligned
SIZES = ["first_program", "length", "slots", "span", "spans", "height", "line", "batches", "width", "A_rows", "D_rows"]
SIZES += ["size", "x_b", "dt_b", "z_b", "B_b", "C_b", "W_b", "grad_b"]
STATES = [
    "A",
    "initial",
    "saved",
    "final",
    "entering",
    "ends",
    "totals",
    "adjoints",
    "scratch",
    "part_A",
    "grad_initial",
]


@triton.jit
def _power(x, PRECISE: tl.constexpr):
    """Return 2**x by the special-function unit; PRECISE is e**x to the last bit, by a polynomial on what ln(2) leaves."""
    if PRECISE:
        x = tl.minimum(tl.maximum(x, -120.0), 120.0)
        whole = tl.floor(x * LOG2_E + 0.5)
        f = (x - whole * 0.693145751953125) - whole * 1.42860682030941723e-6  # ln(2) in two pieces
        series = 1 / 6 + f * (1 / 24 + f * (1 / 120 + f * (1 / 720 + f * (1 / 5040))))
        result = (1.0 + (f + f * f * (0.5 + f * series))) * tl.exp2(whole)
    else:
        result = tl.exp2(x)
    return result


@triton.jit
def _exponent(x, PRECISE: tl.constexpr):
    """Return what `_power` makes exp(x) of."""
    return x if PRECISE else x * LOG2_E


@triton.jit
def _softplus(x, PRECISE: tl.constexpr):
    """Return log(1 + exp(x)), relatively accurate in both tails: a step of 1e-6 is not 0.

    log1p is a series in s = e / (2 + e), where s is at most 1/3; PRECISE divides to the last bit.
    """
    e = _power(_exponent(-tl.abs(x), PRECISE), PRECISE)
    s = tl.div_rn(e, 2.0 + e) if PRECISE else e / (2.0 + e)
    q = s * s
    series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15))))))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)


@triton.jit
def _add(total, lost, value, PRECISE: tl.constexpr):
    """Add to a long sum; PRECISE carries what rounding lost along (Kahan 1965), since the sum is a sequential one."""
    if PRECISE:
        value -= lost
        new = total + value
        lost = (new - total) - value
    else:
        new = total + value
    return new, lost


@triton.jit
def _sigmoid(x, PRECISE: tl.constexpr):
    if PRECISE:
        e = _power(_exponent(-tl.abs(x), PRECISE), PRECISE)
        result = tl.div_rn(tl.where(x >= 0, 1.0, e), 1.0 + e)
    else:
        result = 1.0 / (1.0 + tl.exp2(tl.minimum(-x * LOG2_E, 126.0)))
    return result


@triton.jit
def _less(i, n, like):
    """Return i < n for every element of `like`: the interpreter cannot combine a vector mask with a scalar one."""
    return like * 0 + i < n


@triton.jit
def _load(pointer, mask):
    """Load as float32, zero outside the mask."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_step(pointer, mask, EVEN: tl.constexpr):
    """Load inside a loop over time, in the stored type: without a mask where the block fits, since masks cost."""
    if EVEN:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer, mask=mask, other=0.0)
    return value


@triton.jit
def _unpack(word, WORDS: tl.constexpr):
    """Return weights as float32; with WORDS 1 and 2 every word holds two of bfloat16 or float16."""
    if WORDS == 0:
        weights = word.to(tl.float32)
    else:
        if WORDS == 1:
            low = (word << 16).to(tl.float32, bitcast=True)
            high = (word & -65536).to(tl.float32, bitcast=True)
        else:
            low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        weights = tl.reshape(tl.join(low, high), [2 * word.shape[0]])
    return weights


@triton.jit
def _find(
    unit,
    cu_seqlens,
    slot_base,
    span_base,
    span_row,
    length,
    slots,
    span,
    spans,
    PARALLEL: tl.constexpr,
    DIRS: tl.constexpr,
):
    """Find a unit's row, batch index, first place and steps of the row, first slot of the row, and its first chunk.

    PARALLEL units are `span` chunks of a row, others a whole row.
    """
    if not PARALLEL:
        row = unit
    elif span_row is None:
        row = unit // spans
    else:
        row = tl.load(span_row + unit)
    if cu_seqlens is None:
        batch = row // DIRS
        begin = row * 0
        count = row * 0 + length
        base = row * slots
    else:
        batch = row * 0
        begin = tl.load(cu_seqlens + row)
        count = tl.load(cu_seqlens + row + 1) - begin
        base = tl.load(slot_base + row)
    if not PARALLEL:
        first = row * 0
    elif span_base is None:
        first = (unit - row * spans) * span
    else:
        first = (unit - tl.load(span_base + row)) * span
    return row, batch, begin, count, base, first


@triton.jit
def _reach(count, first, span, PARALLEL: tl.constexpr, CHUNK: tl.constexpr):
    """Return how many steps a unit has from its first chunk on."""
    steps = tl.maximum(count - first * CHUNK, 0)
    if PARALLEL:
        steps = tl.minimum(steps, span * CHUNK)
    return steps.to(tl.int32)


@triton.jit
def _channels(block, blocks_per_group, width, BLOCK_D: tl.constexpr):
    """Find a block's group, its channels and which of them exist; a block never crosses a group."""
    group = block // blocks_per_group
    local = (block % blocks_per_group) * BLOCK_D + tl.arange(0, BLOCK_D)
    return group, group * width + local, local < width


@triton.jit
def _course(direction, height, line, REVERSE: tl.constexpr, CODES: tl.constexpr, PLANE: tl.constexpr):
    """Return the step from place to place and the correction at the end of a column.

    Two bits of CODES per direction: the lower for columns, the upper for reversed. A line is a row of the image.
    """
    if PLANE:
        code = (CODES >> (2 * direction)) & 3
        down = code & 1
        sign = 1 - (code & 2)
        stride = sign * (1 + down * (line - 1))
        wrap = sign * down * (1 - height * line)
    else:
        stride = direction * 0 + (-1 if REVERSE else 1)
        wrap = stride * 0
    return stride, wrap


@triton.jit
def _place(
    i,
    count,
    direction,
    height,
    line,
    REVERSE: tl.constexpr,
    CODES: tl.constexpr,
    PLANE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return the place of step i of a row, counted from where the row begins."""
    if PLANE:
        code = (CODES >> (2 * direction)) & 3
        i = tl.where((code & 2) != 0, count - 1 - i, i)
        p = tl.where((code & 1) != 0, (i % height) * line + i // height, i)
    elif REVERSE:
        p = count - 1 - i
    else:
        p = i
    return p.to(tl.int64) if WIDE else p.to(tl.int32)


@triton.jit
def _onwards(p, stride, wrap, area, more, PLANE: tl.constexpr):
    """Return the place after p, or p itself if there is no more."""
    q = p + stride
    if PLANE:
        q = tl.where((q < 0) | (q >= area), q + wrap, q)
    return tl.where(more, q, p)


@triton.jit
def _places(
    i, begin_i, steps, count, direction, height, line, stride, wrap,
    STEPS: tl.constexpr, REVERSE: tl.constexpr, CODES: tl.constexpr, PLANE: tl.constexpr, WIDE: tl.constexpr,
    BACK: tl.constexpr = False,
):  # fmt: skip
    """Return the places of steps i, i + 1, ... of the `steps` from begin_i on, BACK counted from their end.

    What lies behind the last stays at the last. Nothing is carried from block to block: the compiler's analysis of a
    carried place takes seconds.
    """
    last = tl.maximum(steps - 1, 0)
    i = tl.minimum(tl.maximum(i, 0), last)
    if BACK:
        p = _place(begin_i + last - i, count, direction, height, line, REVERSE, CODES, PLANE, WIDE)
        stride = -stride
        wrap = -wrap
    else:
        p = _place(begin_i + i, count, direction, height, line, REVERSE, CODES, PLANE, WIDE)
    places = ()
    for j in tl.static_range(STEPS):
        places = places + (p,)
        p = _onwards(p, stride, wrap, height * line, i + j < last, PLANE)
    return places


@triton.jit
def _steps(pointer, places, step, mask, EVEN: tl.constexpr, STEPS: tl.constexpr):
    """Load at STEPS places, in the stored type."""
    values = ()
    for j in tl.static_range(STEPS):
        values = values + (_load_step(pointer + places[j] * step, mask, EVEN),)
    return values


@triton.jit
def _advance(state, rates, delta, u, into, PRECISE: tl.constexpr):
    """H -> exp(delta * A) * h + u * B; `rates` are those of `_exponent`."""
    return _power(delta[:, None] * rates, PRECISE) * state + u[:, None] * into[None, :]


@triton.jit
def _step_size(raw, bias, alive, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr):
    """Return delta; 0 beyond the end, so that nothing decays and nothing is added there."""
    delta = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta = _softplus(delta, PRECISE)
    return tl.where(alive, delta, 0.0)


@triton.jit
def _row_vector(pointer, offset, d, here_d, BLOCK_D: tl.constexpr):
    """Load a parameter of the channels, zero where there is none."""
    value = tl.zeros([BLOCK_D], tl.float32)
    if pointer is not None:
        value = _load(pointer + offset + d, here_d)
    return value


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def forward_kernel(
    x, dt, A, B, C, D, z, dt_bias, initial, added, y, saved, entering, final,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans, height, line, batches, groups, width, A_rows, D_rows, scale,
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
    group, d, here_d = _channels((program % (groups * blocks)).to(tl.int32), blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = _find(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    steps = _reach(count, first, span, PARALLEL, CHUNK)
    stride, wrap = _course(direction, height, line, REVERSE, CODES, PLANE)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_N // PER_WORD)
    here_w = (w * PER_WORD < N) & _less(0, steps, w)  # an empty sequence may begin behind the last step
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
    rates = _exponent(_load(A + (row % A_rows) * channels * N + tile, here), PRECISE)
    skip = _row_vector(D, (row % D_rows) * channels, d, here_d, BLOCK_D)
    bias = _row_vector(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
    if PARALLEL:
        state = _load(entering + unit * channels * N + tile, here)
    elif initial is not None:
        state = _load(initial + row * channels * N + tile, here)
    else:
        state = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)

    begin_i = (first * CHUNK).to(tl.int64 if WIDE else tl.int32)
    places = _places(
        0, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
    )
    here_0 = here_d & _less(0, steps, d)
    xs = _steps(x, places, x_t, here_0, False, STEPS)
    dts = _steps(dt, places, dt_t, here_0, False, STEPS)
    Bs = _steps(B, places, B_t * ALIGN, here_w, False, STEPS)
    Cs = _steps(C, places, C_t * ALIGN, here_w, False, STEPS)
    gates = xs
    if z is not None:
        gates = _steps(z, places, z_t, here_0, False, STEPS)
    for i in range(0, steps, STEPS):
        if saved is not None:
            if i % CHUNK == 0:
                tl.store(saved + (base + first + i // CHUNK) * channels * N + tile, state, mask=here)
        places = _places(
            i, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        places_next = _places(
            i + STEPS, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        xs_next = _steps(x, places_next, x_t, here_d, EVEN, STEPS)
        dts_next = _steps(dt, places_next, dt_t, here_d, EVEN, STEPS)
        Bs_next = _steps(B, places_next, B_t * ALIGN, here_w, FULL, STEPS)
        Cs_next = _steps(C, places_next, C_t * ALIGN, here_w, FULL, STEPS)
        gates_next = xs_next
        if z is not None:
            gates_next = _steps(z, places_next, z_t, here_d, EVEN, STEPS)
        for j in tl.static_range(STEPS):
            alive = here_d & _less(i + j, steps, d)
            value = xs[j].to(tl.float32)
            delta = _step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
            state = _advance(state, rates, delta, delta * value, _unpack(Bs[j], WORDS), PRECISE)
            out = tl.sum(state * _unpack(Cs[j], WORDS)[None, :], 1) + skip * value
            at = places[j] * channels
            if added is not None:
                out += _load(added + at, alive)
            if z is not None:
                gate = gates[j].to(tl.float32)
                out *= gate * _sigmoid(gate, PRECISE)
            tl.store(y + at, (out * scale).to(y.dtype.element_ty), mask=alive)
        xs = xs_next
        dts = dts_next
        Bs = Bs_next
        Cs = Cs_next
        gates = gates_next
    if PARALLEL:  # a row ends with its last unit; packed rows may have fewer units than there are
        here &= _less(0, steps, tile) & _less(count - first * CHUNK, span * CHUNK + 1, tile)
    tl.store(final + row * channels * N + tile, state, mask=here)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def local_kernel(
    x, dt, A, W, z, dt_bias, ends, totals,
    cu_seqlens, slot_base, span_base, span_row,
    length, slots, span, spans, height, line, groups, width, A_rows, scale,
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
    """Run one unit from zero: its end state and the product of its decays.

    Forwards x is x and W is B. ADJOINT walks the unit from its last step, x is the gradient of y and W is C. The unit
    at which the walk along the row ends is left out: nobody asks what leaves it.
    """
    PER_WORD: tl.constexpr = 1 if WORDS == 0 else 2
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks)
    group, d, here_d = _channels((program % (groups * blocks)).to(tl.int32), blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = _find(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    steps = _reach(count, first, span, PARALLEL, CHUNK)
    if ADJOINT:
        steps = tl.where(first > 0, steps, 0)
    else:
        steps = tl.where((first + span) * CHUNK < count, steps, 0)
    stride, wrap = _course(direction, height, line, REVERSE, CODES, PLANE)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_N // PER_WORD)
    here_w = (w * PER_WORD < N) & _less(0, steps, w)
    tile = n[None, :] * channels + d[:, None]
    here = here_d[:, None] & (n < N)[None, :]
    x += batch * x_b + begin * x_t + d
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t + d
    W += (batch * W_b + (group + row % DIRS) * W_g + begin * W_t) * ALIGN + w
    if z is not None:
        z += batch * z_b + begin * z_t + d
    rates = _exponent(_load(A + (row % A_rows) * channels * N + tile, here), PRECISE)
    bias = _row_vector(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
    state = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    elapsed = tl.zeros([BLOCK_D], tl.float32)

    begin_i = (first * CHUNK).to(tl.int64 if WIDE else tl.int32)
    places = _places(
        0, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE, ADJOINT
    )
    here_0 = here_d & _less(0, steps, d)
    xs = _steps(x, places, x_t, here_0, False, STEPS)
    dts = _steps(dt, places, dt_t, here_0, False, STEPS)
    Ws = _steps(W, places, W_t * ALIGN, here_w, False, STEPS)
    gates = xs
    if z is not None:
        gates = _steps(z, places, z_t, here_0, False, STEPS)
    for i in range(0, steps, STEPS):
        places_next = _places(
            i + STEPS, begin_i, steps, count, direction, height, line, stride, wrap,
            STEPS, REVERSE, CODES, PLANE, WIDE, ADJOINT,
        )  # fmt: skip
        xs_next = _steps(x, places_next, x_t, here_d, EVEN, STEPS)
        dts_next = _steps(dt, places_next, dt_t, here_d, EVEN, STEPS)
        Ws_next = _steps(W, places_next, W_t * ALIGN, here_w, FULL, STEPS)
        gates_next = xs_next
        if z is not None:
            gates_next = _steps(z, places_next, z_t, here_d, EVEN, STEPS)
        for j in tl.static_range(STEPS):
            alive = here_d & _less(i + j, steps, d)
            value = xs[j].to(tl.float32)
            delta = _step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
            elapsed += delta
            weights = _unpack(Ws[j], WORDS)
            if ADJOINT:
                value = tl.where(alive, value * scale, 0.0)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    value *= gate * _sigmoid(gate, PRECISE)
                state = _power(delta[:, None] * rates, PRECISE) * (state + value[:, None] * weights[None, :])
            else:
                state = _advance(state, rates, delta, delta * value, weights, PRECISE)
        xs = xs_next
        dts = dts_next
        Ws = Ws_next
        gates = gates_next
    tl.store(ends + unit * channels * N + tile, state, mask=here)
    # a growing system may overflow here, yet its product with a zero state is zero
    total = tl.minimum(_power(elapsed[:, None] * rates, PRECISE), LARGEST)
    tl.store(totals + unit * channels * N + tile, total, mask=here)


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
            alive = here & _less(first + j, units, entry)
            slots = slots + (slot,)
            added = added + (tl.load(ends + slot, mask=alive, other=0.0),)
            passed = passed + (tl.load(totals + slot, mask=alive, other=0.0),)
        for j in tl.static_range(AHEAD):
            alive = here & _less(first + j, units, entry)
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


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, grad_y, saved, adjoints, scratch, added,
    grad_x, grad_dt, grad_z, part_A, part_BC, part_D, part_bias, grad_initial,
    cu_seqlens, slot_base, span_base, span_row,
    first_program, length, slots, span, spans, height, line, batches, groups, width, A_rows, D_rows, scale,
    x_b, x_t, dt_b, dt_k, dt_t, z_b, z_t, B_b, B_g, B_t, C_b, C_g, C_t, grad_b, grad_t,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    PARALLEL: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
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
    """Differentiate a unit chunk by chunk, the last one first, with g[t] = C[t] * e[t] + a[t+1] * g[t+1] in registers.

    A chunk is walked twice: forwards from its saved state, leaving the state before every STEPS steps in `scratch`;
    then block by block from the end, BLOCK_K of the n at a time, with the states of one block of steps in registers.
    Sums over the channels of a block are a product with ones on the tensor cores: shuffles would take as long as all
    the rest. PRECISE keeps one partial sum per chunk, others one per unit.
    """
    PER_WORD: tl.constexpr = 1 if WORDS == 0 else 2
    ROWS: tl.constexpr = 16  # of a product on the tensor cores, at least STEPS
    program = tl.program_id(0).to(tl.int64)
    scratch += program * (CHUNK // STEPS) * N * BLOCK_D
    program += first_program
    blocks = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks)
    block = (program % (groups * blocks)).to(tl.int32)
    group, d, here_d = _channels(block, blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = _find(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    steps = _reach(count, first, span, PARALLEL, CHUNK)
    stride, wrap = _course(direction, height, line, REVERSE, CODES, PLANE)
    lane = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_N // PER_WORD)
    here_w = w * PER_WORD < N
    tile = n[None, :] * channels + d[:, None]
    here = here_d[:, None] & (n < N)[None, :]
    inner = n[None, :] * BLOCK_D + lane[:, None]
    here_inner = (lane >= 0)[:, None] & (n < N)[None, :]
    x += batch * x_b + begin * x_t + d
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t + d
    B += (batch * B_b + (group + row % DIRS) * B_g + begin * B_t) * ALIGN
    C += (batch * C_b + (group + row % DIRS) * C_g + begin * C_t) * ALIGN
    grad_y += batch * grad_b + begin * grad_t + d
    grad_x += ((row % DIRS * batches + batch) * length + begin) * channels + d
    grad_dt += ((batch * length + begin) * DIRS + row % DIRS) * channels + d
    if z is not None:
        z += batch * z_b + begin * z_t + d
        grad_z += (batch * length + begin) * channels + d
    if added is not None:
        added += (batch * length + begin) * channels + d
    shared = groups * DIRS
    part_BC += ((((block % blocks) * batches + batch) * length + begin) * shared + group + row % DIRS) * 2 * N
    adjoints += unit * channels * N
    A += (row % A_rows) * channels * N
    rates = _exponent(_load(A + tile, here), PRECISE)
    skip = _row_vector(D, (row % D_rows) * channels, d, here_d, BLOCK_D)
    bias = _row_vector(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    sum_bias = tl.zeros([BLOCK_D], tl.float32)
    lost_D = tl.zeros([BLOCK_D], tl.float32)
    lost_bias = tl.zeros([BLOCK_D], tl.float32)
    which = tl.arange(0, ROWS)
    part = unit
    if steps == 0:
        if not PRECISE:
            tl.store(part_A + part * channels * N + tile, tl.zeros([BLOCK_D, BLOCK_N], tl.float32), mask=here)
    chunks = tl.cdiv(steps, CHUNK)
    for c in range(0, chunks):
        chunk = chunks - 1 - c
        rest = tl.minimum(steps - chunk * CHUNK, CHUNK)
        walks = tl.cdiv(rest, STEPS)
        begin_i = ((first + chunk) * CHUNK).to(tl.int64 if WIDE else tl.int32)
        if PRECISE:
            part = base + first + chunk

        state = _load(saved + (base + first + chunk) * channels * N + tile, here)
        places = _places(
            0, begin_i, rest, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        xs = _steps(x, places, x_t, here_d, EVEN, STEPS)
        dts = _steps(dt, places, dt_t, here_d, EVEN, STEPS)
        Bs = _steps(B + w, places, B_t * ALIGN, here_w, FULL, STEPS)
        for s in range(0, walks - 1):
            tl.store(scratch + s * N * BLOCK_D + inner, state, mask=here_inner)
            places = _places(
                (s + 1) * STEPS, begin_i, rest, count, direction, height, line, stride, wrap,
                STEPS, REVERSE, CODES, PLANE, WIDE,
            )  # fmt: skip
            xs_next = _steps(x, places, x_t, here_d, EVEN, STEPS)
            dts_next = _steps(dt, places, dt_t, here_d, EVEN, STEPS)
            Bs_next = _steps(B + w, places, B_t * ALIGN, here_w, FULL, STEPS)
            for j in tl.static_range(STEPS):
                delta = _step_size(dts[j], bias, here_d, SOFTPLUS, PRECISE)
                u = delta * xs[j].to(tl.float32)
                state = _advance(state, rates, delta, u, _unpack(Bs[j], WORDS), PRECISE)
            xs = xs_next
            dts = dts_next
            Bs = Bs_next
        tl.store(scratch + (walks - 1) * N * BLOCK_D + inner, state, mask=here_inner)
        tl.debug_barrier()  # with more than one warp a state is read by other threads than those that wrote it

        for turn in range(0, walks):
            s = walks - 1 - turn
            places = _places(
                s * STEPS,
                begin_i,
                rest,
                count,
                direction,
                height,
                line,
                stride,
                wrap,
                STEPS,
                REVERSE,
                CODES,
                PLANE,
                WIDE,
            )
            xs = _steps(x, places, x_t, here_d, EVEN, STEPS)
            dts = _steps(dt, places, dt_t, here_d, EVEN, STEPS)
            grads = _steps(grad_y, places, grad_t, here_d, EVEN, STEPS)
            gates = xs
            if z is not None:
                gates = _steps(z, places, z_t, here_d, EVEN, STEPS)
            deltas = ()
            us = ()
            es = ()
            outs = ()
            grad_us = ()
            grad_deltas = ()
            spot = tl.zeros([ROWS], tl.int64)
            for j in tl.static_range(STEPS):
                alive = here_d & _less(s * STEPS + j, rest, d)
                delta = _step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
                e = tl.where(alive, grads[j].to(tl.float32) * scale, 0.0)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    e *= gate * _sigmoid(gate, PRECISE)
                none = tl.zeros([BLOCK_D], tl.float32)
                deltas = deltas + (delta,)
                us = us + (delta * xs[j].to(tl.float32),)
                es = es + (e,)
                outs = outs + (none,)
                grad_us = grad_us + (none,)
                grad_deltas = grad_deltas + (none,)
                spot = tl.where(which == j, places[j].to(tl.int64), spot)
            for n_0 in range(0, N, BLOCK_K):
                m = n_0 + tl.arange(0, BLOCK_K)
                v = n_0 // PER_WORD + tl.arange(0, BLOCK_K // PER_WORD)
                here_v = v * PER_WORD < N
                some = m[None, :] * channels + d[:, None]
                here_some = here_d[:, None] & (m < N)[None, :]
                close = m[None, :] * BLOCK_D + lane[:, None]
                rate = _load(A + some, here_some)
                h = tl.load(scratch + s * N * BLOCK_D + close, mask=(lane >= 0)[:, None] & (m < N)[None, :], other=0.0)
                g = _load(adjoints + some, here_some)
                into_words = _steps(B + v, places, B_t * ALIGN, here_v, FULL, STEPS)
                out_words = _steps(C + v, places, C_t * ALIGN, here_v, FULL, STEPS)
                befores = ()
                decays = ()
                for j in tl.static_range(STEPS):
                    decay = _power(deltas[j][:, None] * _exponent(rate, PRECISE), PRECISE)
                    befores = befores + (h,)
                    decays = decays + (decay,)
                    h = decay * h + us[j][:, None] * _unpack(into_words[j], WORDS)[None, :]
                sums = tl.zeros([ROWS, 2 * BLOCK_K], tl.float32)
                sum_A = tl.zeros([BLOCK_D, BLOCK_K], tl.float32)
                outs_new = ()
                us_new = ()
                deltas_new = ()
                for j in tl.static_range(STEPS - 1, -1, -1):
                    out = _unpack(out_words[j], WORDS)[None, :]
                    g += es[j][:, None] * out
                    both = tl.reshape(tl.join(g * us[j][:, None], h * es[j][:, None]), [BLOCK_D, 2 * BLOCK_K])
                    if BLOCK_K < 4:
                        sums = tl.where((which == j)[:, None], tl.sum(both, 0)[None, :], sums)
                    else:
                        pick = (which == j)[:, None].to(tl.float32) + tl.zeros([ROWS, BLOCK_D], tl.float32)
                        if PRECISE:
                            sums = tl.dot(pick, both, acc=sums, input_precision="tf32x3")
                        else:
                            sums = tl.dot(pick, both, acc=sums, input_precision="tf32")
                    if z is not None:
                        outs_new = (outs[j] + tl.sum(h * out, 1),) + outs_new
                    else:
                        outs_new = (outs[j],) + outs_new
                    us_new = (grad_us[j] + tl.sum(g * _unpack(into_words[j], WORDS)[None, :], 1),) + us_new
                    h = befores[j]
                    g = decays[j] * g
                    through = g * h  # the gradient of delta * A
                    deltas_new = (grad_deltas[j] + tl.sum(through * rate, 1),) + deltas_new
                    sum_A += through * deltas[j][:, None]
                outs = outs_new
                grad_us = us_new
                grad_deltas = deltas_new
                tl.store(adjoints + some, g, mask=here_some)
                sum_at = part_A + part * channels * N + some
                earlier = turn > 0
                if not PRECISE:
                    earlier = c + turn > 0
                sum_A += tl.load(sum_at, mask=here_some & _less(0, earlier.to(tl.int32), some), other=0.0)
                tl.store(sum_at, sum_A, mask=here_some)
                column = 2 * n_0 + tl.arange(0, 2 * BLOCK_K)
                kept = (which < STEPS) & (s * STEPS + which < rest)
                tl.store(
                    part_BC + spot[:, None] * shared * 2 * N + column[None, :],
                    sums.to(part_BC.dtype.element_ty),
                    mask=kept[:, None] & (column < 2 * N)[None, :],
                )
            for j in tl.static_range(STEPS):
                alive = here_d & _less(s * STEPS + j, rest, d)
                value = xs[j].to(tl.float32)
                grad_delta = grad_deltas[j] + grad_us[j] * value
                if SOFTPLUS:
                    grad_delta *= _sigmoid(dts[j].to(tl.float32) + bias, PRECISE)
                grad_delta = tl.where(alive, grad_delta, 0.0)
                sum_bias, lost_bias = _add(sum_bias, lost_bias, grad_delta, PRECISE)
                sum_D, lost_D = _add(sum_D, lost_D, es[j] * value, PRECISE)
                grad_value = grad_us[j] * deltas[j] + es[j] * skip
                at = places[j] * channels
                tl.store(grad_dt + at * DIRS, grad_delta.to(grad_dt.dtype.element_ty), mask=alive)
                tl.store(grad_x + at, grad_value.to(grad_x.dtype.element_ty), mask=alive)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    sigma = _sigmoid(gate, PRECISE)
                    grad_gate = grads[j].to(tl.float32) * scale * (outs[j] + skip * value)
                    grad_gate *= sigma * (1.0 + gate * (1.0 - sigma))
                    if added is not None:
                        grad_gate += _load(added + at, alive)
                    tl.store(grad_z + at, grad_gate.to(grad_z.dtype.element_ty), mask=alive)
            tl.debug_barrier()
        if PRECISE:
            if D is not None:
                tl.store(part_D + part * channels + d, sum_D, mask=here_d)
            if dt_bias is not None:
                tl.store(part_bias + part * channels + d, sum_bias, mask=here_d)
            sum_D = tl.zeros([BLOCK_D], tl.float32)
            sum_bias = tl.zeros([BLOCK_D], tl.float32)
            lost_D = tl.zeros([BLOCK_D], tl.float32)
            lost_bias = tl.zeros([BLOCK_D], tl.float32)
    if not PRECISE:
        if D is not None:
            tl.store(part_D + part * channels + d, sum_D, mask=here_d)
        if dt_bias is not None:
            tl.store(part_bias + part * channels + d, sum_bias, mask=here_d)
    here &= _less(first * CHUNK, 1, tile)  # a row begins with its first unit
    if PARALLEL:
        here &= _less(0, steps, tile)  # packed rows may have fewer units than there are
    tl.debug_barrier()
    tl.store(grad_initial + row * channels * N + tile, _load(adjoints + tile, here), mask=here)
