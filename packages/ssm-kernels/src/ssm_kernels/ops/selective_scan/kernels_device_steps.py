"""What the scans' kernels share: arithmetic to the wanted accuracy, and where the steps of a row lie in memory.

Letters and terms are those of kernels_device.py.
"""

# This is Triton's language: a branch on a constexpr is decided when compiling, and tuples grow as they are unrolled,
# which no type checker follows in reasonable time; the file is left out of pyright (pyproject.toml).
# ruff: noqa: RUF005, SIM108

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)
CUT_OFF = tl.constexpr(2.0**-25)

# not specialised on: a new value compiles nothing, and nobody may conclude how states are aligned
SIZES = ["first_program", "adds", "length", "slots", "span", "spans", "pieces", "height", "line", "reverse", "batches"]
SIZES += ["width", "A_rows", "D_rows", "size", "count", "x_b", "x_t", "dt_b", "dt_k", "dt_t", "z_b", "z_t"]
SIZES += ["grad_b", "grad_t", "B_b", "B_g", "B_t", "C_b", "C_g", "C_t"]
SIZES += ["W_b", "W_g", "W_t"]  # a size of 1 may come with any stride
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
    "parts",
    "grad_initial",
]


@triton.jit
def power(x, PRECISE: tl.constexpr):
    """Return 2**x by the special-function unit; PRECISE is e**x to the last bit, by a polynomial on what ln(2) leaves.

    The unit cuts its argument off below, which a state that lives for thousands of steps would feel: add the half of
    what is cut off.
    """
    if PRECISE:
        x = tl.minimum(tl.maximum(x, -120.0), 120.0)
        whole = tl.floor(x * LOG2_E + 0.5)
        f = (x - whole * 0.693145751953125) - whole * 1.42860682030941723e-6  # ln(2) in two pieces
        series = 1 / 6 + f * (1 / 24 + f * (1 / 120 + f * (1 / 720 + f * (1 / 5040))))
        result = (1.0 + (f + f * f * (0.5 + f * series))) * tl.exp2(whole)
    else:
        result = tl.exp2(x + CUT_OFF)
    return result


@triton.jit
def exponent(x, PRECISE: tl.constexpr):
    """Return what `power` makes exp(x) of."""
    return x if PRECISE else x * LOG2_E


@triton.jit
def softplus(x, PRECISE: tl.constexpr):
    """Return log(1 + exp(x)), relatively accurate in both tails: a step of 1e-6 is not 0.

    log1p is a series in s = e / (2 + e), where s is at most 1/3; PRECISE divides to the last bit.
    """
    e = power(exponent(-tl.abs(x), PRECISE), PRECISE)
    s = tl.div_rn(e, 2.0 + e) if PRECISE else e / (2.0 + e)
    q = s * s
    series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15))))))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)


@triton.jit
def add_up(total, lost, value, PRECISE: tl.constexpr):
    """Add to a long sum; PRECISE carries what rounding lost along (Kahan 1965), since the sum is a sequential one."""
    if PRECISE:
        value -= lost
        new = total + value
        lost = (new - total) - value
    else:
        new = total + value
    return new, lost


@triton.jit
def sigmoid(x, PRECISE: tl.constexpr):
    """Return 1 / (1 + exp(-x)), PRECISE to the last bit."""
    e = power(exponent(-tl.abs(x), PRECISE), PRECISE)
    above = tl.where(x >= 0, 1.0, e)
    return tl.div_rn(above, 1.0 + e) if PRECISE else above / (1.0 + e)


@triton.jit
def less(i, n, like):
    """Return i < n for every element of `like`: the interpreter cannot combine a vector mask with a scalar one."""
    return like * 0 + i < n


