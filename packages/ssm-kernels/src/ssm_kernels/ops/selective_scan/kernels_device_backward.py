"""The backward of the selective scans on the device. Letters and terms are those of kernels_device.py.

Tiles have their channels last, [steps, channels] or [states, channels]: the compiler then gives every lane one channel
and keeps all else in its registers, as long as nobody tells it how addresses are aligned.
"""

# This is Triton's language: a branch on a constexpr is decided when compiling, and tuples grow as they are unrolled,
# which no type checker follows in reasonable time; the file is left out of pyright (pyproject.toml).
# ruff: noqa: PLR0912, PLR0915, RUF005, SIM102, SIM108

import triton
import triton.language as tl

from .kernels_device_steps import (
    SIZES,
    STATES,
    add_up,
    block_channels,
    count_steps,
    exponent,
    find_course,
    find_places,
    find_unit,
    less,
    load,
    load_parameter,
    load_step,
    load_steps,
    power,
    sigmoid,
    step_size,
    unpack,
)

TILES = ["x", "dt", "z", "grad_y", "added", "grad_x", "grad_dt", "grad_z"]  # read and written as tiles


@triton.jit
def along(t, values, STEPS: tl.constexpr):
    """Return a vector over the steps of scalars, one per step."""
    vector = t * 0 + values[0]
    for j in tl.static_range(1, STEPS):
        vector = tl.where(t == j, values[j], vector)
    return vector


@triton.jit
def load_tile(pointer, at, step, d, mask, EVEN: tl.constexpr):
    """Load [steps, channels] in the stored type."""
    return load_step(pointer + at[:, None] * step + d[None, :], mask, EVEN)


@triton.jit
def pick(tile, t, j: tl.constexpr):
    """Return row j of a tile: it lies in one register of every lane, so that nothing is computed."""
    return tl.sum(tl.where((t == j)[:, None], tile, 0.0), 0)


@triton.jit
def pick_all(tile, t, STEPS: tl.constexpr):
    """Return the rows of a tile."""
    rows = ()
    for j in tl.static_range(STEPS):
        rows = rows + (pick(tile, t, j),)
    return rows


@triton.jit
def stack(rows, t, STEPS: tl.constexpr):
    """Return the tile of which these are the rows."""
    tile = (t * 0)[:, None] + rows[0][None, :]
    for j in tl.static_range(1, STEPS):
        tile = tl.where((t == j)[:, None], rows[j][None, :], tile)
    return tile


@triton.jit
def add_channels(sums, left, right, at, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, PRECISE: tl.constexpr):
    """Put the sums over the channels of two [states, channels] tiles into the columns of `sums` that `at` marks.

    They are a product with ones on the tensor cores: shuffles would take as long as all the rest.
    """
    both = tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), [2 * BLOCK_K, BLOCK_D])
    if BLOCK_K < 8:
        sums = tl.where(at[None, :], tl.sum(both, 1)[:, None], sums)
    else:
        ones = at[None, :].to(tl.float32) + tl.zeros([BLOCK_D, sums.shape[1]], tl.float32)
        if PRECISE:
            sums = tl.dot(both, ones, acc=sums, input_precision="tf32x3")
        else:
            sums = tl.dot(both, ones, acc=sums, input_precision="tf32")
    return sums


