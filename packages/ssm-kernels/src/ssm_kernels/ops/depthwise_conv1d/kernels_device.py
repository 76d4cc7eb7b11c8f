"""The device code of the depthwise convolution; kernels.py launches it.

Letters: B batch, L length, D channels, k taps, S packed sequences. A unit is a chunk of one sequence. A program walks
one unit for BLOCK channels, lanes along the channels, and keeps the last k - 1 steps in registers, so that every step
is read once (k - 1 more per chunk). Index u counts steps in the direction of the filter: reversing is the map from u to
memory and nothing else. It loads STEPS steps before it computes and stores any of them: loads do not move across
stores. All arithmetic is float32 from the load on. Offsets are int64. L, B and the strides are not specialised on.
"""
# This is Triton's language: constexpr parameters take plain values, annotations are the types of scalars, a branch on a
# constexpr is decided when compiling, and tuples are joined by +.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# ruff: noqa: RUF005, SIM102, SIM108

import triton
import triton.language as tl

SIZES = ["length", "chunks", "chunk", "channels", "x_b", "x_t", "g_b", "g_t"]


@triton.jit
def _place(unit, table, length, chunks, chunk, inside, REVERSE: tl.constexpr):
    """Find where a unit lies.

    Returns:
        Its sequence, its batch row, its first step in memory, how many steps the sequence has from there on, and, for
        every channel, the sequence's first step and last step plus one, counted from there: none in channels outside.
    """
    if table is None:
        row = (unit // chunks).to(tl.int64)
        batch = row
        begin = row * 0
        count = row * 0 + length
        first = (unit % chunks).to(tl.int64) * chunk
    else:  # (sequence, begin, count, first step) of every unit
        row = tl.load(table + unit * 4)
        batch = row * 0
        begin = tl.load(table + unit * 4 + 1)
        count = tl.load(table + unit * 4 + 2)
        first = tl.load(table + unit * 4 + 3)
    if REVERSE:
        origin = begin + count - 1 - first
    else:
        origin = begin + first
    # as far as it matters, so that 32 bits hold them: a filter reaches 7 steps. A unit without work is behind the end.
    left = tl.maximum(tl.minimum(count - first, 1 << 28), -64).to(tl.int32)
    start = tl.where(inside, -tl.minimum(first, 64).to(tl.int32), 0)
    end = tl.where(inside, left, -64)
    return row, batch, origin, left, start, end


@triton.jit
def _load_steps(pointer, stride, begin, end, STEPS: tl.constexpr):
    """Load steps `begin` to `begin` + STEPS - 1 counted from `pointer`, in float32; zero from `end` on.

    A second loop without this mask is 7% fewer instructions and three times the time to compile.
    """
    steps = ()
    for i in tl.static_range(STEPS):
        step = tl.load(pointer + (begin + i) * stride, mask=end > begin + i, other=0.0)
        steps = steps + (step.to(tl.float32),)
    return steps


@triton.jit
def _load_window(x, stride, state, start, end, inside, K: tl.constexpr, START: tl.constexpr, SIZE: tl.constexpr):
    """Load SIZE steps from START on (counted from `x`) in float32; the first k - 1 before the sequence are the state.

    Args:
        x: Pointers to step 0 of the unit.
        stride: From step to step.
        state: Pointers to the sequence's state, oldest first; None is zero.
        start: First step of the sequence, for every channel.
        end: Its last one plus one.
        inside: Mask of the channels.
        K: Taps.
        START: First step, not after 0.
        SIZE: How many.
    """
    window = ()
    for i in tl.static_range(SIZE):
        u = START + i
        mask = (end > u) & (start <= u)
        step = tl.load(x + stride * u, mask=mask, other=0.0).to(tl.float32)
        if state is not None:
            if u < 0:
                step += tl.load(state + (K - 1 + u), mask=inside & (start > u), other=0.0).to(tl.float32)
        window = window + (step,)
    return window


@triton.jit
def _load_taps(weight, d, inside, K: tl.constexpr):
    taps = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight + d * K + j, mask=inside, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _load_bias(bias, d, inside, BLOCK: tl.constexpr):
    value = tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        value += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit
def _filter(window, taps, bias, FIRST: tl.constexpr, K: tl.constexpr):
    """Sum taps[j] * window[FIRST + j] over j on top of the bias."""
    total = bias
    for j in tl.static_range(K):
        total += taps[j] * window[FIRST + j]
    return total


@triton.jit
def _sigmoid(x):
    """Return 1 / (1 + exp(-x)): an exponential that overflows gives 0, as it must."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _forward_steps(
    x, stride, y, y_stride, i, end, window, taps, bias,
    K: tl.constexpr, AHEAD: tl.constexpr, SILU: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Make STEPS results from step i on; return the window that follows."""
    window = window + _load_steps(x, stride, i + AHEAD, end, STEPS)
    for s in tl.static_range(STEPS):
        result = _filter(window, taps, bias, s, K)
        if SILU:
            result = result * _sigmoid(result)
        tl.store(y + (i + s) * y_stride, result.to(y.dtype.element_ty), mask=end > i + s)
    rest = ()
    for s in tl.static_range(K - 1):
        rest = rest + (window[STEPS + s],)
    return rest


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x,
    weight,
    bias,
    state,
    y,
    table,
    length: tl.int64,
    chunks: tl.int32,
    chunk: tl.int32,
    channels: tl.int32,
    x_b: tl.int64,
    x_t: tl.int64,
    K: tl.constexpr,
    LEAD: tl.constexpr,
    REVERSE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Convolve one chunk. State (B or S, D, k - 1) and y (B, L, D) are contiguous.

    D and the strides are given in units of VECTOR: that VECTOR divides them is what the compiler must know to move
    several numbers at once.
    """
    channels *= VECTOR
    x_b *= VECTOR
    x_t *= VECTOR
    AHEAD: tl.constexpr = K - 1 - LEAD
    blocks = (channels + BLOCK - 1) // BLOCK
    unit = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    row, batch, origin, left, start, end = _place(unit, table, length, chunks, chunk, inside, REVERSE)
    wide = channels.to(tl.int64)
    x += batch * x_b + origin * x_t + d
    y += (batch * length + origin) * wide + d
    if REVERSE:
        stride = -x_t
        y_stride = -wide
    else:
        stride = x_t
        y_stride = wide
    if state is not None:
        state += (row * channels + d) * (K - 1)
    taps = _load_taps(weight, d, inside, K)
    window = _load_window(x, stride, state, start, end, inside, K, -LEAD, K - 1)
    offset = _load_bias(bias, d, inside, BLOCK)
    stop = tl.maximum(tl.minimum(chunk, left), 0)
    for i in range(0, stop, STEPS):
        window = _forward_steps(x, stride, y, y_stride, i, end, window, taps, offset, K, AHEAD, SILU, STEPS)


@triton.jit
def _gradient_before(grad, result, SILU: tl.constexpr):
    """Give the gradient of the sum from that of its activation."""
    if SILU:
        s = _sigmoid(result)
        grad = grad * (s + result * (s - s * s))
    return grad


@triton.jit
def _backward_steps(
    x, stride, g, g_stride, grad_x, y_stride, i, end, window, grads, taps, bias, sums,
    K: tl.constexpr, LEAD: tl.constexpr, SILU: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Make the gradient of x at STEPS steps from i on, and add what steps i + LEAD on give to the parameters.

    Args:
        x: Pointers to step 0 of the unit.
        stride: From step to step.
        g: The same of the gradient of y.
        g_stride: From step to step.
        grad_x: The same of the result.
        y_stride: From step to step.
        i: First step.
        end: The sequence's last step plus one, for every channel.
        window: k - 1 steps of x, from i on.
        grads: k - 1 gradients of the sums, up to step i + LEAD - 1.
        taps: Filters.
        bias: Zero if there is none.
        sums: Gradients of the k taps and the bias so far.
        K: Taps.
        LEAD: Steps of the filter before the one it makes.
        SILU: Whether there is an activation.
        STEPS: How many steps.
    """
    window = window + _load_steps(x, stride, i + K - 1, end, STEPS)
    fresh = _load_steps(g, g_stride, i + LEAD, end, STEPS)
    for s in tl.static_range(STEPS):
        if SILU:
            result = _filter(window, taps, bias, s, K)
        else:
            result = bias
        before = _gradient_before(fresh[s], result, SILU)
        grads = grads + (before,)
        added = ()
        for j in tl.static_range(K):
            added = added + (sums[j] + before * window[s + j],)
        sums = added + (sums[K] + before,)
        total = grads[s + K - 1] * taps[0]
        for j in tl.static_range(1, K):
            total += grads[s + K - 1 - j] * taps[j]
        tl.store(grad_x + (i + s) * y_stride, total.to(grad_x.dtype.element_ty), mask=end > i + s)
    rest = ()
    rest_g = ()
    for s in tl.static_range(K - 1):
        rest = rest + (window[STEPS + s],)
        rest_g = rest_g + (grads[STEPS + s],)
    return rest, rest_g, sums


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    grad,
    x,
    weight,
    bias,
    state,
    grad_x,
    parts,
    table,
    length: tl.int64,
    chunks: tl.int32,
    chunk: tl.int32,
    channels: tl.int32,
    x_b: tl.int64,
    x_t: tl.int64,
    g_b: tl.int64,
    g_t: tl.int64,
    K: tl.constexpr,
    LEAD: tl.constexpr,
    REVERSE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Make one chunk of the gradient of x, and this chunk's part of those of weight and bias.

    parts (units, k + 1, D), contiguous as grad_x (B, L, D), takes the gradients of the taps, then that of the bias.
    The gradient of x at step u needs those of the sums at u + LEAD - (k - 1) to u + LEAD, which are computed again
    from x. A unit adds those at `LEAD` steps behind its own to the parameters, and the first unit of a sequence those
    in front of that, so that each is counted once.
    """
    channels *= VECTOR
    x_b *= VECTOR
    x_t *= VECTOR
    g_b *= VECTOR
    g_t *= VECTOR
    AHEAD: tl.constexpr = K - 1 - LEAD
    blocks = (channels + BLOCK - 1) // BLOCK
    unit = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    row, batch, origin, left, start, end = _place(unit, table, length, chunks, chunk, inside, REVERSE)
    wide = channels.to(tl.int64)
    x += batch * x_b + origin * x_t + d
    grad += batch * g_b + origin * g_t + d
    grad_x += (batch * length + origin) * wide + d
    if REVERSE:
        stride = -x_t
        g_stride = -g_t
        y_stride = -wide
    else:
        stride = x_t
        g_stride = g_t
        y_stride = wide
    if state is not None:
        state += (row * channels + d) * (K - 1)
    taps = _load_taps(weight, d, inside, K)
    offset = _load_bias(bias, d, inside, BLOCK)
    window = _load_window(x, stride, state, start, end, inside, K, 1 - K, 2 * K - 2)
    grads = ()
    sums = ()
    for _ in tl.static_range(K + 1):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    for s in tl.static_range(K - 1):  # the gradients of the sums at s - AHEAD, in front of the first that is stored
        mask = (end > s - AHEAD) & (start <= s - AHEAD)
        value = tl.load(grad + g_stride * (s - AHEAD), mask=mask, other=0.0).to(tl.float32)
        value = _gradient_before(value, _filter(window, taps, offset, s, K), SILU)
        grads = grads + (value,)
        own = tl.where(start == 0, value, 0.0)
        added = ()
        for j in tl.static_range(K):
            added = added + (sums[j] + own * window[s + j],)
        sums = added + (sums[K] + own,)
    rest = ()
    for s in tl.static_range(K - 1):
        rest = rest + (window[K - 1 + s],)
    window = rest
    stop = tl.maximum(tl.minimum(chunk, left), 0)
    for i in range(0, stop, STEPS):
        window, grads, sums = _backward_steps(
            x, stride, grad, g_stride, grad_x, y_stride, i, end, window, grads, taps, offset, sums,
            K, LEAD, SILU, STEPS,
        )  # fmt: skip
    parts += unit.to(tl.int64) * (K + 1) * channels + d
    for j in tl.static_range(K + 1):
        tl.store(parts + j * wide, sums[j], mask=inside)


@triton.jit(do_not_specialize=["units", "channels", "outputs"])
def sum_kernel(
    parts,
    grad_weight,
    grad_bias,
    units: tl.int32,
    channels: tl.int32,
    outputs: tl.int32,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add the parts of all units in a fixed order, for one of the outputs (k taps, bias or not) and BLOCK channels."""
    wide = channels.to(tl.int64)
    tap = tl.program_id(0) % outputs
    d = (tl.program_id(0) // outputs) * BLOCK + tl.arange(0, BLOCK)
    unit = tl.arange(0, ROWS)
    inside = d < channels
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, units, ROWS):
        rows = first + unit
        at = parts + (rows.to(tl.int64)[:, None] * (K + 1) + tap) * wide + d[None, :]
        total += tl.load(at, mask=(rows < units)[:, None] & inside[None, :], other=0.0)
    result = tl.sum(total, 0)
    if tap < K:
        tl.store(grad_weight + d * K + tap, result.to(grad_weight.dtype.element_ty), mask=inside)
    else:
        tl.store(grad_bias + d, result.to(grad_bias.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def state_kernel(
    grad,
    x,
    weight,
    bias,
    state,
    grad_state,
    bounds,
    length: tl.int64,
    channels: tl.int32,
    x_b: tl.int64,
    x_t: tl.int64,
    g_b: tl.int64,
    g_t: tl.int64,
    K: tl.constexpr,
    REVERSE: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make the gradient of one sequence's state, (B or S, D, k - 1): only its first k - 1 steps see the state."""
    blocks = (channels + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    if bounds is None:
        batch = row
        begin = row * 0
        count = row * 0 + length
    else:
        batch = row * 0
        begin = tl.load(bounds + row).to(tl.int64)
        count = tl.load(bounds + row + 1).to(tl.int64) - begin
    if REVERSE:
        origin = begin + count - 1
        stride = -x_t
        g_stride = -g_t
    else:
        origin = begin
        stride = x_t
        g_stride = g_t
    end = tl.where(inside, tl.minimum(count, 64).to(tl.int32), 0)
    x += batch * x_b + origin * x_t + d
    grad += batch * g_b + origin * g_t + d
    at = (row * channels + d) * (K - 1)
    taps = _load_taps(weight, d, inside, K)
    offset = _load_bias(bias, d, inside, BLOCK)
    window = ()
    for i in tl.static_range(K - 1):
        window = window + (tl.load(state + at + i, mask=inside, other=0.0).to(tl.float32),)
    for u in tl.static_range(K - 1):
        window = window + (tl.load(x + stride * u, mask=end > u, other=0.0).to(tl.float32),)
    grads = ()
    for u in tl.static_range(K - 1):
        value = tl.load(grad + g_stride * u, mask=end > u, other=0.0).to(tl.float32)
        grads = grads + (_gradient_before(value, _filter(window, taps, offset, u, K), SILU),)
    for i in tl.static_range(K - 1):
        total = grads[i] * taps[0]
        for j in tl.static_range(1, i + 1):
            total += grads[i - j] * taps[j]
        tl.store(grad_state + at + i, total.to(grad_state.dtype.element_ty), mask=inside)