@triton.jit
def load(pointer, mask):
    """Load as float32, zero outside the mask."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_step(pointer, mask, EVEN: tl.constexpr):
    """Load inside a loop over time, in the stored type: without a mask where the block fits, since masks cost."""
    if EVEN:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer, mask=mask, other=0.0)
    return value


@triton.jit
def unpack(word, WORDS: tl.constexpr):
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
def find_unit(
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
def count_steps(count, first, span, PARALLEL: tl.constexpr, CHUNK: tl.constexpr):
    """Return how many steps a unit has from its first chunk on."""
    steps = tl.maximum(count - first * CHUNK, 0)
    if PARALLEL:
        steps = tl.minimum(steps, span * CHUNK)
    return steps.to(tl.int32)


@triton.jit
def block_channels(block, blocks_per_group, width, BLOCK_D: tl.constexpr):
    """Find a block's group, its channels and which of them exist; a block never crosses a group."""
    group = block // blocks_per_group
    local = (block % blocks_per_group) * BLOCK_D + tl.arange(0, BLOCK_D)
    return group, group * width + local, local < width


@triton.jit
def find_course(direction, height, line, reverse, CODES: tl.constexpr, PLANE: tl.constexpr):
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
        stride = direction * 0 + 1 - 2 * reverse
        wrap = stride * 0
    return stride, wrap


@triton.jit
def find_place(
    i,
    count,
    direction,
    height,
    line,
    reverse,
    CODES: tl.constexpr,
    PLANE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return the place of step i of a row, counted from where the row begins."""
    if PLANE:
        code = (CODES >> (2 * direction)) & 3
        i = tl.where((code & 2) != 0, count - 1 - i, i)
        p = tl.where((code & 1) != 0, (i % height) * line + i // height, i)
    else:
        p = tl.where(reverse != 0, count - 1 - i, i)
    return p.to(tl.int64) if WIDE else p.to(tl.int32)


@triton.jit
def onwards(p, stride, wrap, area, more, PLANE: tl.constexpr):
    """Return the place after p, or p itself if there is no more."""
    q = p + stride
    if PLANE:
        q = tl.where((q < 0) | (q >= area), q + wrap, q)
    return tl.where(more, q, p)


@triton.jit
def find_places(
    i, begin_i, steps, count, direction, height, line, reverse, stride, wrap,
    STEPS: tl.constexpr, CODES: tl.constexpr, PLANE: tl.constexpr, WIDE: tl.constexpr,
    BACK: tl.constexpr = False,
):  # fmt: skip
    """Return the places of steps i, i + 1, ... of the `steps` from begin_i on, BACK counted from their end.

    What lies behind the last stays at the last. Nothing is carried from block to block: the compiler's analysis of a
    carried place takes seconds.
    """
    last = tl.maximum(steps - 1, 0)
    i = tl.minimum(tl.maximum(i, 0), last)
    if BACK:
        p = find_place(begin_i + last - i, count, direction, height, line, reverse, CODES, PLANE, WIDE)
        stride = -stride
        wrap = -wrap
    else:
        p = find_place(begin_i + i, count, direction, height, line, reverse, CODES, PLANE, WIDE)
    places = ()
    for j in tl.static_range(STEPS):
        places = places + (p,)
        p = onwards(p, stride, wrap, height * line, i + j < last, PLANE)
    return places


@triton.jit
def load_steps(pointer, places, step, mask, EVEN: tl.constexpr, STEPS: tl.constexpr):
    """Load at STEPS places, in the stored type."""
    values = ()
    for j in tl.static_range(STEPS):
        values = values + (load_step(pointer + places[j] * step, mask, EVEN),)
    return values


@triton.jit
def advance(state, rates, delta, u, into, PRECISE: tl.constexpr):
    """H -> exp(delta * A) * h + u * B; `rates` are those of `exponent`."""
    return power(delta[:, None] * rates, PRECISE) * state + u[:, None] * into[None, :]


@triton.jit
def step_size(raw, bias, alive, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr):
    """Return delta; 0 beyond the end, so that nothing decays and nothing is added there."""
    delta = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta = softplus(delta, PRECISE)
    return tl.where(alive, delta, 0.0)


@triton.jit
def load_parameter(pointer, offset, d, here_d, BLOCK_D: tl.constexpr):
    """Load a parameter of the channels, zero where there is none."""
    value = tl.zeros([BLOCK_D], tl.float32)
    if pointer is not None:
        value = load(pointer + offset + d, here_d)
    return value
