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
# This is Triton's language: constexpr parameters take plain values, and a branch on one is decided when compiling.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# ruff: noqa: E501, PLR0912, PLR0915, RUF005, RUF059, SIM102, SIM108

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FAR_BELOW = tl.constexpr(-1e30)  # a raw step of no length: its softplus, and the slope of that, are 0

# not specialised on: a new value compiles nothing, and nobody may conclude how states are aligned
SIZES = [
    "length",
    "slots",
    "span",
    "spans",
    "height",
    "line",
    "batches",
    "width",
    "A_rows",
    "D_rows",
    "size",
    "first_program",
]
SIZES += ["x_b", "dt_b", "z_b", "B_b", "C_b", "W_b", "grad_b"]
STATES = ["A", "initial", "saved", "final", "entering", "ends", "totals", "adjoints", "scratch", "part_A"]


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

    PRECISE takes log1p as a series in s = e / (2 + e), where s is at most 1/3.
    """
    e = _power(_exponent(-tl.abs(x), PRECISE), PRECISE)
    if PRECISE:
        s = e / (2.0 + e)
        q = s * s
        series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15))))))
        rest = 2.0 * (s + s * q * series)
    else:
        rest = tl.where(e < 0.03, e * (1.0 - e * (0.5 - e * (1 / 3))), tl.log2(1.0 + e) * LN_2)
    return tl.maximum(x, 0.0) + rest


@triton.jit
def _sigmoid(x, PRECISE: tl.constexpr):
    if PRECISE:
        e = _power(_exponent(-tl.abs(x), PRECISE), PRECISE)
        result = tl.where(x >= 0, 1.0, e) / (1.0 + e)
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
def _load_lanes(pointer, mask, EVEN: tl.constexpr):
    """Load inside a loop over time, in the stored type: without a mask where the block fits, since masks cost."""
    if EVEN:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer, mask=mask, other=0.0)
    return value


@triton.jit
def _unpack(word, WORDS: tl.constexpr):
    """Return one vector of weights per part: WORDS 1 and 2 hold two bfloat16 or float16 each, 0 is one number."""
    if WORDS == 0:
        parts = (word.to(tl.float32),)
    elif WORDS == 1:
        parts = ((word << 16).to(tl.float32, bitcast=True), (word & -65536).to(tl.float32, bitcast=True))
    else:
        low = word.to(tl.int16).to(tl.float16, bitcast=True)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
        parts = (low.to(tl.float32), high.to(tl.float32))
    return parts


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
def _lanes(pointer, places, step, d, mask, EVEN: tl.constexpr, STEPS: tl.constexpr):
    """Load every channel at STEPS places, in the stored type."""
    values = ()
    for j in tl.static_range(STEPS):
        values = values + (_load_lanes(pointer + places[j] * step + d, mask, EVEN),)
    return values


@triton.jit
def _weights(pointer, places, step, k, mask, ALIGN: tl.constexpr, FULL: tl.constexpr, STEPS: tl.constexpr):
    """Load what all channels share at STEPS places, still packed; `step` counts in ALIGN, which the compiler sees."""
    values = ()
    for j in tl.static_range(STEPS):
        values = values + (_load_lanes(pointer + places[j] * step * ALIGN + k, mask, FULL),)
    return values


@triton.jit
def _columns(k, channels, d, here_d, N: tl.constexpr, PARTS: tl.constexpr):
    """Return, per part, where a state (N, channels) lies for the channels d, and which of it exists.

    Part q holds the indices n = PARTS * k + q, as `_unpack` gives the weights.
    """
    tiles = ()
    masks = ()
    for q in tl.static_range(PARTS):
        n = PARTS * k + q
        tiles = tiles + (n[None, :] * channels + d[:, None],)
        masks = masks + (here_d[:, None] & (n < N)[None, :],)
    return tiles, masks


@triton.jit
def _load_state(pointer, tiles, masks, PARTS: tl.constexpr):
    state = ()
    for q in tl.static_range(PARTS):
        state = state + (tl.load(pointer + tiles[q], mask=masks[q], other=0.0),)
    return state


@triton.jit
def _store_state(pointer, tiles, state, masks, PARTS: tl.constexpr):
    for q in tl.static_range(PARTS):
        tl.store(pointer + tiles[q], state[q], mask=masks[q])


@triton.jit
def _zero_state(BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr):
    state = ()
    for _ in tl.static_range(PARTS):
        state = state + (tl.zeros([BLOCK_D, BLOCK_N], tl.float32),)
    return state


@triton.jit
def _advance(state, rates, delta, u, into, PARTS: tl.constexpr, PRECISE: tl.constexpr):
    """H -> exp(delta * A) * h + u * B; `rates` are those of `_exponent`."""
    new = ()
    for q in tl.static_range(PARTS):
        decay = _power(delta[:, None] * rates[q], PRECISE)
        new = new + (decay * state[q] + u[:, None] * into[q][None, :],)
    return new


@triton.jit
def _dot_n(state, weights, PARTS: tl.constexpr):
    """Sum of state * weights over n, (BLOCK_D,)."""
    product = state[0] * weights[0][None, :]
    for q in tl.static_range(1, PARTS):
        product += state[q] * weights[q][None, :]
    return tl.sum(product, 1)


@triton.jit
def _interleave(first, second, PARTS: tl.constexpr):
    """Lay two values per state side by side: (BLOCK_D, 2 * n) from parts (BLOCK_D, k), the n in order."""
    if PARTS == 1:
        both = tl.join(first[0], second[0])
    else:
        both = tl.join(tl.join(first[0], first[1]), tl.join(second[0], second[1]))
    return tl.reshape(both, [both.shape[0], both.shape[1] * 2 * PARTS])


@triton.jit
def _step_size(raw, bias, alive, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr):
    """Return delta; 0 beyond the end, so that nothing decays and nothing is added there."""
    delta = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta = _softplus(delta, PRECISE)
    return tl.where(alive, delta, 0.0)


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
):  # fmt: skip
    """Walk a unit with the state in registers, the loads of the next STEPS steps under way during the present ones."""
    PARTS: tl.constexpr = 1 if WORDS == 0 else 2
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
    k = tl.arange(0, BLOCK_N)
    # an empty sequence may begin behind the last step
    here_k = (k * PARTS < N) & _less(0, steps, k)
    tiles, masks = _columns(k, channels, d, here_d, N, PARTS)
    x += batch * x_b + begin * x_t
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t
    B += (batch * B_b + (group + row % DIRS) * B_g + begin * B_t) * ALIGN
    C += (batch * C_b + (group + row % DIRS) * C_g + begin * C_t) * ALIGN
    y += ((row % DIRS * batches + batch) * length + begin) * channels
    if z is not None:
        z += batch * z_b + begin * z_t
    if added is not None:
        added += (batch * length + begin) * channels
    plain = _load_state(A + (row % A_rows) * channels * N, tiles, masks, PARTS)
    rates = ()
    for q in tl.static_range(PARTS):
        rates = rates + (_exponent(plain[q], PRECISE),)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D is not None:
        skip = _load(D + (row % D_rows) * channels + d, here_d)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if dt_bias is not None:
        bias = _load(dt_bias + direction * channels + d, here_d)
    if PARALLEL:
        state = _load_state(entering + unit * channels * N, tiles, masks, PARTS)
    elif initial is not None:
        state = _load_state(initial + row * channels * N, tiles, masks, PARTS)
    else:
        state = _zero_state(BLOCK_D, BLOCK_N, PARTS)

    begin_i = (first * CHUNK).to(tl.int64 if WIDE else tl.int32)
    places = _places(
        0, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
    )
    here_0 = here_d & _less(0, steps, d)
    xs = _lanes(x, places, x_t, d, here_0, False, STEPS)
    dts = _lanes(dt, places, dt_t, d, here_0, False, STEPS)
    Bs = _weights(B, places, B_t, k, here_k, ALIGN, False, STEPS)
    Cs = _weights(C, places, C_t, k, here_k, ALIGN, False, STEPS)
    gates = xs
    if z is not None:
        gates = _lanes(z, places, z_t, d, here_0, False, STEPS)
    for i in range(0, steps, STEPS):
        if saved is not None:
            if i % CHUNK == 0:
                _store_state(saved + (base + first + i // CHUNK) * channels * N, tiles, state, masks, PARTS)
        places = _places(
            i, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        places_next = _places(
            i + STEPS, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        xs_next = _lanes(x, places_next, x_t, d, here_d, EVEN, STEPS)
        dts_next = _lanes(dt, places_next, dt_t, d, here_d, EVEN, STEPS)
        Bs_next = _weights(B, places_next, B_t, k, here_k, ALIGN, FULL, STEPS)
        Cs_next = _weights(C, places_next, C_t, k, here_k, ALIGN, FULL, STEPS)
        gates_next = xs_next
        if z is not None:
            gates_next = _lanes(z, places_next, z_t, d, here_d, EVEN, STEPS)
        for j in tl.static_range(STEPS):
            alive = _less(i + j, steps, d)
            value = xs[j].to(tl.float32)
            delta = _step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
            state = _advance(state, rates, delta, delta * value, _unpack(Bs[j], WORDS), PARTS, PRECISE)
            out = _dot_n(state, _unpack(Cs[j], WORDS), PARTS) + skip * value
            at = places[j] * channels + d
            if added is not None:
                out += _load(added + at, here_d & alive)
            if z is not None:
                gate = gates[j].to(tl.float32)
                out *= gate * _sigmoid(gate, PRECISE)
            tl.store(y + at, (out * scale).to(y.dtype.element_ty), mask=here_d & alive)
        xs = xs_next
        dts = dts_next
        Bs = Bs_next
        Cs = Cs_next
        gates = gates_next
    if not PARALLEL:
        _store_state(final + row * channels * N, tiles, state, masks, PARTS)


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
):  # fmt: skip
    """Run one unit from zero: its end state and the product of its decays.

    Forwards x is x and W is B. ADJOINT walks the unit from its last step, x is the gradient of y and W is C.
    """
    PARTS: tl.constexpr = 1 if WORDS == 0 else 2
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
    begin_i = (first * CHUNK).to(tl.int64 if WIDE else tl.int32)
    k = tl.arange(0, BLOCK_N)
    here_k = (k * PARTS < N) & _less(0, steps, k)
    tiles, masks = _columns(k, channels, d, here_d, N, PARTS)
    x += batch * x_b + begin * x_t
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t
    W += (batch * W_b + (group + row % DIRS) * W_g + begin * W_t) * ALIGN
    if z is not None:
        z += batch * z_b + begin * z_t
    plain = _load_state(A + (row % A_rows) * channels * N, tiles, masks, PARTS)
    rates = ()
    for q in tl.static_range(PARTS):
        rates = rates + (_exponent(plain[q], PRECISE),)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if dt_bias is not None:
        bias = _load(dt_bias + direction * channels + d, here_d)
    state = _zero_state(BLOCK_D, BLOCK_N, PARTS)
    elapsed = tl.zeros([BLOCK_D], tl.float32)

    places = _places(
        0, begin_i, steps, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE, ADJOINT
    )
    here_0 = here_d & _less(0, steps, d)
    xs = _lanes(x, places, x_t, d, here_0, False, STEPS)
    dts = _lanes(dt, places, dt_t, d, here_0, False, STEPS)
    Ws = _weights(W, places, W_t, k, here_k, ALIGN, False, STEPS)
    gates = xs
    if z is not None:
        gates = _lanes(z, places, z_t, d, here_0, False, STEPS)
    for i in range(0, steps, STEPS):
        places_next = _places(
            i + STEPS, begin_i, steps, count, direction, height, line, stride, wrap,
            STEPS, REVERSE, CODES, PLANE, WIDE, ADJOINT,
        )  # fmt: skip
        xs_next = _lanes(x, places_next, x_t, d, here_d, EVEN, STEPS)
        dts_next = _lanes(dt, places_next, dt_t, d, here_d, EVEN, STEPS)
        Ws_next = _weights(W, places_next, W_t, k, here_k, ALIGN, FULL, STEPS)
        gates_next = xs_next
        if z is not None:
            gates_next = _lanes(z, places_next, z_t, d, here_d, EVEN, STEPS)
        for j in tl.static_range(STEPS):
            alive = _less(i + j, steps, d)
            value = xs[j].to(tl.float32)
            delta = _step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
            elapsed += delta
            into = _unpack(Ws[j], WORDS)
            if ADJOINT:
                value = tl.where(alive, value * scale, 0.0)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    value *= gate * _sigmoid(gate, PRECISE)
                new = ()
                for q in tl.static_range(PARTS):
                    decay = _power(delta[:, None] * rates[q], PRECISE)
                    new = new + (decay * (state[q] + value[:, None] * into[q][None, :]),)
                state = new
            else:
                state = _advance(state, rates, delta, delta * value, into, PARTS, PRECISE)
        xs = xs_next
        dts = dts_next
        Ws = Ws_next
        gates = gates_next
    _store_state(ends + unit * channels * N, tiles, state, masks, PARTS)
    products = ()
    for q in tl.static_range(PARTS):
        # a growing system may overflow here, yet its product with a zero state is zero
        products = products + (tl.minimum(_power(elapsed[:, None] * rates[q], PRECISE), LARGEST),)
    _store_state(totals + unit * channels * N, tiles, products, masks, PARTS)


@triton.jit(do_not_specialize=SIZES)
def carry_kernel(ends, totals, initial, final, span_base, spans, size, ADJOINT: tl.constexpr, BLOCK: tl.constexpr):
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
    for j in range(0, units):
        slot = (base + (units - 1 - j if ADJOINT else j)) * size + entry
        end = tl.load(ends + slot, mask=here, other=0.0)
        total = tl.load(totals + slot, mask=here, other=0.0)
        tl.store(ends + slot, state, mask=here)
        state = total * state + end
    tl.store(final + row * size + entry, state, mask=here)


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(parts, out, span_base, spans, size, BLOCK: tl.constexpr):
    """Add a row's partial sums in the order of its units."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    row = program // blocks
    entry = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    base = tl.load(span_base + row)
    units = (tl.load(span_base + row + 1) - base).to(tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(0, units):
        total += tl.load(parts + (base + j) * size + entry, mask=here, other=0.0)
    tl.store(out + row * size + entry, total, mask=here)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, grad_y, saved, adjoints, scratch, added,
    grad_x, grad_dt, grad_z, part_A, part_BC, part_D, part_bias,
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
):  # fmt: skip
    """Differentiate a unit chunk by chunk, the last one first, with g[t] = C[t] * e[t] + a[t+1] * g[t+1] in registers.

    A chunk is walked twice: forwards from its saved state, leaving the state before every STEPS steps in `scratch`;
    then block by block from the end, a few n at a time, with the states of one block of steps in registers. Sums over
    the channels of a block are a product with ones on the tensor cores: shuffles would take as long as all the rest.
    """
    PARTS: tl.constexpr = 1 if WORDS == 0 else 2
    COLUMNS: tl.constexpr = 2 * PARTS * BLOCK_K  # of the partial sums: a number for B and one for C per n
    BLOCKS: tl.constexpr = CHUNK // STEPS
    ROWS: tl.constexpr = 16  # of a product on the tensor cores, at least STEPS
    program = tl.program_id(0).to(tl.int64)
    scratch += program * BLOCKS * N * BLOCK_D
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
    k = tl.arange(0, BLOCK_N)
    here_k = k * PARTS < N
    tiles, masks = _columns(k, channels, d, here_d, N, PARTS)
    inner, inner_masks = _columns(k, BLOCK_D, lane, lane >= 0, N, PARTS)
    row_x = x + batch * x_b + begin * x_t
    row_dt = dt + batch * dt_b + (row % DIRS) * dt_k + begin * dt_t
    row_B = B + (batch * B_b + (group + row % DIRS) * B_g + begin * B_t) * ALIGN
    row_C = C + (batch * C_b + (group + row % DIRS) * C_g + begin * C_t) * ALIGN
    row_grad_y = grad_y + batch * grad_b + begin * grad_t
    row_grad_x = grad_x + ((row % DIRS * batches + batch) * length + begin) * channels
    row_grad_dt = grad_dt + ((batch * length + begin) * DIRS + row % DIRS) * channels
    row_z = z
    row_grad_z = grad_z
    if z is not None:
        row_z = z + batch * z_b + begin * z_t
        row_grad_z = grad_z + (batch * length + begin) * channels
    row_added = added
    if added is not None:
        row_added = added + (batch * length + begin) * channels
    shared = groups * DIRS
    row_BC = part_BC + ((((block % blocks) * batches + batch) * length + begin) * shared + group + row % DIRS) * 2 * N
    row_adjoints = adjoints + unit * channels * N
    row_A = part_A + unit * channels * N
    rates_A = A + (row % A_rows) * channels * N
    plain = _load_state(rates_A, tiles, masks, PARTS)
    rates = ()
    for q in tl.static_range(PARTS):
        rates = rates + (_exponent(plain[q], PRECISE),)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D is not None:
        skip = _load(D + (row % D_rows) * channels + d, here_d)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if dt_bias is not None:
        bias = _load(dt_bias + direction * channels + d, here_d)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    sum_bias = tl.zeros([BLOCK_D], tl.float32)
    which = tl.arange(0, ROWS)
    chunks = tl.cdiv(steps, CHUNK)
    if steps == 0:
        _store_state(row_A, tiles, _zero_state(BLOCK_D, BLOCK_N, PARTS), masks, PARTS)
    for c in range(0, chunks):
        chunk = chunks - 1 - c
        rest = tl.minimum(steps - chunk * CHUNK, CHUNK)
        walks = tl.cdiv(rest, STEPS)
        begin_i = ((first + chunk) * CHUNK).to(tl.int64 if WIDE else tl.int32)

        state = _load_state(saved + (base + first + chunk) * channels * N, tiles, masks, PARTS)
        places = _places(
            0, begin_i, rest, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        xs = _lanes(row_x, places, x_t, d, here_d, EVEN, STEPS)
        dts = _lanes(row_dt, places, dt_t, d, here_d, EVEN, STEPS)
        Bs = _weights(row_B, places, B_t, k, here_k, ALIGN, FULL, STEPS)
        for s in range(0, walks - 1):
            _store_state(scratch + s * N * BLOCK_D, inner, state, inner_masks, PARTS)
            places_next = _places(
                (s + 1) * STEPS,
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
            xs_next = _lanes(row_x, places_next, x_t, d, here_d, EVEN, STEPS)
            dts_next = _lanes(row_dt, places_next, dt_t, d, here_d, EVEN, STEPS)
            Bs_next = _weights(row_B, places_next, B_t, k, here_k, ALIGN, FULL, STEPS)
            for j in tl.static_range(STEPS):
                delta = _step_size(dts[j], bias, here_d, SOFTPLUS, PRECISE)
                u = delta * xs[j].to(tl.float32)
                state = _advance(state, rates, delta, u, _unpack(Bs[j], WORDS), PARTS, PRECISE)
            xs = xs_next
            dts = dts_next
            Bs = Bs_next
        _store_state(scratch + (walks - 1) * N * BLOCK_D, inner, state, inner_masks, PARTS)
        tl.debug_barrier()  # with more than one warp a state is read by other threads than those that wrote it

        dts_next = dts
        places = _places(
            (walks - 1) * STEPS,
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
        grads_next = _lanes(row_grad_y, places, grad_t, d, here_d, EVEN, STEPS)
        xs_next = xs
        gates_next = xs
        if z is not None:
            gates_next = _lanes(row_z, places, z_t, d, here_d, EVEN, STEPS)
        for w in range(0, walks):
            s = walks - 1 - w
            xs = xs_next
            dts = dts_next
            grads = grads_next
            gates = gates_next
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
            places_next = _places(
                (s - 1) * STEPS,
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
            xs_next = _lanes(row_x, places_next, x_t, d, here_d, EVEN, STEPS)
            dts_next = _lanes(row_dt, places_next, dt_t, d, here_d, EVEN, STEPS)
            grads_next = _lanes(row_grad_y, places_next, grad_t, d, here_d, EVEN, STEPS)
            gates_next = xs_next
            if z is not None:
                gates_next = _lanes(row_z, places_next, z_t, d, here_d, EVEN, STEPS)
            deltas = ()
            us = ()
            es = ()
            outs = ()
            grad_us = ()
            grad_deltas = ()
            spot = tl.zeros([ROWS], tl.int64)
            for j in tl.static_range(STEPS):
                alive = _less(s * STEPS + j, rest, d)
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
            for k_0 in range(0, (N + PARTS - 1) // PARTS, BLOCK_K):
                kk = k_0 + tl.arange(0, BLOCK_K)
                here_kk = kk * PARTS < N
                some, some_masks = _columns(kk, channels, d, here_d, N, PARTS)
                close, close_masks = _columns(kk, BLOCK_D, lane, lane >= 0, N, PARTS)
                rate = _load_state(rates_A, some, some_masks, PARTS)
                h = _load_state(scratch + s * N * BLOCK_D, close, close_masks, PARTS)
                g = _load_state(row_adjoints, some, some_masks, PARTS)
                into_words = _weights(row_B, places, B_t, kk, here_kk, ALIGN, FULL, STEPS)
                out_words = _weights(row_C, places, C_t, kk, here_kk, ALIGN, FULL, STEPS)
                befores = ()
                decays = ()
                for j in tl.static_range(STEPS):
                    into = _unpack(into_words[j], WORDS)
                    decay = ()
                    after = ()
                    for q in tl.static_range(PARTS):
                        a = _power(deltas[j][:, None] * _exponent(rate[q], PRECISE), PRECISE)
                        decay = decay + (a,)
                        after = after + (a * h[q] + us[j][:, None] * into[q][None, :],)
                    befores = befores + (h,)
                    decays = decays + (decay,)
                    h = after
                sums = tl.zeros([ROWS, COLUMNS], tl.float32)
                sum_A = _zero_state(BLOCK_D, BLOCK_K, PARTS)
                outs_new = ()
                us_new = ()
                deltas_new = ()
                for j in tl.static_range(STEPS - 1, -1, -1):
                    into = _unpack(into_words[j], WORDS)
                    out = _unpack(out_words[j], WORDS)
                    adjoint = ()
                    grad_B = ()
                    grad_C = ()
                    for q in tl.static_range(PARTS):
                        adjoint = adjoint + (g[q] + es[j][:, None] * out[q][None, :],)
                        grad_B = grad_B + (adjoint[q] * us[j][:, None],)
                        grad_C = grad_C + (h[q] * es[j][:, None],)
                    if z is not None:
                        outs_new = (outs[j] + _dot_n(h, out, PARTS),) + outs_new
                    else:
                        outs_new = (outs[j],) + outs_new
                    us_new = (grad_us[j] + _dot_n(adjoint, into, PARTS),) + us_new
                    both = _interleave(grad_B, grad_C, PARTS)
                    if COLUMNS < 8:
                        sums = tl.where((which == j)[:, None], tl.sum(both, 0)[None, :], sums)
                    else:
                        pick = (which == j)[:, None].to(tl.float32) + tl.zeros([ROWS, BLOCK_D], tl.float32)
                        if PRECISE:
                            sums = tl.dot(pick, both, acc=sums, input_precision="tf32x3")
                        else:
                            sums = tl.dot(pick, both, acc=sums, input_precision="tf32")
                    h = befores[j]
                    leaving = ()
                    through = ()
                    sum_A_new = ()
                    for q in tl.static_range(PARTS):
                        leaving = leaving + (decays[j][q] * adjoint[q],)
                        through = through + (leaving[q] * h[q],)  # the gradient of delta * rates_A
                        sum_A_new = sum_A_new + (sum_A[q] + through[q] * deltas[j][:, None],)
                    product = through[0] * rate[0]
                    for q in tl.static_range(1, PARTS):
                        product += through[q] * rate[q]
                    deltas_new = (grad_deltas[j] + tl.sum(product, 1),) + deltas_new
                    g = leaving
                    sum_A = sum_A_new
                outs = outs_new
                grad_us = us_new
                grad_deltas = deltas_new
                _store_state(row_adjoints, some, g, some_masks, PARTS)
                if c + w > 0:
                    before_A = _load_state(row_A, some, some_masks, PARTS)
                    sum_A_new = ()
                    for q in tl.static_range(PARTS):
                        sum_A_new = sum_A_new + (sum_A[q] + before_A[q],)
                    sum_A = sum_A_new
                _store_state(row_A, some, sum_A, some_masks, PARTS)
                column = 2 * PARTS * k_0 + tl.arange(0, COLUMNS)
                kept = (which < STEPS) & (s * STEPS + which < rest)
                tl.store(
                    row_BC + spot[:, None] * shared * 2 * N + column[None, :],
                    sums.to(part_BC.dtype.element_ty),
                    mask=kept[:, None] & (column < 2 * N)[None, :],
                )
            for j in tl.static_range(STEPS):
                here = here_d & _less(s * STEPS + j, rest, d)
                value = xs[j].to(tl.float32)
                grad_delta = grad_deltas[j] + grad_us[j] * value
                if SOFTPLUS:
                    grad_delta *= _sigmoid(dts[j].to(tl.float32) + bias, PRECISE)
                grad_delta = tl.where(here, grad_delta, 0.0)
                sum_bias += grad_delta
                sum_D += es[j] * value
                grad_value = grad_us[j] * deltas[j] + es[j] * skip
                at = places[j] * channels + d
                tl.store(
                    row_grad_dt + places[j] * DIRS * channels + d,
                    grad_delta.to(row_grad_dt.dtype.element_ty),
                    mask=here,
                )
                tl.store(row_grad_x + at, grad_value.to(row_grad_x.dtype.element_ty), mask=here)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    sigma = _sigmoid(gate, PRECISE)
                    grad_gate = grads[j].to(tl.float32) * scale * (outs[j] + skip * value)
                    grad_gate *= sigma * (1.0 + gate * (1.0 - sigma))
                    if added is not None:
                        grad_gate += _load(row_added + at, here)
                    tl.store(row_grad_z + at, grad_gate.to(row_grad_z.dtype.element_ty), mask=here)
            tl.debug_barrier()
    if D is not None:
        tl.store(part_D + unit * channels + d, sum_D, mask=here_d)
    if dt_bias is not None:
        tl.store(part_bias + unit * channels + d, sum_bias, mask=here_d)
