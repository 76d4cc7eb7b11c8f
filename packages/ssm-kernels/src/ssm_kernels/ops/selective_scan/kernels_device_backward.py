"""The backward of the selective scans on the device. Letters and terms are those of kernels_device.py."""

# This is Triton's language: a branch on a constexpr is decided when compiling, and tuples grow as they are unrolled,
# which no type checker follows in reasonable time; the file is left out of pyright (pyproject.toml).
# ruff: noqa: PLR0912, PLR0915, RUF005, SIM102, SIM108

import triton
import triton.language as tl

from .kernels_device_steps import (
    SIZES,
    STATES,
    add_up,
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
    group, d, here_d = block_channels(block, blocks, width, BLOCK_D)
    row, batch, begin, count, base, first = find_unit(
        unit, cu_seqlens, slot_base, span_base, span_row, length, slots, span, spans, PARALLEL, DIRS
    )
    channels = groups * width
    direction = (row % DIRS).to(tl.int32)
    steps = count_steps(count, first, span, PARALLEL, CHUNK)
    stride, wrap = find_course(direction, height, line, REVERSE, CODES, PLANE)
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
    rates = exponent(load(A + tile, here), PRECISE)
    skip = load_parameter(D, (row % D_rows) * channels, d, here_d, BLOCK_D)
    bias = load_parameter(dt_bias, (row % DIRS) * channels, d, here_d, BLOCK_D)
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

        state = load(saved + (base + first + chunk) * channels * N + tile, here)
        places = find_places(
            0, begin_i, rest, count, direction, height, line, stride, wrap, STEPS, REVERSE, CODES, PLANE, WIDE
        )
        xs = load_steps(x, places, x_t, here_d, EVEN, STEPS)
        dts = load_steps(dt, places, dt_t, here_d, EVEN, STEPS)
        Bs = load_steps(B + w, places, B_t * ALIGN, here_w, FULL, STEPS)
        for s in range(0, walks - 1):
            tl.store(scratch + s * N * BLOCK_D + inner, state, mask=here_inner)
            places = find_places(
                (s + 1) * STEPS, begin_i, rest, count, direction, height, line, stride, wrap,
                STEPS, REVERSE, CODES, PLANE, WIDE,
            )  # fmt: skip
            xs_next = load_steps(x, places, x_t, here_d, EVEN, STEPS)
            dts_next = load_steps(dt, places, dt_t, here_d, EVEN, STEPS)
            Bs_next = load_steps(B + w, places, B_t * ALIGN, here_w, FULL, STEPS)
            for j in tl.static_range(STEPS):
                delta = step_size(dts[j], bias, here_d, SOFTPLUS, PRECISE)
                u = delta * xs[j].to(tl.float32)
                state = advance(state, rates, delta, u, unpack(Bs[j], WORDS), PRECISE)
            xs = xs_next
            dts = dts_next
            Bs = Bs_next
        tl.store(scratch + (walks - 1) * N * BLOCK_D + inner, state, mask=here_inner)
        tl.debug_barrier()  # with more than one warp a state is read by other threads than those that wrote it

        for turn in range(0, walks):
            s = walks - 1 - turn
            places = find_places(
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
            xs = load_steps(x, places, x_t, here_d, EVEN, STEPS)
            dts = load_steps(dt, places, dt_t, here_d, EVEN, STEPS)
            grads = load_steps(grad_y, places, grad_t, here_d, EVEN, STEPS)
            gates = xs
            if z is not None:
                gates = load_steps(z, places, z_t, here_d, EVEN, STEPS)
            deltas = ()
            us = ()
            es = ()
            outs = ()
            grad_us = ()
            grad_deltas = ()
            spot = tl.zeros([ROWS], tl.int64)
            for j in tl.static_range(STEPS):
                alive = here_d & less(s * STEPS + j, rest, d)
                delta = step_size(dts[j], bias, alive, SOFTPLUS, PRECISE)
                e = tl.where(alive, grads[j].to(tl.float32) * scale, 0.0)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    e *= gate * sigmoid(gate, PRECISE)
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
                rate = load(A + some, here_some)
                h = tl.load(scratch + s * N * BLOCK_D + close, mask=(lane >= 0)[:, None] & (m < N)[None, :], other=0.0)
                g = load(adjoints + some, here_some)
                into_words = load_steps(B + v, places, B_t * ALIGN, here_v, FULL, STEPS)
                out_words = load_steps(C + v, places, C_t * ALIGN, here_v, FULL, STEPS)
                befores = ()
                decays = ()
                for j in tl.static_range(STEPS):
                    decay = power(deltas[j][:, None] * exponent(rate, PRECISE), PRECISE)
                    befores = befores + (h,)
                    decays = decays + (decay,)
                    h = decay * h + us[j][:, None] * unpack(into_words[j], WORDS)[None, :]
                sums = tl.zeros([ROWS, 2 * BLOCK_K], tl.float32)
                sum_A = tl.zeros([BLOCK_D, BLOCK_K], tl.float32)
                outs_new = ()
                us_new = ()
                deltas_new = ()
                for j in tl.static_range(STEPS - 1, -1, -1):
                    out = unpack(out_words[j], WORDS)[None, :]
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
                    us_new = (grad_us[j] + tl.sum(g * unpack(into_words[j], WORDS)[None, :], 1),) + us_new
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
                sum_A += tl.load(sum_at, mask=here_some & less(0, earlier.to(tl.int32), some), other=0.0)
                tl.store(sum_at, sum_A, mask=here_some)
                column = 2 * n_0 + tl.arange(0, 2 * BLOCK_K)
                kept = (which < STEPS) & (s * STEPS + which < rest)
                tl.store(
                    part_BC + spot[:, None] * shared * 2 * N + column[None, :],
                    sums.to(part_BC.dtype.element_ty),
                    mask=kept[:, None] & (column < 2 * N)[None, :],
                )
            for j in tl.static_range(STEPS):
                alive = here_d & less(s * STEPS + j, rest, d)
                value = xs[j].to(tl.float32)
                grad_delta = grad_deltas[j] + grad_us[j] * value
                if SOFTPLUS:
                    grad_delta *= sigmoid(dts[j].to(tl.float32) + bias, PRECISE)
                grad_delta = tl.where(alive, grad_delta, 0.0)
                sum_bias, lost_bias = add_up(sum_bias, lost_bias, grad_delta, PRECISE)
                sum_D, lost_D = add_up(sum_D, lost_D, es[j] * value, PRECISE)
                grad_value = grad_us[j] * deltas[j] + es[j] * skip
                at = places[j] * channels
                tl.store(grad_dt + at * DIRS, grad_delta.to(grad_dt.dtype.element_ty), mask=alive)
                tl.store(grad_x + at, grad_value.to(grad_x.dtype.element_ty), mask=alive)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    sigma = sigmoid(gate, PRECISE)
                    grad_gate = grads[j].to(tl.float32) * scale * (outs[j] + skip * value)
                    grad_gate *= sigma * (1.0 + gate * (1.0 - sigma))
                    if added is not None:
                        grad_gate += load(added + at, alive)
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
    here &= less(first * CHUNK, 1, tile)  # a row begins with its first unit
    if PARALLEL:
        here &= less(0, steps, tile)  # packed rows may have fewer units than there are
    tl.debug_barrier()
    tl.store(grad_initial + row * channels * N + tile, load(adjoints + tile, here), mask=here)
