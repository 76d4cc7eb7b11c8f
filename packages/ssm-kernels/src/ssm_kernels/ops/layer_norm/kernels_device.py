"""The device code of the norms; kernels.py launches it.

Letters: C channels. A tile is ROWS rows of all channels, padded to BLOCK lanes. Sums and statistics are float32. C is a
constant of the kernel, so that whole vectors are loaded wherever it allows; the number of rows is not specialised on.
The rows of what is normalised are APART numbers apart, those of all else lie behind one another.
"""
# This is Triton's language: constexpr parameters take plain values, annotations are the types of scalars, and a branch
# on a constexpr is decided when compiling.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportInvalidTypeForm=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false
# ruff: noqa: SIM114

import triton
import triton.language as tl


@triton.jit
def _tile(first, rows, CHANNELS: tl.constexpr, APART: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return where the numbers of a tile are, counted from its first one, at both distances, and which are there."""
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, BLOCK)
    there = row[:, None] < tl.minimum(rows - first, ROWS).to(tl.int32)
    at, spaced = row[:, None] * CHANNELS + lane[None, :], row[:, None] * APART + lane[None, :]
    return at, spaced, there & (lane < CHANNELS)[None, :]


@triton.jit
def _load_row(pointer, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Load what belongs to every channel, (1, BLOCK) float32."""
    lane = tl.arange(0, BLOCK)
    return tl.load(pointer + lane, mask=lane < CHANNELS, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normal(h, there, eps, CHANNELS: tl.constexpr, CENTERED: tl.constexpr):
    """Return the normalised rows of a tile and the factor that did it, (ROWS,)."""
    if CENTERED:
        mean = tl.sum(h, 1) / CHANNELS
        h = tl.where(there, h - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(h * h, 1) / CHANNELS + eps)
    return h * scale[:, None], scale


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x, weight, bias, residual, y, total, rows: tl.int64, eps,
    CHANNELS: tl.constexpr, APART: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTERED: tl.constexpr,
) -> None:  # fmt: skip
    """Normalise a tile of x, or of x + residual, which then goes to `total`."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    at, spaced, there = _tile(first, rows, CHANNELS, APART, ROWS, BLOCK)
    base = first * CHANNELS
    h = tl.load(x + first * APART + spaced, mask=there, other=0.0).to(tl.float32)
    if residual is not None:
        h += tl.load(residual + base + at, mask=there, other=0.0).to(tl.float32)
        kept = h.to(total.dtype.element_ty)
        tl.store(total + base + at, kept, mask=there)
        h = kept.to(tl.float32)  # the sum as everyone sees it, the backward too
    normal, _ = _normal(h, there, eps, CHANNELS, CENTERED)
    if weight is not None:
        normal *= _load_row(weight, CHANNELS, BLOCK)
    if bias is not None:
        normal += _load_row(bias, CHANNELS, BLOCK)
    tl.store(y + base + at, normal.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    grad, grad_total, total, weight, grad_x, grad_residual, weight_parts, bias_parts, rows: tl.int64, eps,
    CHANNELS: tl.constexpr, APART: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTERED: tl.constexpr,
) -> None:  # fmt: skip
    """Walk over every so manieth tile; the sums over its rows go to one row of each of the parts (programs, C).

    The normalised rows n come from `total` again. With t = grad * weight the gradient of the sum is
    (t - mean(t) - n * mean(t * n)) * scale, without mean(t) if not CENTERED, plus `grad_total`.
    """
    program = tl.program_id(0).to(tl.int64)
    weight_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    bias_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    tiles = tl.cdiv(rows, ROWS)
    for tile in range(program, tiles, tl.num_programs(0)):
        first = tile * ROWS
        at, spaced, there = _tile(first, rows, CHANNELS, APART, ROWS, BLOCK)
        base = first * CHANNELS
        h = tl.load(total + first * APART + spaced, mask=there, other=0.0).to(tl.float32)
        t = tl.load(grad + base + at, mask=there, other=0.0).to(tl.float32)
        normal, scale = _normal(h, there, eps, CHANNELS, CENTERED)
        if weight_parts is not None:
            weight_sum += t * normal
        if bias_parts is not None:
            bias_sum += t
        if weight is not None:
            t *= _load_row(weight, CHANNELS, BLOCK)
        inner = tl.sum(t * normal, 1) / CHANNELS
        result = t - normal * inner[:, None]
        if CENTERED:
            result -= (tl.sum(t, 1) / CHANNELS)[:, None]
        result *= scale[:, None]
        if grad_total is not None:
            result += tl.load(grad_total + base + at, mask=there, other=0.0).to(tl.float32)
        tl.store(grad_x + base + at, result.to(grad_x.dtype.element_ty), mask=there)
        if grad_residual is not None:
            tl.store(grad_residual + base + at, result.to(grad_residual.dtype.element_ty), mask=there)
    lane = tl.arange(0, BLOCK)
    to = program * CHANNELS + lane
    if weight_parts is not None:
        tl.store(weight_parts + to, tl.sum(weight_sum, 0), mask=lane < CHANNELS)
    if bias_parts is not None:
        tl.store(bias_parts + to, tl.sum(bias_sum, 0), mask=lane < CHANNELS)


@triton.jit(do_not_specialize=["parts", "channels"])
def sum_kernel(
    weight_parts, bias_parts, grad_weight, grad_bias, parts, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Add the parts (parts, C) of one gradient for BLOCK channels, ROWS at a time: of the weight, then of the bias."""
    blocks = tl.cdiv(channels, BLOCK)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    if weight_parts is None:
        _sum(bias_parts, grad_bias, channel, parts, channels, ROWS, BLOCK)
    elif bias_parts is None:
        _sum(weight_parts, grad_weight, channel, parts, channels, ROWS, BLOCK)
    elif tl.program_id(0) < blocks:  # no "or" above: what is None must not be compiled for
        _sum(weight_parts, grad_weight, channel, parts, channels, ROWS, BLOCK)
    else:
        _sum(bias_parts, grad_bias, channel, parts, channels, ROWS, BLOCK)


@triton.jit
def _sum(source, target, channel, parts, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    value = tl.zeros([ROWS, BLOCK], tl.float32)
    inside = channel < channels
    for first in range(0, parts, ROWS):
        row = first + tl.arange(0, ROWS)
        at = row[:, None] * channels + channel[None, :]
        value += tl.load(source + at, mask=(row < parts)[:, None] & inside[None, :], other=0.0)
    tl.store(target + channel, tl.sum(value, 0).to(target.dtype.element_ty), mask=inside)
