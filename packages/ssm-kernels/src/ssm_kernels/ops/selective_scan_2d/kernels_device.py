"""The device code of the two-dimensional scan; kernels.py launches it.

B batch, L = height * width, D channels, N state, K directions. A chunk is CHUNK positions in line order: along the rows
for "row" and "row_reversed", down the columns for the other two. A program owns one chunk and one block of channels as
a tile [CHUNK, BLOCK] and handles every direction of its axis: the reversed ones scan the same tile from its other end,
so that x is read once an axis, and no copy in scan order exists. CODES holds two bits for each direction, its index in
cross.DIRECTIONS: the lower one says column, the upper one reversed. Buffers between the launches, (B, K, N, chunks, D),
count the chunks in scan order. Positions behind the last pixel have decay 1 and input 0, so a scan from either end
passes them unchanged.
"""
# This is Triton's language: constexpr parameters take plain values, and a branch on one is decided when compiling.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# A kernel compiled for one image serves every other. Strides are in the list so that the compiler never learns that one
# divides by 16: it would then give threads several channels of a tile, and scans would leave the registers.
SIZES = (
    *("height", "width", "length", "chunks", "batches"),
    *("x_batch", "x_pixel", "dt_batch", "dt_pixel", "dt_k"),
    *("b_batch", "b_pixel", "b_k", "c_batch", "c_pixel", "c_k", "g_batch", "g_pixel"),
)


@triton.jit
def _follow(decay_before, state_before, decay, state):
    """Join two stretches of the recurrence h = decay * h + state."""
    return decay_before * decay, decay * state_before + state


@triton.jit
def _follow_twice(decay_before, state_before, kept_before, decay, state, kept):
    """Do the same, and keep decay * h of the state before the last step: state minus input would cancel."""
    return decay_before * decay, decay * state_before + state, decay * state_before + kept


@triton.jit
def _softplus(z):
    """Compute log(1 + exp(z)), to a few units in the last place for any z."""
    e = tl.exp(-tl.abs(z))
    s = e / (2.0 + e)  # log1p(e) = 2 atanh(s), and s is at most 1/3
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(z, 0.0) + 2.0 * s * series


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _pixel(first, step, height, width, COLUMN: tl.constexpr):
    """Map positions first + step in line order to row-major pixel indices; only the division of `first` is 64-bit."""
    if COLUMN:
        line = first // height
        down = (first - line * height).to(tl.int32) + step
        pixel = (down % height).to(tl.int64) * width + line + down // height
    else:
        pixel = first + step
    return pixel