@triton.jit
def walk_back(
    h, g, sum_A, rate, deltas, us, es, into_words, out_words, column, outs, grad_us, grad_deltas,
    GATED: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WORDS: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    """Differentiate STEPS steps for BLOCK_K of the states, from the state `h` before them and the adjoint `g` behind.

    Returns the adjoint before them, the three sums over n so far (C.h, the gradients of u and delta), the gradient of
    A so far, and the sums over the channels: rows are (n, B or C), columns are steps.
    """
    befores = ()
    decays = ()
    scaled = exponent(rate, PRECISE)
    for j in tl.static_range(STEPS):
        decay = power(deltas[j][None, :] * scaled, PRECISE)
        befores = befores + (h,)
        decays = decays + (decay,)
        h = decay * h + unpack(into_words[j], WORDS)[:, None] * us[j][None, :]
    sums = tl.zeros([2 * BLOCK_K, column.shape[0]], tl.float32)
    outs_new = ()
    us_new = ()
    deltas_new = ()
    for j in tl.static_range(STEPS - 1, -1, -1):
        out = unpack(out_words[j], WORDS)[:, None]
        g += out * es[j][None, :]
        sums = add_channels(sums, g * us[j][None, :], h * es[j][None, :], column == j, BLOCK_D, BLOCK_K, PRECISE)
        if GATED:
            outs_new = (outs[j] + tl.sum(h * out, 0),) + outs_new
        else:
            outs_new = (outs[j],) + outs_new
        us_new = (grad_us[j] + tl.sum(g * unpack(into_words[j], WORDS)[:, None], 0),) + us_new
        h = befores[j]
        g = decays[j] * g
        through = g * h  # the gradient of delta * A
        deltas_new = (grad_deltas[j] + tl.sum(through * rate, 0),) + deltas_new
        sum_A += through * deltas[j][None, :]
    return g, outs_new, us_new, deltas_new, sum_A, sums


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES + TILES)
def backward_kernel(
    x, dt, A, B, C, D, z, dt_bias, grad_y, saved, adjoints, scratch, added,
    grad_x, grad_dt, grad_z, parts, part_BC, grad_initial,
    cu_seqlens, slot_base, span_base, span_row,
    first_program, adds, length, slots, span, spans, pieces, height, line, reverse, batches, groups, width,
    A_rows, D_rows, scale,
    x_b, x_t, dt_b, dt_k, dt_t, z_b, z_t, B_b, B_g, B_t, C_b, C_g, C_t, grad_b, grad_t,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    PARALLEL: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RESIDENT: tl.constexpr,
    WORDS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr,
    CODES: tl.constexpr,
    DIRS: tl.constexpr,
    PLANE: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
) -> None:  # fmt: skip
    """Differentiate a unit chunk by chunk, the last one first, with g[t] = C[t] * e[t] + a[t+1] * g[t+1].

    A chunk is walked twice: forwards from its saved state, leaving the state before every STEPS steps in `scratch`;
    then block by block from the end, BLOCK_K of the n at a time. RESIDENT keeps all adjoints in registers, otherwise
    (many states) they lie in `adjoints`. The gradient of A is summed within a chunk, then over chunks in `parts`, where
    those of D and dt_bias lie behind it, (N + 2, D); PRECISE keeps one partial sum per chunk, others one per unit.
    """
    PER_WORD: tl.constexpr = 1 if WORDS == 0 else 2
    COLUMNS: tl.constexpr = 8  # of a product on the tensor cores, at least STEPS
    BLOCKS_K: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K if RESIDENT else 1
    program = tl.program_id(0).to(tl.int64)
    scratch += program * (CHUNK // STEPS) * N * BLOCK_D
    program += first_program
    blocks = tl.cdiv(width, BLOCK_D)
    unit = program // (groups * blocks)
    block = (program % (groups * blocks)).to(tl.int32)
    group, d, here_d = block_channels(block, blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    steps = count_steps(count, first, span, PARALLEL, CHUNK)
    stride, wrap = find_course(direction, height, line, reverse, CODES, PLANE)
    lane = tl.arange(0, BLOCK_D)
    t = tl.arange(0, STEPS)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    w = tl.arange(0, BLOCK_N // PER_WORD)
    v = tl.arange(0, BLOCK_K // PER_WORD)
    here_w = w * PER_WORD < N
    tile = n[:, None] * channels + d[None, :]
    here = (n < N)[:, None] & here_d[None, :]
    near = k[:, None] * channels + d[None, :]
    close = k[:, None] * BLOCK_D + lane[None, :]
    room = n[:, None] * BLOCK_D + lane[None, :]
    here_room = (n < N)[:, None] & (lane >= 0)[None, :]
    here_t = (t >= 0)[:, None] & here_d[None, :]
    x += batch * x_b + begin * x_t
    dt += batch * dt_b + (row % DIRS) * dt_k + begin * dt_t
    B += (batch * B_b + (group + row % DIRS) * B_g + begin * B_t) * ALIGN
    C += (batch * C_b + (group + row % DIRS) * C_g + begin * C_t) * ALIGN
    grad_y += batch * grad_b + begin * grad_t
    grad_x += ((row % DIRS * batches + batch) * length + begin) * channels
    grad_dt += ((batch * length + begin) * DIRS + row % DIRS) * channels
    if z is not None:
        z += batch * z_b + begin * z_t
        grad_z += (batch * length + begin) * channels
    if added is not None:
        added += (batch * length + begin) * channels
    shared = groups * DIRS
    part_BC += ((((block % blocks) * batches + batch) * length + begin) * shared + group + row % DIRS) * 2 * N
    if adjoints is not None:
        adjoints += (unit * pieces + pieces - 1) * channels * N
    A += (row % A_rows) * channels * N
    skip = load_parameter(D, (row % D_rows) * channels, d, here_d, BLOCK_D)
    bias = load_parameter(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    sum_bias = tl.zeros([BLOCK_D], tl.float32)
    lost_D = tl.zeros([BLOCK_D], tl.float32)
    lost_bias = tl.zeros([BLOCK_D], tl.float32)
    column = tl.arange(0, COLUMNS)
    entry = tl.arange(0, 2 * BLOCK_K)
    part = unit
    if steps == 0:
        if not PRECISE:
            tl.store(parts + part * channels * (N + 2) + tile, tl.zeros([BLOCK_N, BLOCK_D], tl.float32), mask=here)
    gs = ()
    for b in tl.static_range(BLOCKS_K):
        if not RESIDENT:
            gs = gs + (tl.zeros([1], tl.float32),)
        elif adjoints is None:
            gs = gs + (tl.zeros([BLOCK_K, BLOCK_D], tl.float32),)
        else:
            gs = gs + (
                load(adjoints + b * BLOCK_K * channels + near, (b * BLOCK_K + k < N)[:, None] & here_d[None, :]),
            )
    chunks = tl.cdiv(steps, CHUNK)
    for c in range(0, chunks):
        chunk = chunks - 1 - c
        rest = tl.minimum(steps - chunk * CHUNK, CHUNK)
        walks = tl.cdiv(rest, STEPS)
        begin_i = ((first + chunk) * CHUNK).to(tl.int64 if WIDE else tl.int32)
        if PRECISE:
            part = base + first + chunk

        state = load(saved + (base + first + chunk) * channels * N + tile, here)
        rates = exponent(load(A + tile, here), PRECISE)
        places = find_places(
            0, begin_i, rest, count, direction, height, line, reverse, stride, wrap, STEPS, CODES, PLANE, WIDE
        )
        at = along(t, places, STEPS)
        xs = load_tile(x, at, x_t, d, here_t, EVEN)
        dts = load_tile(dt, at, dt_t, d, here_t, EVEN)
        Bs = load_steps(B + w, places, B_t * ALIGN, here_w, FULL, STEPS)
        for s in range(0, walks - 1):
            tl.store(scratch + s * N * BLOCK_D + room, state, mask=here_room)
            places = find_places(
                (s + 1) * STEPS, begin_i, rest, count, direction, height, line, reverse, stride, wrap,
                STEPS, CODES, PLANE, WIDE,
            )  # fmt: skip
            at = along(t, places, STEPS)
            xs_next = load_tile(x, at, x_t, d, here_t, EVEN)
            dts_next = load_tile(dt, at, dt_t, d, here_t, EVEN)
            Bs_next = load_steps(B + w, places, B_t * ALIGN, here_w, FULL, STEPS)
            delta = step_size(dts, bias[None, :], here_t, SOFTPLUS, PRECISE)
            u = delta * xs.to(tl.float32)
            for j in tl.static_range(STEPS):
                decay = power(pick(delta, t, j)[None, :] * rates, PRECISE)
                state = decay * state + unpack(Bs[j], WORDS)[:, None] * pick(u, t, j)[None, :]
            xs = xs_next
            dts = dts_next
            Bs = Bs_next
        tl.store(scratch + (walks - 1) * N * BLOCK_D + room, state, mask=here_room)
        tl.debug_barrier()  # with more than one warp a state is read by other threads than those that wrote it

        sums_A = ()
        rows_A = ()
        for b in tl.static_range(BLOCKS_K):
            if RESIDENT:
                sums_A = sums_A + (tl.zeros([BLOCK_K, BLOCK_D], tl.float32),)
                rows_A = rows_A + (
                    load(A + b * BLOCK_K * channels + near, (b * BLOCK_K + k < N)[:, None] & here_d[None, :]),
                )
            else:
                sums_A = sums_A + (tl.zeros([1], tl.float32),)
        places = find_places(
            (walks - 1) * STEPS, begin_i, rest, count, direction, height, line, reverse, stride, wrap,
            STEPS, CODES, PLANE, WIDE,
        )  # fmt: skip
        at = along(t, places, STEPS)
        xs = load_tile(x, at, x_t, d, here_t, EVEN)
        dts = load_tile(dt, at, dt_t, d, here_t, EVEN)
        grads = load_tile(grad_y, at, grad_t, d, here_t, EVEN)
        gates = xs
        if z is not None:
            gates = load_tile(z, at, z_t, d, here_t, EVEN)
        for turn in range(0, walks):
            s = walks - 1 - turn
            alive = (s * STEPS + t < rest)[:, None] & here_d[None, :]
            value = xs.to(tl.float32)
            delta = step_size(dts, bias[None, :], alive, SOFTPLUS, PRECISE)
            slope = delta  # of delta
            if SOFTPLUS:
                slope = sigmoid(dts.to(tl.float32) + bias[None, :], PRECISE)
            grad = tl.where(alive, grads.to(tl.float32) * scale, 0.0)
            gate = value
            sigma = value
            e = grad
            if z is not None:
                gate = gates.to(tl.float32)
                sigma = sigmoid(gate, PRECISE)
                e = grad * gate * sigma
            u = delta * value
            deltas = pick_all(delta, t, STEPS)
            us = pick_all(u, t, STEPS)
            es = pick_all(e, t, STEPS)
            outs = ()
            for j in tl.static_range(STEPS):
                outs = outs + (deltas[j] * 0.0,)
            grad_us = outs
            grad_deltas = outs
            spot = along(column, places, STEPS)
            kept = (column < STEPS) & (s * STEPS + column < rest)
            goal = spot.to(tl.int64) * shared * 2 * N
            here_at = at
            if RESIDENT:
                gs_new = ()
                sums_new = ()
                for b in tl.static_range(BLOCKS_K):
                    word = b * (BLOCK_K // PER_WORD) + v
                    here_v = word * PER_WORD < N
                    into_words = load_steps(B + word, places, B_t * ALIGN, here_v, FULL, STEPS)
                    out_words = load_steps(C + word, places, C_t * ALIGN, here_v, FULL, STEPS)
                    h = load(
                        scratch + (s * N + b * BLOCK_K) * BLOCK_D + close,
                        (b * BLOCK_K + k < N)[:, None] & (lane >= 0)[None, :],
                    )
                    g, outs, grad_us, grad_deltas, sum_A, sums = walk_back(
                        h, gs[b], sums_A[b], rows_A[b], deltas, us, es, into_words, out_words, column,
                        outs, grad_us, grad_deltas, z is not None, STEPS, BLOCK_D, BLOCK_K, WORDS, PRECISE,
                    )  # fmt: skip
                    gs_new = gs_new + (g,)
                    sums_new = sums_new + (sum_A,)
                    tl.store(
                        part_BC + goal[None, :] + (2 * b * BLOCK_K + entry)[:, None],
                        sums.to(part_BC.dtype.element_ty),
                        mask=(2 * b * BLOCK_K + entry < 2 * N)[:, None] & kept[None, :],
                    )
                gs = gs_new
                sums_A = sums_new
            else:
                for n_0 in range(0, N, BLOCK_K):
                    some = n_0 * channels + near
                    here_some = (n_0 + k < N)[:, None] & here_d[None, :]
                    here_v = n_0 + v * PER_WORD < N
                    into_words = load_steps(B + n_0 // PER_WORD + v, places, B_t * ALIGN, here_v, FULL, STEPS)
                    out_words = load_steps(C + n_0 // PER_WORD + v, places, C_t * ALIGN, here_v, FULL, STEPS)
                    h = load(scratch + (s * N + n_0) * BLOCK_D + close, (n_0 + k < N)[:, None] & (lane >= 0)[None, :])
                    g = load(adjoints + some, here_some)
                    sum_at = parts + part * channels * (N + 2) + some
                    earlier = turn > 0
                    if not PRECISE:
                        earlier = c + turn > 0
                    sum_A = load(sum_at, here_some & less(0, earlier.to(tl.int32), some))
                    g, outs, grad_us, grad_deltas, sum_A, sums = walk_back(
                        h, g, sum_A, load(A + some, here_some), deltas, us, es, into_words, out_words, column,
                        outs, grad_us, grad_deltas, z is not None, STEPS, BLOCK_D, BLOCK_K, WORDS, PRECISE,
                    )  # fmt: skip
                    tl.store(adjoints + some, g, mask=here_some)
                    tl.store(sum_at, sum_A, mask=here_some)
                    tl.store(
                        part_BC + goal[None, :] + (2 * n_0 + entry)[:, None],
                        sums.to(part_BC.dtype.element_ty),
                        mask=(2 * n_0 + entry < 2 * N)[:, None] & kept[None, :],
                    )
            places = find_places(
                (s - 1) * STEPS, begin_i, rest, count, direction, height, line, reverse, stride, wrap,
                STEPS, CODES, PLANE, WIDE,
            )  # fmt: skip
            at = along(t, places, STEPS)
            xs = load_tile(x, at, x_t, d, here_t, EVEN)
            dts = load_tile(dt, at, dt_t, d, here_t, EVEN)
            grads = load_tile(grad_y, at, grad_t, d, here_t, EVEN)
            gates = xs
            if z is not None:
                gates = load_tile(z, at, z_t, d, here_t, EVEN)
            grad_u = stack(grad_us, t, STEPS)
            grad_delta = stack(grad_deltas, t, STEPS) + grad_u * value
            if SOFTPLUS:
                grad_delta *= slope
            grad_delta = tl.where(alive, grad_delta, 0.0)
            sum_bias, lost_bias = add_up(sum_bias, lost_bias, tl.sum(grad_delta, 0), True)
            sum_D, lost_D = add_up(sum_D, lost_D, tl.sum(e * value, 0), True)
            grad_value = grad_u * delta + e * skip[None, :]
            spot_t = here_at[:, None] * channels + d[None, :]
            tl.store(
                grad_dt + here_at[:, None] * channels * DIRS + d[None, :],
                grad_delta.to(grad_dt.dtype.element_ty),
                mask=alive,
            )
            tl.store(grad_x + spot_t, grad_value.to(grad_x.dtype.element_ty), mask=alive)
            if z is not None:
                out = stack(outs, t, STEPS) + skip[None, :] * value
                grad_gate = grad * out * (sigma * (1.0 + gate * (1.0 - sigma)))
                if added is not None:
                    grad_gate += load(added + spot_t, alive & less(0, adds, spot_t))
                tl.store(grad_z + spot_t, grad_gate.to(grad_z.dtype.element_ty), mask=alive)
            if not RESIDENT:
                tl.debug_barrier()
        if RESIDENT:
            for b in tl.static_range(BLOCKS_K):
                here_b = (b * BLOCK_K + k < N)[:, None] & here_d[None, :]
                sum_at = parts + part * channels * (N + 2) + b * BLOCK_K * channels + near
                total = sums_A[b]
                if not PRECISE:
                    total += load(sum_at, here_b & less(0, c, near))
                tl.store(sum_at, total, mask=here_b)
        tl.debug_barrier()
        if PRECISE:
            if D is not None:
                tl.store(parts + (part * (N + 2) + N) * channels + d, sum_D, mask=here_d)
            if dt_bias is not None:
                tl.store(parts + (part * (N + 2) + N + 1) * channels + d, sum_bias, mask=here_d)
            sum_D = tl.zeros([BLOCK_D], tl.float32)
            sum_bias = tl.zeros([BLOCK_D], tl.float32)
            lost_D = tl.zeros([BLOCK_D], tl.float32)
            lost_bias = tl.zeros([BLOCK_D], tl.float32)
    if not PRECISE:
        if D is not None:
            tl.store(parts + (part * (N + 2) + N) * channels + d, sum_D, mask=here_d)
        if dt_bias is not None:
            tl.store(parts + (part * (N + 2) + N + 1) * channels + d, sum_bias, mask=here_d)
    first_of_row = less(first * CHUNK, 1, near)  # a row begins with its first unit
    if PARALLEL:
        first_of_row &= less(0, steps, near)  # packed rows may have fewer units than there are
    if RESIDENT:
        for b in tl.static_range(BLOCKS_K):
            here_b = (b * BLOCK_K + k < N)[:, None] & here_d[None, :]
            tl.store(
                grad_initial + row * channels * N + b * BLOCK_K * channels + near, gs[b], mask=here_b & first_of_row
            )
    else:
        tl.debug_barrier()
        for n_0 in range(0, N, BLOCK_K):
            some = n_0 * channels + near
            here_some = (n_0 + k < N)[:, None] & here_d[None, :] & first_of_row
            tl.store(grad_initial + row * channels * N + some, load(adjoints + some, here_some), mask=here_some)
