"""The device code of the selective scan; kernels.py launches it.

Letters: B batch, L length, D channels, N state, G groups. A row is a batch row or a packed sequence, a slot one of its
chunks counted over all rows, a unit what one program walks: a row or a chunk. Index i counts steps in scan order, t in
memory order; `reverse` is the map between them and nothing else. All arithmetic is float32 from the load on. Offsets
are int64. L, B and the strides that depend on them are not specialised on, so that a new L compiles nothing.
"""
# This is Triton's language: constexpr parameters take plain values, and a branch on one is decided when compiling.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# ruff: noqa: PLR0912, PLR0915, SIM102, SIM108

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(pointer, mask):
    """Load as float32, zero outside the mask."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_step(pointer, mask, EVEN: tl.constexpr):
    """Load inside a loop over time: without a mask where the block fits exactly, since masks cost."""
    if EVEN:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer, mask=mask, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)) to the last bit or two: log1p as a series in s = e / (2 + e), where s is at most 1/3."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15))))))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _compose(decay_first, add_first, decay_then, add_then):
    """Compose two affine maps h -> decay * h + add."""
    return decay_first * decay_then, decay_then * add_first + add_then


@triton.jit
def _place(unit, cu_seqlens, slot_base, slot_row, length, slots, CHUNK: tl.constexpr, PARALLEL: tl.constexpr):
    """Find a unit's row, batch index, first step, number of steps, first slot, and first and last chunk plus one."""
    if PARALLEL:
        row = unit // slots if slot_row is None else tl.load(slot_row + unit)
    else:
        row = unit
    if cu_seqlens is None:
        batch = row
        begin = row * 0
        count = row * 0 + length
        base = row * slots
    else:
        batch = row * 0
        begin = tl.load(cu_seqlens + row)
        count = tl.load(cu_seqlens + row + 1) - begin
        base = tl.load(slot_base + row)
    if PARALLEL:
        first = unit - base
        last = first + 1
    else:
        first = row * 0
        last = (count + CHUNK - 1) // CHUNK
    return row, batch, begin, count, base, first, last


@triton.jit
def _channels(block, blocks_per_group, width, BLOCK_D: tl.constexpr):
    """Find a block's group, its channels and which of them exist; a block never crosses a group."""
    group = block // blocks_per_group
    local = (block % blocks_per_group) * BLOCK_D + tl.arange(0, BLOCK_D)
    return group, group * width + local, local < width


@triton.jit
def _step_inputs(
    t, x, dt, z, B, C, x_t, dt_t, z_t, B_t, C_t, bias, here_d, here_n, SOFTPLUS: tl.constexpr, EVEN: tl.constexpr
):
    """Load what one step needs."""
    value = _load_step(x + t * x_t, here_d, EVEN)
    delta = _load_step(dt + t * dt_t, here_d, EVEN) + bias
    if SOFTPLUS:
        delta = _softplus(delta)
    gate = value
    if z is not None:
        gate = _load_step(z + t * z_t, here_d, EVEN)
    return value, delta, gate, _load_step(B + t * B_t, here_n, EVEN), _load_step(C + t * C_t, here_n, EVEN)


@triton.jit
def _advance(state, rates, value, delta, weights):
    return tl.exp2(delta[:, None] * rates) * state + (delta * value)[:, None] * weights[None, :]


@triton.jit
def _write_output(t, state, weights, value, gate, z, added, y, skip, scale, channels, here_d):
    """Write one step's y; the direction that ran before is added ahead of the gate."""
    out = tl.sum(state * weights[None, :], 1) + skip * value
    if added is not None:
        out += tl.load(added + t * channels, mask=here_d, other=0.0)
    if z is not None:
        out *= gate * _sigmoid(gate)
    tl.store(y + t * channels, (out * scale).to(y.dtype.element_ty), mask=here_d)


