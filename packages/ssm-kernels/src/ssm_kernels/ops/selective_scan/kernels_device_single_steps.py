"""What the kernels for one state per channel share: places of a tile's steps, arithmetic, composition of steps.

A tile is T steps of a row by BLOCK_D channels. One warp holds it with a channel per lane and all steps of the channel
in that lane's registers, which is Triton's own choice for a tile of this shape as long as nobody tells it that the
addresses are aligned. Nothing depends on the layout but speed: what runs along the steps is then a chain of
instructions inside a thread, and all else is written once for the tile instead of once per step.
"""

# This is Triton's language: a branch on a constexpr is decided when compiling; the file is left out of pyright
# (pyproject.toml).

import triton
import triton.language as tl
from triton.language.standard import _sum_combine

from .kernels_device_steps import LOG2_E, sigmoid, softplus


@triton.jit
def run(a, b, state, t, T: tl.constexpr):
    """Return the states h -> a * h + b after every step of a tile, those before, and the last one.

    Row j of a tile is a sum in which all other rows are zero: inside a thread that is a register. The sum is one of
    integers, since adding 0 to a number is an instruction, for the sake of -0.
    """
    after = b
    before = b
    a_bits = a.to(tl.int32, bitcast=True)
    b_bits = b.to(tl.int32, bitcast=True)
    for j in tl.static_range(T):
        here = (t == j)[:, None]
        before = tl.where(here, state[None, :], before)
        decay = tl.reduce(tl.where(here, a_bits, 0), 0, _sum_combine).to(tl.float32, bitcast=True)
        added = tl.reduce(tl.where(here, b_bits, 0), 0, _sum_combine).to(tl.float32, bitcast=True)
        state = decay * state + added
        after = tl.where(here, state[None, :], after)
    return after, before, state


@triton.jit
def run_adjoint(a, w, passed, t, T: tl.constexpr):
    """Return the gradients g = w + s of a tile's states from the last on, where s = a * g passes on, and the last s."""
    grads = w
    a_bits = a.to(tl.int32, bitcast=True)
    w_bits = w.to(tl.int32, bitcast=True)
    for j in tl.static_range(T - 1, -1, -1):
        here = (t == j)[:, None]
        grad = tl.reduce(tl.where(here, w_bits, 0), 0, _sum_combine).to(tl.float32, bitcast=True) + passed
        passed = tl.reduce(tl.where(here, a_bits, 0), 0, _sum_combine).to(tl.float32, bitcast=True) * grad
        grads = tl.where(here, grad[None, :], grads)
    return grads, passed


@triton.jit
def locate(i, t, count, height, line, magic, back, column, WAY: tl.constexpr, ORDER: tl.constexpr):
    """Return a place, and relative to it those of the steps i + t of a row.

    WAY 1 runs down the columns of an image of `height` lines, `magic` being 2**32 / height rounded up: a product takes
    the place of a division, exact as long as height * (height + T) is below 2**32. There the places are relative to 0,
    which makes an address few instructions; along a row (WAY 0) they are constants. WAY 2 is a single step of either,
    as `column` says. ORDER 0 runs with memory, 1 against it, 2 as `back` says.
    """
    sign = tl.where(back, -1, 1) if ORDER == 2 else 1 - 2 * ORDER
    if WAY == 0:
        place = i
        offsets = t * sign
    else:
        across = i // height
        down = i - across * height
        place = down * line + across
        if WAY == 2:
            place = tl.where(column, place, i)
        offsets = t
    if ORDER == 2:
        place = tl.where(back, count - 1 - place, place)
    elif ORDER == 1:
        place = count - 1 - place
    if WAY == 1:
        columns = tl.umulhi((down + t).to(tl.uint32), magic.to(tl.uint32)).to(tl.int32)
        offsets = place + t * (line * sign) + columns * (sign - height * line * sign)
        place = i * 0
    return place.to(tl.int64), offsets


@triton.jit
def address(pointer, d, place, offsets, STRIDE: tl.constexpr, WAY: tl.constexpr):
    """Return the addresses of a tile from that of a row's first place and the channels."""
    if WAY == 1:
        at = pointer + ((offsets * STRIDE)[:, None] + d[None, :])
    else:
        at = (pointer + d[None, :]) + place * STRIDE + (offsets * STRIDE)[:, None]
    return at


@triton.jit
def load_tile(pointer, d, place, offsets, STRIDE: tl.constexpr, WAY: tl.constexpr):
    """Load a tile in the stored type."""
    return tl.load(address(pointer, d, place, offsets, STRIDE, WAY))


@triton.jit
def load_weights(pointer, place, offsets, STRIDE: tl.constexpr):
    """Load one number per step in the stored type."""
    return tl.load(pointer + place * STRIDE + offsets * STRIDE)


@triton.jit
def time_steps(raw, bias, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr):
    """Return delta and its derivative by `raw`; a kernel that does not use the latter does not compute it.

    log(1 + e) / e on [0, 1] is a polynomial fitted at Chebyshev points, to 1.2e-7.
    """
    value = raw.to(tl.float32) + bias
    slope = value
    if SOFTPLUS:
        if PRECISE:
            delta = softplus(value, True)
            slope = sigmoid(value, True)
        else:
            e = tl.exp2(tl.abs(value) * -LOG2_E)
            series = 0.07836166769266129 + e * (-0.02958850748836994 + e * 0.005253457929939032)
            series = 0.19111430644989014 + e * (-0.13674770295619965 + e * series)
            series = 0.33319270610809326 + e * (-0.24844369292259216 + e * series)
            series = 1.0 + e * (-0.49999502301216125 + e * series)
            delta = tl.maximum(value, 0.0) + e * series
            slope = tl.where(value >= 0, 1.0, e) / (1.0 + e)
    else:
        delta = value
    return delta, slope


@triton.jit
def enter_span(ends, totals, state, count, step, here, T: tl.constexpr):
    """Carry a state over `count` spans; step `step` leads from one to the next, `ends` and `totals` are the first's."""
    t = tl.arange(0, T)
    for s in range(0, count, T):
        at = ((s + t) * step)[:, None]
        alive = ((s + t) < count)[:, None] & here
        a = tl.load(totals + at, mask=alive, other=1.0)
        b = tl.load(ends + at, mask=alive, other=0.0)
        _, _, state = run(a, b, state, t, T)
    return state
