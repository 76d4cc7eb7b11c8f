"""The recurrence of single complex states on the device; kernels.py launches it.

Letters: B batch, L length, P states. A unit is what one program walks, a row or a span of it. Lanes are states, every
load and store is one line of memory, and memory is what bounds it.
"""
# This is Triton's language: a branch on a constexpr is decided when compiling, and tuples grow as they are unrolled,
# which no type checker follows in reasonable time; most of its findings are switched off here.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportInvalidTypeForm=false
# pyright: reportOptionalSubscript=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAssignmentType=false
# ruff: noqa: PLR0912, PLR0915

import triton
import triton.language as tl

from ..linear_scan.kernels_device import SIZES, find_place, load_pair, load_steps, store_pair, times


@triton.jit(do_not_specialize=[*SIZES, "states"])
def states_kernel(
    u, a, other, entering, h, ends, part,
    length, span, spans, states,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CONJUGATE: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:  # fmt: skip
    """Run h = a h + u over a unit, a conjugated if CONJUGATE; u and h are (B, L, 2, P).

    Without `h` only the state at the end of every unit but the last is wanted, in `ends`. With `other`, which is laid
    out like u, the sum over the steps of h times the conjugate of other one step onwards goes to `part`.
    """
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(states, BLOCK)
    unit = program // blocks
    row = unit // spans
    k = (unit % spans).to(tl.int32)
    first = k * span
    steps = tl.minimum(length - first, span)
    if h is None:
        steps = tl.where(k == spans - 1, 0, steps)
    p = (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    here = p < states
    a_re, a_im = load_pair(a, p, states, here)
    if CONJUGATE:
        a_im = -a_im
    re = tl.zeros([BLOCK], tl.float32)
    im = tl.zeros([BLOCK], tl.float32)
    if entering is not None:
        re, im = load_pair(entering + unit * 2 * states, p, states, here)
    sum_re = tl.zeros([BLOCK], tl.float64)  # terms of any sign may leave little of a long sum
    sum_im = tl.zeros([BLOCK], tl.float64)
    base = row * length * 2 * states + p
    u += base
    stride = 2 * states
    if other is not None:
        other += base
        onwards = tl.minimum(length - first - 1, span)  # steps that another one follows

    whole = steps - steps % STEPS
    res = load_steps(u, 0, stride, first, tl.maximum(steps, 1), length, here, STEPS, False, REVERSE, WIDE, EVEN)
    ims = load_steps(
        u + states, 0, stride, first, tl.maximum(steps, 1), length, here, STEPS, False, REVERSE, WIDE, EVEN
    )
    for i in range(0, whole, STEPS):
        res_next = load_steps(u, i + STEPS, stride, first, steps, length, here, STEPS, False, REVERSE, WIDE, EVEN)
        ims_next = load_steps(
            u + states, i + STEPS, stride, first, steps, length, here, STEPS, False, REVERSE, WIDE, EVEN
        )
        if other is not None:
            o_res = load_steps(
                other, i, stride, first + 1, tl.maximum(onwards, 1), length, here, STEPS, False, REVERSE, WIDE, False
            )
            o_ims = load_steps(
                other + states, i, stride, first + 1, tl.maximum(onwards, 1), length, here,
                STEPS, False, REVERSE, WIDE, False,
            )  # fmt: skip
        for j in tl.static_range(STEPS):
            re, im = (a_re * re + res[j]) - a_im * im, (a_re * im + ims[j]) + a_im * re
            if h is not None:
                at = h + base + find_place(i + j, first, steps, length, False, REVERSE, WIDE) * stride
                store_pair(at, 0, states, here, re, im)
            if other is not None:
                more_re, more_im = times(re, im, o_res[j], -o_ims[j])
                sum_re += tl.where(i + j < onwards, more_re, 0.0)
                sum_im += tl.where(i + j < onwards, more_im, 0.0)
        res = res_next
        ims = ims_next
    for i in range(whole, steps):
        at = find_place(i, first, steps, length, False, REVERSE, WIDE) * stride
        u_re, u_im = load_pair(u + at, 0, states, here)
        re, im = (a_re * re + u_re) - a_im * im, (a_re * im + u_im) + a_im * re
        if h is not None:
            store_pair(h + base + at, 0, states, here, re, im)
        if other is not None:
            following = find_place(i, first + 1, tl.maximum(onwards, 1), length, False, REVERSE, WIDE) * stride
            o_re, o_im = load_pair(other + following, 0, states, here & (p * 0 + i < onwards))
            more_re, more_im = times(re, im, o_re, -o_im)
            sum_re += more_re
            sum_im += more_im
    if h is None:
        store_pair(ends + unit * 2 * states, p, states, here, re, im)
    if other is not None:
        store_pair(part + unit * 2 * states, p, states, here, sum_re, sum_im)