@triton.jit(do_not_specialize=["length", "slots", "x_b", "dt_b", "z_b", "B_b", "C_b"])
def forward_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    initial,
    added,
    y,
    saved,
    final,
    cu_seqlens,
    slot_base,
    slot_row,
    length,
    slots,
    groups,
    width,
    scale,
    x_b,
    x_t,
    dt_b,
    dt_t,
    z_b,
    z_t,
    B_b,
    B_t,
    B_g,
    C_b,
    C_t,
    C_g,
    A_row,
    D_row,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PARALLEL: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Walk a unit with the state in registers. PARALLEL starts from the saved state of its one chunk."""
    program = tl.program_id(0).to(tl.int64)
    blocks_per_group = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks_per_group)
    group, d, here_d = _channels(program % (groups * blocks_per_group), blocks_per_group, width, BLOCK_D)
    row, batch, begin, count, base, first, last = _place(
        unit, cu_seqlens, slot_base, slot_row, length, slots, CHUNK, PARALLEL
    )
    channels = groups * width
    n = tl.arange(0, BLOCK_N)
    here_n = n < N
    tile = d[:, None] * N + n[None, :]
    here = here_d[:, None] & here_n[None, :]
    x += batch * x_b + d
    dt += batch * dt_b + d
    B += batch * B_b + group * B_g + n
    C += batch * C_b + group * C_g + n
    y += batch * length * channels + d
    if z is not None:
        z += batch * z_b + d
    if added is not None:
        added += batch * length * channels + d
    rates = _load(A + row * A_row + tile, here) * LOG2_E
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D is not None:
        skip = _load(D + row * D_row + d, here_d)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if dt_bias is not None:
        bias = _load(dt_bias + d, here_d)
    state = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    if PARALLEL:
        state = _load(saved + (base + first) * channels * N + tile, here)
    elif initial is not None:
        state = _load(initial + row * channels * N + tile, here)
    sign = -1 if REVERSE else 1
    origin = begin + count - 1 if REVERSE else begin
    for k in range(first, last):
        if saved is not None:
            if not PARALLEL:
                tl.store(saved + (base + k) * channels * N + tile, state, mask=here)
        stop = tl.minimum(count, (k + 1) * CHUNK)
        whole = k * CHUNK + tl.maximum(stop - k * CHUNK, 0) // 4 * 4
        for i in range(k * CHUNK, whole, 4):
            t0 = origin + sign * i
            t1 = t0 + sign
            t2 = t1 + sign
            t3 = t2 + sign
            x0, dt0, z0, B0, C0 = _step_inputs(
                t0, x, dt, z, B, C, x_t, dt_t, z_t, B_t, C_t, bias, here_d, here_n, SOFTPLUS, EVEN
            )
            x1, dt1, z1, B1, C1 = _step_inputs(
                t1, x, dt, z, B, C, x_t, dt_t, z_t, B_t, C_t, bias, here_d, here_n, SOFTPLUS, EVEN
            )
            x2, dt2, z2, B2, C2 = _step_inputs(
                t2, x, dt, z, B, C, x_t, dt_t, z_t, B_t, C_t, bias, here_d, here_n, SOFTPLUS, EVEN
            )
            x3, dt3, z3, B3, C3 = _step_inputs(
                t3, x, dt, z, B, C, x_t, dt_t, z_t, B_t, C_t, bias, here_d, here_n, SOFTPLUS, EVEN
            )
            state0 = _advance(state, rates, x0, dt0, B0)
            state1 = _advance(state0, rates, x1, dt1, B1)
            state2 = _advance(state1, rates, x2, dt2, B2)
            state = _advance(state2, rates, x3, dt3, B3)
            _write_output(t0, state0, C0, x0, z0, z, added, y, skip, scale, channels, here_d)
            _write_output(t1, state1, C1, x1, z1, z, added, y, skip, scale, channels, here_d)
            _write_output(t2, state2, C2, x2, z2, z, added, y, skip, scale, channels, here_d)
            _write_output(t3, state, C3, x3, z3, z, added, y, skip, scale, channels, here_d)
        for i in range(whole, stop):
            t = origin + sign * i
            value, delta, gate, into, out = _step_inputs(
                t, x, dt, z, B, C, x_t, dt_t, z_t, B_t, C_t, bias, here_d, here_n, SOFTPLUS, EVEN
            )
            state = _advance(state, rates, value, delta, into)
            _write_output(t, state, out, value, gate, z, added, y, skip, scale, channels, here_d)
    if not PARALLEL:
        tl.store(final + row * channels * N + tile, state, mask=here)


@triton.jit(do_not_specialize=["length", "slots", "x_b", "dt_b", "z_b", "W_b"])
def local_kernel(
    x,
    dt,
    A,
    W,
    z,
    dt_bias,
    ends,
    totals,
    cu_seqlens,
    slot_base,
    slot_row,
    length,
    slots,
    groups,
    width,
    scale,
    x_b,
    x_t,
    dt_b,
    dt_t,
    z_b,
    z_t,
    W_b,
    W_t,
    W_g,
    A_row,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ADJOINT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Run one chunk from zero: its end state and the product of its decays.

    Forwards x is x and W is B. ADJOINT walks the chunk from its last step, x is the gradient of y and W is C.
    """
    program = tl.program_id(0).to(tl.int64)
    blocks_per_group = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks_per_group)
    group, d, here_d = _channels(program % (groups * blocks_per_group), blocks_per_group, width, BLOCK_D)
    row, batch, begin, count, _, first, _ = _place(unit, cu_seqlens, slot_base, slot_row, length, slots, CHUNK, True)
    n = tl.arange(0, BLOCK_N)
    here_n = n < N
    tile = d[:, None] * N + n[None, :]
    here = here_d[:, None] & here_n[None, :]
    x += batch * x_b + d
    dt += batch * dt_b + d
    W += batch * W_b + group * W_g + n
    if z is not None:
        z += batch * z_b + d
    rates = _load(A + row * A_row + tile, here) * LOG2_E
    bias = tl.zeros([BLOCK_D], tl.float32)
    if dt_bias is not None:
        bias = _load(dt_bias + d, here_d)
    state = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    elapsed = tl.zeros([BLOCK_D], tl.float32)
    start = first * CHUNK
    stop = tl.minimum(count, start + CHUNK)
    for j in range(start, stop):
        i = start + stop - 1 - j if ADJOINT else j
        t = begin + count - 1 - i if REVERSE else begin + i
        value = _load_step(x + t * x_t, here_d, EVEN)
        delta = _load_step(dt + t * dt_t, here_d, EVEN) + bias
        weights = _load_step(W + t * W_t, here_n, EVEN)
        if SOFTPLUS:
            delta = _softplus(delta)
        decay = tl.exp2(delta[:, None] * rates)
        elapsed += delta
        if ADJOINT:
            value *= scale
            if z is not None:
                gate = _load_step(z + t * z_t, here_d, EVEN)
                value *= gate * _sigmoid(gate)
            state = decay * (state + value[:, None] * weights[None, :])
        else:
            state = decay * state + (delta * value)[:, None] * weights[None, :]
    slot = unit * groups * width * N
    tl.store(ends + slot + tile, state, mask=here)
    # a growing system may overflow here, yet its product with a zero state is zero
    tl.store(totals + slot + tile, tl.minimum(tl.exp2(elapsed[:, None] * rates), LARGEST), mask=here)


