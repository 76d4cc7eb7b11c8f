"""The linear scan on the device; kernels.py launches it.

Letters: B batch, L length, D channels, M modes. A unit is what one program walks: a whole row, or a span of it. Lanes
are channels, so that loads are coalesced and a lane holds its modes in registers; addresses of parameters and states
(.., 2, M, D) are kept from being vectorised, since the compiler would spread the modes over the lanes. More modes than
a warp holds go to more warps, more than a program holds to more programs, whose outputs are added. All arithmetic is
float32 from the load on, complex numbers are pairs. L, B and what depends on them is not specialised on.

A walk along the adjoint starts at the last step of its unit and decays behind a step instead of ahead of it, so that
its state there is what the steps before will see.
"""
# This is Triton's language: a branch on a constexpr is decided when compiling, and tuples grow as they are unrolled,
# which no type checker follows in reasonable time; most of its findings are switched off here.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportInvalidTypeForm=false
# pyright: reportOptionalSubscript=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAssignmentType=false
# ruff: noqa: PLR0912, PLR0915, RUF005, SIM108

import triton
import triton.language as tl

# a new value compiles nothing, and nobody may conclude how states are aligned
SIZES = ["batch", "length", "span", "spans", "channels", "x_b", "x_t", "o_b", "o_t", "last_steps", "bits", "size"]
STATES = ["a", "into", "out", "weights", "entering", "adjoints", "final", "part", "ends"]


@triton.jit
def times(p_re, p_im, q_re, q_im):
    """Multiply complex numbers."""
    return p_re * q_re - p_im * q_im, p_re * q_im + p_im * q_re


@triton.jit
def load_pair(pointer, tile, plane, mask):
    """Load real and imaginary parts, zero outside the mask."""
    re = tl.load(pointer + tile, mask=mask, other=0.0).to(tl.float32)
    im = tl.load(pointer + plane + tile, mask=mask, other=0.0).to(tl.float32)
    return re, im


@triton.jit
def store_pair(pointer, tile, plane, mask, re, im):
    """Store real and imaginary parts."""
    tl.store(pointer + tile, re, mask=mask)
    tl.store(pointer + plane + tile, im, mask=mask)


