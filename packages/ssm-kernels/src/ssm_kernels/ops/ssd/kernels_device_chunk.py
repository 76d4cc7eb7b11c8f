"""What the kernels of the Mamba-2 scan share: products on tensor cores, decays inside a chunk, tiles in memory.

Products take operands of type OPERAND, rounded to bfloat16 (the interpreter keeps those in float32, since its own
bfloat16 products are wrong), tf32 or nothing less than float32, and add in float32. PRECISE is single precision wanted
to its last bits.
"""
# Kernels take constexpr parameters as plain values.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from ..selective_scan.kernels_device_steps import exponent, power, softplus

# not specialised on: a new value compiles nothing
SIZES = ["length", "slots", "span", "spans", "units", "total_slots", "first_head", "first_group", "rows"]
NEVER = tl.constexpr(-200.0)  # an exponent whose power is zero
FADED = tl.constexpr(-160.0)  # a decay this strong leaves nothing, and no longer sum than that loses bits


@triton.jit
def operand(value, OPERAND: tl.constexpr, LOST: tl.constexpr):
    """Round to what a product takes, LOST bits of float32 less: by the bits where the conversion would cut them off.

    Tensor cores do so with tf32, and the interpreter with bfloat16.
    """
    if LOST > 0 and OPERAND == tl.float32:  # noqa: SIM300
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + ((1 << (LOST - 1)) - 1) + ((bits >> LOST) & 1)) & -(1 << LOST)
        value = bits.to(tl.float32, bitcast=True)
    return value.to(OPERAND)


@triton.jit
def load_tile(pointer, step, places, columns, width, EVEN: tl.constexpr):
    """Load rows at `places`, `step` apart; columns beyond `width` are zeros."""
    at = pointer + places[:, None] * step + columns[None, :]
    if EVEN:
        return tl.load(at)
    return tl.load(at, mask=(columns < width)[None, :] & (places >= 0)[:, None], other=0.0)


@triton.jit
def load_state(pointer, n, p, N: tl.constexpr, P: tl.constexpr, n_step: tl.constexpr, p_step: tl.constexpr):
    """Load a state as (N, P) in float32."""
    at = pointer + n[:, None] * n_step + p[None, :] * p_step
    return tl.load(at, mask=(n < N)[:, None] & (p < P)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_state(pointer, state, n, p, N: tl.constexpr, P: tl.constexpr, n_step: tl.constexpr, p_step: tl.constexpr):
    """Store a state that is held as (N, P)."""
    at = pointer + n[:, None] * n_step + p[None, :] * p_step
    tl.store(at, state.to(pointer.dtype.element_ty), mask=(n < N)[:, None] & (p < P)[None, :])


@triton.jit
def find_places(start, left, count, CHUNK: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """Return the places of a chunk's steps, counted from where its row begins, and which of the steps exist.

    Those that do not exist are at the place of the last that does, so that nothing has to be masked when it is read.
    """
    i = tl.arange(0, CHUNK)
    place = start + tl.minimum(i, left - 1)
    if REVERSE:
        place = count - 1 - place
    return place.to(tl.int64 if WIDE else tl.int32), i < left


@triton.jit
def step_sizes(dt, places, step, alive, bias, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr):
    """Return dt with its bias, and delta: 0 beyond the end, so that nothing decays and nothing is added there."""
    raw = tl.load(dt + places * step).to(tl.float32) + bias
    delta = raw
    if SOFTPLUS:
        delta = softplus(raw, PRECISE)
    return raw, tl.where(alive, delta, 0.0)


@triton.jit
def elapse(delta, rate, PRECISE: tl.constexpr):
    """Return the logarithm of the decay from the chunk's beginning, as a sum of two numbers.

    PRECISE sums in double precision: the difference of two long sums then has the bits of a short one.
    """
    if PRECISE:
        total = tl.cumsum(tl.maximum(delta.to(tl.float64) * rate.to(tl.float64), FADED), 0)
        high = total.to(tl.float32)
        low = (total - high.to(tl.float64)).to(tl.float32)
    else:
        high = tl.cumsum(tl.maximum(delta * exponent(rate, PRECISE), FADED), 0)
        low = high * 0.0
    return high, low


@triton.jit
def at_end(value, CHUNK: tl.constexpr):
    """Return the last entry of a vector."""
    return tl.sum(tl.where(tl.arange(0, CHUNK) == CHUNK - 1, value, 0.0), 0)


@triton.jit
def decay_within(high, low, CHUNK: tl.constexpr, PRECISE: tl.constexpr):
    """Return the decays from the column's step to the row's, zero above the diagonal."""
    i = tl.arange(0, CHUNK)
    span = high[:, None] - high[None, :]
    if PRECISE:
        span += low[:, None] - low[None, :]
    return power(tl.where(i[:, None] >= i[None, :], span, NEVER), PRECISE)


@triton.jit
def decay_to_end(high, low, CHUNK: tl.constexpr, PRECISE: tl.constexpr):
    """Return the decays from every step to the chunk's end."""
    span = at_end(high, CHUNK) - high
    if PRECISE:
        span += at_end(low, CHUNK) - low
    return power(span, PRECISE)


@triton.jit
def decay_since_start(high, low, PRECISE: tl.constexpr):
    """Return the decays from the chunk's beginning to every step."""
    return power(high + low if PRECISE else high, PRECISE)