@triton.jit(do_not_specialize=["slots"])
def carry_kernel(ends, totals, initial, final, slot_base, slots, size, ADJOINT: tl.constexpr, BLOCK: tl.constexpr):
    """Replace what every chunk adds by the state that enters it, along one row; ADJOINT from the last chunk."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    row = program // blocks
    entry = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    if slot_base is None:
        base = row * slots
        chunks = row * 0 + slots
    else:
        base = tl.load(slot_base + row)
        chunks = tl.load(slot_base + row + 1) - base
    state = tl.zeros([BLOCK], tl.float32)
    if initial is not None:
        state = tl.load(initial + row * size + entry, mask=here, other=0.0)
    for j in range(0, chunks):
        slot = (base + (chunks - 1 - j if ADJOINT else j)) * size + entry
        end = tl.load(ends + slot, mask=here, other=0.0)
        total = tl.load(totals + slot, mask=here, other=0.0)
        tl.store(ends + slot, state, mask=here)
        state = total * state + end
    tl.store(final + row * size + entry, state, mask=here)


@triton.jit(do_not_specialize=["slots"])
def sum_kernel(parts, out, slot_base, slots, size, BLOCK: tl.constexpr):
    """Add a row's partial sums in the order of its chunks."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    row = program // blocks
    entry = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    if slot_base is None:
        base = row * slots
        chunks = row * 0 + slots
    else:
        base = tl.load(slot_base + row)
        chunks = tl.load(slot_base + row + 1) - base
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(0, chunks):
        total += tl.load(parts + (base + k) * size + entry, mask=here, other=0.0)
    tl.store(out + row * size + entry, total, mask=here)