@triton.jit
def find_place(i, first, steps, length, ADJOINT: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """Return where step i of a walk lies in its row; what lies behind the last stays at the last."""
    i = tl.minimum(i, steps - 1)
    if ADJOINT:
        i = steps - 1 - i
    p = first + i
    if REVERSE:
        p = length - 1 - p
    return p.to(tl.int64) if WIDE else p.to(tl.int32)


@triton.jit
def load_steps(
    pointer, i, stride, first, steps, length, mask,
    STEPS: tl.constexpr, ADJOINT: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Load steps i, i + 1, ... of a walk in the stored type: without a mask where the block fits, since masks cost."""
    values = ()
    for j in tl.static_range(STEPS):
        at = pointer + find_place(i + j, first, steps, length, ADJOINT, REVERSE, WIDE) * stride
        if EVEN:
            value = tl.load(at)
        else:
            value = tl.load(at, mask=mask, other=0.0)
        values = values + (value,)
    return values


@triton.jit
def find_unit(program, d_blocks, m_blocks, spans, span, length):
    """Split a program's number into unit, block of channels, block of modes; find the unit's row and steps."""
    unit = program // (d_blocks * m_blocks)
    block = (program % (d_blocks * m_blocks)).to(tl.int32)
    row = unit // spans
    k = (unit % spans).to(tl.int32)
    first = k * span
    steps = tl.minimum(length - first, span)
    return unit, row, k, block // m_blocks, block % m_blocks, first, steps


@triton.jit
def decay_and_add(re, im, a_re, a_im, add_re, add_im):
    """Return a h + added in four instructions: sums are ordered so that each is one multiplication and addition."""
    return (a_re * re + add_re) - a_im * im, (a_re * im + add_im) + a_im * re


@triton.jit
def take_step(re, im, a_re, a_im, in_re, in_im, value, UNIT: tl.constexpr, ADJOINT: tl.constexpr):
    """Add what a step brings; forwards the state decays first."""
    if ADJOINT:
        if UNIT:
            re = re + value[:, None]
        else:
            re = re + in_re * value[:, None]
            im = im + in_im * value[:, None]
    elif UNIT:
        re, im = (a_re * re + value[:, None]) - a_im * im, a_re * im + a_im * re
    else:
        re, im = decay_and_add(re, im, a_re, a_im, in_re * value[:, None], in_im * value[:, None])
    return re, im


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def scan_kernel(
    x, a, into, out, other, entering, y, final, part,
    batch, length, span, spans, channels, x_b, x_t, o_b, o_t,
    M: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    M_BLOCKS: tl.constexpr,
    ADJOINT: tl.constexpr,
    REVERSE: tl.constexpr,
    CUT: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:  # fmt: skip
    """Walk a unit with the state in registers, the loads of the next STEPS steps under way during the present ones.

    Without `y` only the state at the end of the walk is wanted, for every unit but the last of its row, and `final` has
    one per unit. With `other` the sum over the steps of state times other goes to `part`.
    """
    UNIT: tl.constexpr = into is None
    program = tl.program_id(0).to(tl.int64)
    d_blocks = tl.cdiv(channels, BLOCK_D)
    unit, row, k, d_block, m_block, first, steps = find_unit(program, d_blocks, M_BLOCKS, spans, span, length)
    d = d_block * BLOCK_D + tl.arange(0, BLOCK_D)
    m = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    here_d = d < channels
    here = here_d[:, None] & (m < M)[None, :]
    tile = m[None, :] * channels + d[:, None]
    plane = M * channels
    ending = k == 0 if ADJOINT else k == spans - 1
    if y is None:
        steps = tl.where(ending, 0, steps)
    x += row * x_b + d
    a_re, a_im = load_pair(a, tile, plane, here)
    in_re, in_im = a_re, a_im
    if not UNIT:
        in_re, in_im = load_pair(into, tile, plane, here)
    re = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    im = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    if entering is not None:
        re, im = load_pair(entering + unit * 2 * plane, tile, plane, here)
    out_re, out_im = a_re, a_im
    if y is not None:
        out_re, out_im = load_pair(out, tile, plane, here)
        y += (m_block.to(tl.int64) * batch + row) * length * channels + d
    sum_re = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    sum_im = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    if other is not None:
        other += row * o_b + d

    whole = steps - steps % STEPS
    xs = load_steps(x, 0, x_t, first, tl.maximum(steps, 1), length, here_d, STEPS, ADJOINT, REVERSE, WIDE, EVEN)
    os = xs
    if other is not None:
        os = load_steps(other, 0, o_t, first, steps, length, here_d, STEPS, ADJOINT, REVERSE, WIDE, EVEN)
    for i in range(0, whole, STEPS):
        xs_next = load_steps(x, i + STEPS, x_t, first, steps, length, here_d, STEPS, ADJOINT, REVERSE, WIDE, EVEN)
        os_next = xs_next
        if other is not None:
            os_next = load_steps(
                other, i + STEPS, o_t, first, steps, length, here_d, STEPS, ADJOINT, REVERSE, WIDE, EVEN
            )
        for j in tl.static_range(STEPS):
            re, im = take_step(re, im, a_re, a_im, in_re, in_im, xs[j].to(tl.float32), UNIT, ADJOINT)
            if y is not None:
                total = tl.sum(re * out_re - im * out_im, 1)
                at = find_place(i + j, first, steps, length, ADJOINT, REVERSE, WIDE) * channels
                tl.store(y + at, total.to(y.dtype.element_ty), mask=here_d)
            if other is not None:
                weight = os[j].to(tl.float32)[:, None]
                sum_re += re * weight
                sum_im += im * weight
            if ADJOINT:
                re, im = times(a_re, a_im, re, im)
        xs = xs_next
        os = os_next
    for i in range(whole, steps):
        at = find_place(i, first, steps, length, ADJOINT, REVERSE, WIDE)
        value = tl.load(x + at * x_t, mask=here_d, other=0.0).to(tl.float32)
        re, im = take_step(re, im, a_re, a_im, in_re, in_im, value, UNIT, ADJOINT)
        if y is not None:
            total = tl.sum(re * out_re - im * out_im, 1)
            tl.store(y + at * channels, total.to(y.dtype.element_ty), mask=here_d)
        if other is not None:
            weight = tl.load(other + at * o_t, mask=here_d, other=0.0).to(tl.float32)[:, None]
            sum_re += re * weight
            sum_im += im * weight
        if ADJOINT:
            re, im = times(a_re, a_im, re, im)
    if y is None:
        store_pair(final + unit * 2 * plane, tile, plane, here, re, im)
    else:
        if CUT:
            here &= tile * 0 + ending.to(tl.int32) > 0
        store_pair(final + row * 2 * plane, tile, plane, here, re, im)
    if other is not None:
        here = here_d[:, None] & (m < M)[None, :]
        store_pair(part + unit * 2 * plane, tile, plane, here, sum_re, sum_im)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATES)
def gradient_kernel(
    x, grad_y, a, into, weights, entering, adjoints, part,
    length, span, spans, channels, x_b, x_t, o_b, o_t,
    M: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    M_BLOCKS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:  # fmt: skip
    """Sum over a unit what is conjugate to the gradients of a and c, without a second walk from the other end.

    With the derivative k of the state by a, k[t] = a k[t-1] + h[t-1]: the sum of grad_y h is that of c; c times the sum
    of grad_y k, and k at the end times the adjoint that comes from behind the unit, is that of a.
    """
    UNIT: tl.constexpr = into is None
    program = tl.program_id(0).to(tl.int64)
    d_blocks = tl.cdiv(channels, BLOCK_D)
    unit, row, _, d_block, m_block, first, steps = find_unit(program, d_blocks, M_BLOCKS, spans, span, length)
    d = d_block * BLOCK_D + tl.arange(0, BLOCK_D)
    m = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    here_d = d < channels
    here = here_d[:, None] & (m < M)[None, :]
    tile = m[None, :] * channels + d[:, None]
    plane = M * channels
    x += row * x_b + d
    grad_y += row * o_b + d
    a_re, a_im = load_pair(a, tile, plane, here)
    in_re, in_im = a_re, a_im
    if not UNIT:
        in_re, in_im = load_pair(into, tile, plane, here)
    re = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    im = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    k_re = re
    k_im = re
    c_re = re
    c_im = re
    s_re = re
    s_im = re
    if entering is not None:
        re, im = load_pair(entering + unit * 2 * plane, tile, plane, here)

    whole = steps - steps % STEPS
    xs = load_steps(x, 0, x_t, first, steps, length, here_d, STEPS, False, REVERSE, WIDE, EVEN)
    gs = load_steps(grad_y, 0, o_t, first, steps, length, here_d, STEPS, False, REVERSE, WIDE, EVEN)
    for i in range(0, whole, STEPS):
        xs_next = load_steps(x, i + STEPS, x_t, first, steps, length, here_d, STEPS, False, REVERSE, WIDE, EVEN)
        gs_next = load_steps(grad_y, i + STEPS, o_t, first, steps, length, here_d, STEPS, False, REVERSE, WIDE, EVEN)
        for j in tl.static_range(STEPS):
            k_re, k_im = decay_and_add(k_re, k_im, a_re, a_im, re, im)
            re, im = take_step(re, im, a_re, a_im, in_re, in_im, xs[j].to(tl.float32), UNIT, False)
            weight = gs[j].to(tl.float32)[:, None]
            c_re += re * weight
            c_im += im * weight
            s_re += k_re * weight
            s_im += k_im * weight
        xs = xs_next
        gs = gs_next
    for i in range(whole, steps):
        at = find_place(i, first, steps, length, False, REVERSE, WIDE)
        value = tl.load(x + at * x_t, mask=here_d, other=0.0).to(tl.float32)
        k_re, k_im = decay_and_add(k_re, k_im, a_re, a_im, re, im)
        re, im = take_step(re, im, a_re, a_im, in_re, in_im, value, UNIT, False)
        weight = tl.load(grad_y + at * o_t, mask=here_d, other=0.0).to(tl.float32)[:, None]
        c_re += re * weight
        c_im += im * weight
        s_re += k_re * weight
        s_im += k_im * weight
    w_re, w_im = load_pair(weights, tile, plane, here)
    if not UNIT:
        s_re, s_im = times(w_re, w_im, s_re, s_im)
    if adjoints is not None:
        q_re, q_im = load_pair(adjoints + unit * 2 * plane, tile, plane, here)
        q_re, q_im = times(q_re, q_im, k_re, k_im)
        s_re += q_re
        s_im += q_im
    if UNIT:
        s_re, s_im = times(w_re, w_im, s_re, s_im)
    part += unit * 4 * plane
    store_pair(part, tile, plane, here, s_re, s_im)
    store_pair(part + 2 * plane, tile, plane, here, c_re, c_im)


@triton.jit
def raised(re, im, count, bits):
    """Raise complex numbers to the power `count` of so many bits."""
    total_re = tl.zeros_like(re) + 1.0
    total_im = tl.zeros_like(re)
    for k in range(0, bits):
        both_re, both_im = times(total_re, total_im, re, im)
        odd = ((count >> k) & 1) > 0
        total_re = tl.where(odd, both_re, total_re)
        total_im = tl.where(odd, both_im, total_im)
        re, im = times(re, im, re, im)
    return total_re, total_im


@triton.jit(do_not_specialize=SIZES)
def carry_kernel(
    ends, a, initial, spans, span, last_steps, bits, size,
    ADJOINT: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:  # fmt: skip
    """Replace what every unit adds by the state that enters it, along one row; ADJOINT from the last unit."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(size, BLOCK)
    row = program // blocks
    entry = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = entry < size
    a_re, a_im = load_pair(a, entry, size, here)
    all_re, all_im = raised(a_re, a_im, span, bits)
    part_re, part_im = raised(a_re, a_im, last_steps, bits)
    re = tl.zeros([BLOCK], tl.float32)
    im = tl.zeros([BLOCK], tl.float32)
    if initial is not None:
        re, im = load_pair(initial + row * 2 * size, entry, size, here)
    for first in range(0, spans, AHEAD):
        ends_re = ()
        ends_im = ()
        for j in tl.static_range(AHEAD):
            k = spans - 1 - first - j if ADJOINT else first + j
            at = ends + (row * spans + k) * 2 * size
            end_re, end_im = load_pair(at, entry, size, here & (entry * 0 + first + j < spans))
            ends_re = ends_re + (end_re,)
            ends_im = ends_im + (end_im,)
        for j in tl.static_range(AHEAD):
            k = spans - 1 - first - j if ADJOINT else first + j
            at = ends + (row * spans + k) * 2 * size
            store_pair(at, entry, size, here & (entry * 0 + first + j < spans), re, im)
            last = k == spans - 1
            power_re = tl.where(last, part_re, all_re)
            power_im = tl.where(last, part_im, all_im)
            re, im = times(power_re, power_im, re, im)
            re += ends_re[j]
            im += ends_im[j]