@triton.jit
def _tile(chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Return batch index, chunk, first position, channel block (it runs fastest) and channels of a program."""
    program = tl.program_id(0).to(tl.int64)
    block = program % BLOCKS
    chunk = program // BLOCKS % chunks
    return program // BLOCKS // chunks, chunk, chunk * CHUNK, block, block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _entry(batch, batch_stride, k, k_stride):
    """Offset of one direction of one batch entry, in 64 bits: a stride may fit into 32 and a multiple of it not."""
    return batch * batch_stride + k_stride.to(tl.int64) * k


@triton.jit
def _load(pointers, mask):
    """Load in float32 at once: arithmetic in bfloat16 is wrong in the interpreter, and never wanted."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _biased(dt, bias_ptr, offsets, real):
    """Add dt_bias, if there is one, to a tile of dt."""
    z = dt
    if bias_ptr is not None:
        z += _load(bias_ptr + offsets, real)[None, :]
    return z


@triton.jit
def _step_size(z, inside, SOFTPLUS: tl.constexpr):
    """Turn dt + dt_bias into the step size; 0 behind the last pixel and the last channel."""
    delta = z
    if SOFTPLUS:
        delta = _softplus(z)
    return tl.where(inside, delta, 0.0)


@triton.jit
def _row_of(tile, row, CHUNK: tl.constexpr):
    """Return one row of [CHUNK, BLOCK]."""
    return tl.sum(tl.where((tl.arange(0, CHUNK) == row)[:, None], tile, 0.0), axis=0)


@triton.jit
def _scan_order(chunk, chunks, REVERSE: tl.constexpr):
    """Count a chunk from where the scan starts."""
    order = chunk
    if REVERSE:
        order = chunks - 1 - chunk
    return order


@triton.jit
def _states_of_direction(
    delta, scaled, gy, A_ptr, b_ptr, c_ptr, decay_ptr, end_ptr, adjoint_ptr, state_step, here, real,
    REVERSE: tl.constexpr, ADJOINT: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scan one direction of a tile from a zero state, and its adjoint from zero behind the last step."""
    LAST: tl.constexpr = 0 if REVERSE else CHUNK - 1
    for n in range(N):
        exponent = _load(A_ptr + n * CHANNELS, real) * LOG2_E
        decay = tl.exp2(delta * exponent[None, :])
        added = scaled * _load(b_ptr + n, here)[:, None]
        product, state = tl.associative_scan((decay, added), 0, _follow, REVERSE)
        tl.store(decay_ptr + n * state_step, _row_of(product, LAST, CHUNK), mask=real)
        tl.store(end_ptr + n * state_step, _row_of(state, LAST, CHUNK), mask=real)
        if ADJOINT:
            received = decay * gy * _load(c_ptr + n, here)[:, None]
            _, adjoint = tl.associative_scan((decay, received), 0, _follow, not REVERSE)
            tl.store(adjoint_ptr + n * state_step, _row_of(adjoint, CHUNK - 1 - LAST, CHUNK), mask=real)


@triton.jit(do_not_specialize=SIZES)
def chunk_states_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, bias_ptr, gy_ptr,
    decay_ptr, end_ptr, adjoint_ptr,
    height, width, length, chunks,
    x_batch, x_pixel, dt_batch, dt_pixel, dt_k, b_batch, b_pixel, b_k, c_batch, c_pixel, c_k, g_batch, g_pixel,
    CODES: tl.constexpr, K: tl.constexpr, COLUMN: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Store the decay product and the end state of every chunk, and the adjoint of the state that enters it."""
    batch, chunk, first, _, channel = _tile(chunks, CHUNK, BLOCK, BLOCKS)
    step = tl.arange(0, CHUNK)
    here, real = first + step < length, channel < CHANNELS
    inside = here[:, None] & real[None, :]
    pixel = _pixel(first, step, height, width, COLUMN)
    x = _load(x_ptr + batch * x_batch + pixel[:, None] * x_pixel + channel[None, :], inside)
    gy = x
    if ADJOINT:
        gy = _load(gy_ptr + batch * g_batch + pixel[:, None] * g_pixel + channel[None, :], inside)
    state_step = chunks.to(tl.int64) * CHANNELS
    for k in tl.static_range(K):
        if (CODES >> (2 * k)) & 1 == COLUMN:
            dt = _load(dt_ptr + _entry(batch, dt_batch, k, dt_k) + pixel[:, None] * dt_pixel + channel[None, :], inside)
            delta = _step_size(_biased(dt, bias_ptr, k * CHANNELS + channel, real), inside, SOFTPLUS)
            order = _scan_order(chunk, chunks, (CODES >> (2 * k)) & 2 != 0)
            at = ((batch * K + k) * N * chunks + order) * CHANNELS + channel
            _states_of_direction(
                delta, delta * x, gy, A_ptr + k * N * CHANNELS + channel,
                B_ptr + _entry(batch, b_batch, k, b_k) + pixel * b_pixel,
                C_ptr + _entry(batch, c_batch, k, c_k) + pixel * c_pixel,
                decay_ptr + at, end_ptr + at, adjoint_ptr + at, state_step, here, real,
                (CODES >> (2 * k)) & 2 != 0, ADJOINT, N, CHANNELS, CHUNK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["chunks"])
def carry_kernel(
    decay_ptr, end_ptr, entering_ptr, chunks,
    REVERSE: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Turn (decay, end state) of every chunk into the state that enters it: (rows, chunks, D), GROUP chunks at a time.

    REVERSE runs from the last chunk to the first, for adjoints.
    """
    program = tl.program_id(0).to(tl.int64)
    channel = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    real = channel < CHANNELS
    start = program // BLOCKS * chunks * CHANNELS + channel
    carry = tl.zeros([BLOCK], tl.float32)
    for first in range(0, chunks, GROUP):
        count = first + tl.arange(0, GROUP).to(tl.int64)
        order = _scan_order(count, chunks, REVERSE)
        follower = _scan_order(count + 1, chunks, REVERSE)
        inside = (count < chunks)[:, None] & real[None, :]
        at = start[None, :] + order[:, None] * CHANNELS
        product, state = tl.associative_scan((_load(decay_ptr + at, inside), _load(end_ptr + at, inside)), 0, _follow)
        state += product * carry[None, :]
        at = start[None, :] + follower[:, None] * CHANNELS
        tl.store(entering_ptr + at, state, mask=inside & (count < chunks - 1)[:, None])
        carry = _row_of(state, GROUP - 1, GROUP)
    origin = _scan_order(0, chunks, REVERSE)
    tl.store(entering_ptr + start + origin * CHANNELS, tl.zeros([BLOCK], tl.float32), mask=real)


@triton.jit
def _output_of_direction(
    y, delta, scaled, A_ptr, b_ptr, c_ptr, entering_ptr, state_step, here, real,
    REVERSE: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add what the states of one direction of a tile contribute to its output."""
    for n in range(N):
        exponent = _load(A_ptr + n * CHANNELS, real) * LOG2_E
        added = scaled * _load(b_ptr + n, here)[:, None]
        product, state = tl.associative_scan((tl.exp2(delta * exponent[None, :]), added), 0, _follow, REVERSE)
        state += product * _load(entering_ptr + n * state_step, real)[None, :]
        y += state * _load(c_ptr + n, here)[:, None]
    return y


@triton.jit(do_not_specialize=SIZES)
def output_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr,
    entering_ptr, before_ptr, y_ptr,
    height, width, length, chunks,
    x_batch, x_pixel, dt_batch, dt_pixel, dt_k, b_batch, b_pixel, b_k, c_batch, c_pixel, c_k,
    CODES: tl.constexpr, K: tl.constexpr, COLUMN: tl.constexpr, SOFTPLUS: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Scan every chunk from the state that enters it; sum the outputs of this axis onto `before`, the other axis'."""
    batch, chunk, first, _, channel = _tile(chunks, CHUNK, BLOCK, BLOCKS)
    step = tl.arange(0, CHUNK)
    here, real = first + step < length, channel < CHANNELS
    inside = here[:, None] & real[None, :]
    pixel = _pixel(first, step, height, width, COLUMN)
    x = _load(x_ptr + batch * x_batch + pixel[:, None] * x_pixel + channel[None, :], inside)
    at_y = (batch * length + pixel)[:, None] * CHANNELS + channel[None, :]
    y = tl.zeros([CHUNK, BLOCK], tl.float32)
    if before_ptr is not None:
        y += _load(before_ptr + at_y, inside)
    state_step = chunks.to(tl.int64) * CHANNELS
    for k in tl.static_range(K):
        if (CODES >> (2 * k)) & 1 == COLUMN:
            dt = _load(dt_ptr + _entry(batch, dt_batch, k, dt_k) + pixel[:, None] * dt_pixel + channel[None, :], inside)
            delta = _step_size(_biased(dt, bias_ptr, k * CHANNELS + channel, real), inside, SOFTPLUS)
            if D_ptr is not None:
                y += x * _load(D_ptr + k * CHANNELS + channel, real)[None, :]
            order = _scan_order(chunk, chunks, (CODES >> (2 * k)) & 2 != 0)
            y = _output_of_direction(
                y, delta, delta * x, A_ptr + k * N * CHANNELS + channel,
                B_ptr + _entry(batch, b_batch, k, b_k) + pixel * b_pixel,
                C_ptr + _entry(batch, c_batch, k, c_k) + pixel * c_pixel,
                entering_ptr + ((batch * K + k) * N * chunks + order) * CHANNELS + channel,
                state_step, here, real, (CODES >> (2 * k)) & 2 != 0, N, CHANNELS,
            )  # fmt: skip
    tl.store(y_ptr + at_y, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradients_of_direction(
    dx, x, gy, delta, next_delta, A_ptr, b_ptr, c_ptr, entering_ptr, leaving_ptr, state_step,
    dA_ptr, dB_ptr, dC_ptr, here, real,
    REVERSE: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add what the states of one direction contribute to dx, store their dA, dB, dC; returns dx and d(delta)."""
    scaled = delta * x
    grad_delta = tl.zeros([CHUNK, BLOCK], tl.float32)
    for n in range(N):
        rate = _load(A_ptr + n * CHANNELS, real)[None, :]
        exponent = rate * LOG2_E
        b = _load(b_ptr + n, here)[:, None]
        none = tl.zeros([CHUNK, BLOCK], tl.float32)
        terms = (tl.exp2(delta * exponent), scaled * b, none)
        product, state, kept = tl.associative_scan(terms, 0, _follow_twice, REVERSE)
        entering = product * _load(entering_ptr + n * state_step, real)[None, :]
        state += entering
        received = gy * _load(c_ptr + n, here)[:, None]
        decay = tl.exp2(next_delta * exponent)
        product, adjoint = tl.associative_scan((decay, received), 0, _follow, not REVERSE)
        adjoint += product * _load(leaving_ptr + n * state_step, real)[None, :]
        grad_exponent = adjoint * (kept + entering)
        grad_scaled = adjoint * b
        dx += grad_scaled * delta
        grad_delta += grad_scaled * x + grad_exponent * rate
        tl.store(dA_ptr + n * CHANNELS, tl.sum(grad_exponent * delta, axis=0), mask=real)
        tl.store(dB_ptr + n, tl.sum(adjoint * scaled, axis=1), mask=here)
        tl.store(dC_ptr + n, tl.sum(gy * state, axis=1), mask=here)
    return dx, grad_delta


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, gy_ptr,
    entering_ptr, leaving_ptr, before_ptr,
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr,
    height, width, length, chunks, batches,
    x_batch, x_pixel, dt_batch, dt_pixel, dt_k, b_batch, b_pixel, b_k, c_batch, c_pixel, c_k, g_batch, g_pixel,
    CODES: tl.constexpr, K: tl.constexpr, COLUMN: tl.constexpr, SOFTPLUS: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Scan every chunk from the state that enters it, and backwards from the adjoint of the state that leaves it.

    dx is summed onto `before`, the other axis'. dA (B, chunks, K, N, D), dbias (B, chunks, K, D) and dD (B, chunks, D,
    the same for every direction) are partial sums over a chunk, dB and dC (BLOCKS, B, L, K, N) over a channel block.
    """
    batch, chunk, first, block, channel = _tile(chunks, CHUNK, BLOCK, BLOCKS)
    step = tl.arange(0, CHUNK)
    here, real = first + step < length, channel < CHANNELS
    inside = here[:, None] & real[None, :]
    pixel = _pixel(first, step, height, width, COLUMN)
    x = _load(x_ptr + batch * x_batch + pixel[:, None] * x_pixel + channel[None, :], inside)
    gy = _load(gy_ptr + batch * g_batch + pixel[:, None] * g_pixel + channel[None, :], inside)
    row = batch * length + pixel
    partial = batch * chunks + chunk
    at_x = row[:, None] * CHANNELS + channel[None, :]
    dx = tl.zeros([CHUNK, BLOCK], tl.float32)
    if before_ptr is not None:
        dx += _load(before_ptr + at_x, inside)
    if dD_ptr is not None:
        tl.store(dD_ptr + partial * CHANNELS + channel, tl.sum(gy * x, axis=0), mask=real)
    state_step = chunks.to(tl.int64) * CHANNELS
    for k in tl.static_range(K):
        if (CODES >> (2 * k)) & 1 == COLUMN:
            at_dt = dt_ptr + _entry(batch, dt_batch, k, dt_k) + channel[None, :]
            z = _biased(_load(at_dt + pixel[:, None] * dt_pixel, inside), bias_ptr, k * CHANNELS + channel, real)
            delta = _step_size(z, inside, SOFTPLUS)
            # The step size one step later, loaded again: shifting registers would go through shared memory. Zero at
            # the last step of the chunk, so that the adjoint of the state that leaves arrives undamped.
            later = step + 1 - ((CODES >> (2 * k)) & 2)
            linked = here & (later >= 0) & (later < CHUNK) & (first + later < length)
            linked = linked[:, None] & real[None, :]
            next_dt = _load(at_dt + _pixel(first, later, height, width, COLUMN)[:, None] * dt_pixel, linked)
            next_delta = _step_size(_biased(next_dt, bias_ptr, k * CHANNELS + channel, real), linked, SOFTPLUS)
            if D_ptr is not None:
                dx += gy * _load(D_ptr + k * CHANNELS + channel, real)[None, :]
            at = ((batch * K + k) * N * chunks + _scan_order(chunk, chunks, (CODES >> (2 * k)) & 2 != 0)) * CHANNELS
            at_bc = ((block * batches * length + row) * K + k) * N
            dx, grad_delta = _gradients_of_direction(
                dx, x, gy, delta, next_delta, A_ptr + k * N * CHANNELS + channel,
                B_ptr + _entry(batch, b_batch, k, b_k) + pixel * b_pixel,
                C_ptr + _entry(batch, c_batch, k, c_k) + pixel * c_pixel,
                entering_ptr + at + channel, leaving_ptr + at + channel, state_step,
                dA_ptr + (partial * K + k) * N * CHANNELS + channel, dB_ptr + at_bc, dC_ptr + at_bc, here, real,
                (CODES >> (2 * k)) & 2 != 0, N, CHANNELS, CHUNK, BLOCK,
            )  # fmt: skip
            if SOFTPLUS:
                grad_delta *= _sigmoid(z)
            at_k = (row * K + k)[:, None] * CHANNELS + channel[None, :]
            tl.store(ddt_ptr + at_k, grad_delta.to(ddt_ptr.dtype.element_ty), mask=inside)
            if dbias_ptr is not None:
                total = tl.sum(tl.where(inside, grad_delta, 0.0), axis=0)
                tl.store(dbias_ptr + (partial * K + k) * CHANNELS + channel, total, mask=real)
    tl.store(dx_ptr + at_x, dx.to(dx_ptr.dtype.element_ty), mask=inside)