@triton.jit(do_not_specialize=["length", "slots", "batches", "x_b", "dt_b", "z_b", "B_b", "C_b", "grad_b"])
def backward_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    grad_y,
    saved,
    adjoints,
    grad_final,
    added,
    grad_x,
    grad_dt,
    grad_z,
    part_A,
    part_B,
    part_C,
    part_D,
    part_bias,
    grad_initial,
    cu_seqlens,
    slot_base,
    slot_row,
    length,
    slots,
    batches,
    groups,
    width,
    scale,
    x_b,
    x_t,
    dt_b,
    dt_t,
    z_b,
    z_t,
    B_b,
    B_t,
    B_g,
    C_b,
    C_t,
    C_g,
    grad_b,
    grad_t,
    A_row,
    D_row,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    PARALLEL: tl.constexpr,
):
    """Differentiate a unit chunk by chunk, the last one first.

    Per state index n two scans along time: the states before every step, from the saved one, and the adjoints
    g[t] = C[t] * grad_y[t] + a[t+1] * g[t+1], from the one that the chunk to the right left in `adjoints`.
    """
    program = tl.program_id(0).to(tl.int64)
    blocks_per_group = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks_per_group)
    block = program % (groups * blocks_per_group)
    group, d, here_d = _channels(block, blocks_per_group, width, BLOCK_D)
    row, batch, begin, count, base, first, last = _place(
        unit, cu_seqlens, slot_base, slot_row, length, slots, CHUNK, PARALLEL
    )
    channels = groups * width
    x += batch * x_b + d[None, :]
    dt += batch * dt_b + d[None, :]
    grad_y += batch * grad_b + d[None, :]
    B += batch * B_b + group * B_g
    C += batch * C_b + group * C_g
    skip = tl.zeros([BLOCK_D], tl.float32)
    if D is not None:
        skip = _load(D + row * D_row + d, here_d)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if dt_bias is not None:
        bias = _load(dt_bias + d, here_d)
    steps = begin * 0 + length  # int64, for products with it
    part = (((block % blocks_per_group) * batches + batch) * groups + group) * N * steps
    local = tl.arange(0, CHUNK)
    for j in range(first, last):
        k = first + last - 1 - j
        slot = base + k
        chunk = d * 0 + k  # a vector, since the interpreter cannot combine a vector mask with a scalar one
        i = k * CHUNK + local
        valid = i < count
        t = begin + count - 1 - i if REVERSE else begin + i
        right = valid & (i + 1 < count) & (local + 1 < CHUNK)
        left = valid & (local > 0)
        back = 1 if REVERSE else -1
        here = valid[:, None] & here_d[None, :]
        here_right = right[:, None] & here_d[None, :]
        here_left = left[:, None] & here_d[None, :]

        # beyond the chunk delta is 0: a decay of 1 and nothing added, so that the scans pass through
        value = _load(x + t[:, None] * x_t, here)
        value_left = _load(x + (t + back)[:, None] * x_t, here_left)
        raw = _load(dt + t[:, None] * dt_t, here) + bias[None, :]
        delta_left = _load(dt + (t + back)[:, None] * dt_t, here_left) + bias[None, :]
        delta_right = _load(dt + (t - back)[:, None] * dt_t, here_right) + bias[None, :]
        delta = raw
        if SOFTPLUS:
            delta = _softplus(raw)
            delta_left = _softplus(delta_left)
            delta_right = _softplus(delta_right)
        delta = tl.where(here, delta, 0.0)
        delta_left = tl.where(here_left, delta_left, 0.0)
        delta_right = tl.where(here_right, delta_right, 0.0)
        into = delta * value
        into_left = delta_left * value_left
        grad = _load(grad_y + t[:, None] * grad_t, here) * scale
        gated = grad
        if z is not None:
            gate = _load(z + batch * z_b + t[:, None] * z_t + d[None, :], here)
            sigma = _sigmoid(gate)
            gated = grad * gate * sigma

        out = tl.zeros([CHUNK, BLOCK_D], tl.float32)
        grad_into = tl.zeros([CHUNK, BLOCK_D], tl.float32)
        grad_delta = tl.zeros([CHUNK, BLOCK_D], tl.float32)
        for n in range(0, N):
            at = d * N + n
            rate = _load(A + row * A_row + at, here_d)
            rate2 = (rate * LOG2_E)[None, :]
            B_here = _load(B + t * B_t + n, valid)[:, None]
            B_left = _load(B + (t + back) * B_t + n, left)[:, None]
            C_here = _load(C + t * C_t + n, valid)[:, None]
            start = _load(saved + slot * channels * N + at, here_d)[None, :]
            if PARALLEL:
                adjoint = _load(adjoints + slot * channels * N + at, here_d)
            else:
                adjoint = _load(adjoints + slot * channels * N + at, here_d & (chunk + 1 < last))
                if grad_final is not None:
                    adjoint += _load(grad_final + row * channels * N + at, here_d & (chunk + 1 == last))

            decay = tl.exp2(delta * rate2)
            passed, gained = tl.associative_scan((tl.exp2(delta_left * rate2), into_left * B_left), 0, _compose)
            before = passed * start + gained
            passed, gained = tl.associative_scan(
                (tl.exp2(delta_right * rate2), gated * C_here), 0, _compose, reverse=True
            )
            g = passed * adjoint[None, :] + gained
            after = decay * before + into * B_here
            leaving = decay * g
            through = leaving * before  # the gradient of delta * A

            out += after * C_here
            grad_into += g * B_here
            grad_delta += through * rate[None, :]
            tl.store(part_B + part + n * steps + t, tl.sum(g * into, 1), mask=valid)
            tl.store(part_C + part + n * steps + t, tl.sum(after * gated, 1), mask=valid)
            tl.store(part_A + slot * channels * N + at, tl.sum(through * delta, 0), mask=here_d)
            if not PARALLEL:
                leaving = tl.sum(tl.where(local[:, None] == 0, leaving, 0.0), 0)
                tl.store(adjoints + (slot - 1) * channels * N + at, leaving, mask=here_d & (chunk > 0))
                tl.store(grad_initial + row * channels * N + at, leaving, mask=here_d & (chunk == 0))

        grad_delta += grad_into * value
        if SOFTPLUS:
            grad_delta *= _sigmoid(raw)
        offset = (batch * length + t)[:, None] * channels + d[None, :]
        grad_value = grad_into * delta + gated * skip[None, :]
        tl.store(grad_x + offset, grad_value.to(grad_x.dtype.element_ty), mask=here)
        tl.store(grad_dt + offset, grad_delta.to(grad_dt.dtype.element_ty), mask=here)
        if z is not None:
            grad_gate = grad * (out + skip[None, :] * value) * sigma * (1.0 + gate * (1.0 - sigma))
            if added is not None:
                grad_gate += _load(added + offset, here)
            tl.store(grad_z + offset, grad_gate.to(grad_z.dtype.element_ty), mask=here)
        if D is not None:
            tl.store(part_D + slot * channels + d, tl.sum(gated * value, 0), mask=here_d)
        if dt_bias is not None:
            tl.store(part_bias + slot * channels + d, tl.sum(tl.where(here, grad_delta, 0.0), 0), mask=here_d)
        if not PARALLEL:
            tl.debug_barrier()  # the next chunk reads the adjoints that other threads of this program wrote
