"""Linear state-space models in ONNX: complex recurrences as real and imaginary part, one Scan node over time each.

Also where PyTorch runs them as FFT: a file holds the recurrence. Long filters become one grouped Conv.
Letters: B batch, L length, D channels, M modes of a channel; for S5 H channels, P modes; J taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnxscript

from ..ops.diagonal_scan.schema import diagonal_scan_op
from ..ops.linear_modes.schema import linear_modes_op
from ..ops.linear_scan.schema import linear_scan_op
from ..ops.long_conv1d.schema import long_conv1d_op
from .common import DataType, Value, cast, flip, ints, joined, number, op, rounded, sizes, wide_dtype
from .scans import OURS, Float

Pair = tuple[Value, Value]


@onnxscript.script(OURS, default_opset=op)
def mode_recurrence(
    x: Float,
    a_real: Float,
    a_imag: Float,
    b_real: Float,
    b_imag: Float,
    c_real: Float,
    c_imag: Float,
    real: Float,
    imag: Float,
    directions: Sequence[int],
) -> tuple[Float, Float, Float]:
    """Run h = a h + b x, y = Re sum of c h over axis 0 of x (L, B, 1, D); states (B, M, D), y (L, B, D)."""

    @onnxscript.graph()
    def step(h_real, h_imag, x_t):
        next_real = a_real * h_real - a_imag * h_imag + b_real * x_t
        next_imag = a_real * h_imag + a_imag * h_real + b_imag * x_t
        y_t = op.ReduceSum(c_real * next_real - c_imag * next_imag, op.Constant(value_ints=[1]), keepdims=0)
        return next_real, next_imag, y_t

    last_real, last_imag, y = op.Scan(
        real,
        imag,
        x,
        body=step,
        num_scan_inputs=1,
        scan_input_directions=directions,
        scan_output_directions=directions,
    )
    return y, last_real, last_imag


@onnxscript.script(OURS, default_opset=op)
def shared_recurrence(
    u_real: Float,
    u_imag: Float,
    a_real: Float,
    a_imag: Float,
    real: Float,
    imag: Float,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> tuple[Float, Float, Float, Float]:
    """Run h = a h + u over axis 0 of u (L, B, P); give all h and the last ones."""

    @onnxscript.graph()
    def step(h_real, h_imag, u_real_t, u_imag_t):
        next_real = a_real * h_real - a_imag * h_imag + u_real_t
        next_imag = a_real * h_imag + a_imag * h_real + u_imag_t
        y_real = op.Identity(next_real)
        y_imag = op.Identity(next_imag)
        return next_real, next_imag, y_real, y_imag

    last_real, last_imag, all_real, all_imag = op.Scan(
        real,
        imag,
        u_real,
        u_imag,
        body=step,
        num_scan_inputs=2,
        scan_input_directions=inputs,
        scan_output_directions=outputs,
    )
    return all_real, all_imag, last_real, last_imag


def _planes(x: Value, axis: int) -> tuple[Value, Value]:
    """Take real and imaginary part from an axis of two."""
    return op.Gather(x, 0, axis=axis), op.Gather(x, 1, axis=axis)


def _start(initial_state: Value | None, x: Value, sizes_behind: Value, wide: DataType) -> tuple[Value, Value]:
    """Give real and imaginary part of the first state, (B, ..)."""
    if initial_state is not None:
        return _planes(cast(initial_state, wide), 1)
    zero = op.Expand(number(0.0, wide), joined(sizes(x, 0, 1), sizes_behind))
    return zero, zero


def _stacked(real: Value, imag: Value, axis: int = 1) -> Value:
    """Put real and imaginary part side by side on a new axis."""
    return op.Concat(op.Unsqueeze(real, ints(axis)), op.Unsqueeze(imag, ints(axis)), axis=axis)


def _nothing(x: Value) -> Value:
    """Make what stands for states that nobody asked for, (0,)."""
    return op.Slice(op.Reshape(x, ints(-1)), ints(0), ints(0), ints(0))


def linear_modes(
    rate: Value,
    into: Value,
    out: Value,
    step: Value,
    rule: str,
    unit: bool,
    scale: float,
    double: bool,
    impl: str,
) -> tuple[Value, Value, Value]:
    """Translate the discretisation, in float64; see `ssm_kernels.ops.linear_modes`."""
    wide, kind = DataType.DOUBLE, DataType.DOUBLE if double else DataType.FLOAT
    shared = len(rate.shape) == 2
    factor = number(scale, wide)
    lam, weight_in, weight_out = (_planes(cast(t, wide), 0) for t in (rate, into, out))
    delta = cast(step, wide)
    a, f = _discretize((op.Mul(lam[0], delta), op.Mul(lam[1], delta)), rule)
    f = op.Mul(f[0], delta), op.Mul(f[1], delta)
    if shared:
        f = op.Unsqueeze(f[0], ints(-1)), op.Unsqueeze(f[1], ints(-1))
    b = _times(f, weight_in)
    c = op.Mul(weight_out[0], factor), op.Mul(weight_out[1], factor)
    if unit:
        c = _times(b, c)
    first = op.Expand(number(0.0, kind), ints(0)) if unit else rounded(_stacked(*b, axis=0), wide, kind)
    return rounded(_stacked(*a, axis=0), wide, kind), first, rounded(_stacked(*c, axis=0), wide, kind)


def _discretize(z: Pair, rule: str) -> tuple[Pair, Pair]:
    """Give a and f / step of z = step * Lambda."""
    wide = DataType.DOUBLE
    one, half = number(1.0, wide), number(0.5, wide)
    if rule == "bilinear":
        u, v = op.Sub(one, op.Mul(half, z[0])), op.Mul(half, z[1])
        size = op.Add(op.Mul(u, u), op.Mul(v, v))
        f = op.Div(u, size), op.Div(v, size)
        more = _times(z, f)
        return (op.Add(one, more[0]), more[1]), f
    growth = op.Exp(z[0])
    a = op.Mul(growth, op.Cos(z[1])), op.Mul(growth, op.Sin(z[1]))
    size = op.Add(op.Mul(z[0], z[0]), op.Mul(z[1], z[1]))
    near = op.Less(size, number(1e-6, wide))
    safe = op.Where(near, one, size)
    whole = _times((op.Sub(a[0], one), a[1]), (z[0], op.Neg(z[1])))
    series = (one, op.Mul(z[1], number(0.0, wide)))
    for order in (4, 3, 2):  # 1 + z/2 (1 + z/3 (1 + z/4))
        more = _times(series, z)
        part = number(1.0 / order, wide)
        series = op.Add(one, op.Mul(part, more[0])), op.Mul(part, more[1])
    f = tuple(op.Where(near, close, op.Div(far, safe)) for close, far in zip(series, whole, strict=True))
    return a, (f[0], f[1])


def _times(p: Pair, q: Pair) -> Pair:
    """Multiply complex numbers."""
    real = op.Sub(op.Mul(p[0], q[0]), op.Mul(p[1], q[1]))
    return real, op.Add(op.Mul(p[0], q[1]), op.Mul(p[1], q[0]))


def linear_scan(
    x: Value, a: Value, b: Value | None, c: Value, initial_state: Value | None, mode: str, reverse: bool, impl: str
) -> tuple[Value, Value]:
    """Translate `linear_scan`, S4D's operator; b None is 1."""
    wide, dtype = wide_dtype(x), x.dtype
    x = cast(x, wide)
    into = (number(1.0, wide), number(0.0, wide)) if b is None else _planes(cast(b, wide), 0)
    start = _start(initial_state, x, sizes(a, 1, 3), wide)
    y, real, imag = mode_recurrence(
        op.Unsqueeze(op.Transpose(x, perm=[1, 0, 2]), ints(2)),
        *_planes(cast(a, wide), 0),
        *into,
        *_planes(cast(c, wide), 0),
        *start,
        directions=[int(reverse)],
    )
    final = _nothing(real) if mode == "fft" else _stacked(real, imag)
    return rounded(op.Transpose(y, perm=[1, 0, 2]), wide, dtype), final


def diagonal_scan(
    x: Value,
    a: Value,
    b: Value,
    c: Value,
    initial_state: Value | None,
    mode: str,
    reverse: bool,
    save_states: bool,
    impl: str,
) -> tuple[Value, Value, Value]:
    """Translate `diagonal_scan`, S5's operator; the states that a backward would need come out empty."""
    wide, dtype = wide_dtype(x), x.dtype
    x = op.Transpose(cast(x, wide), perm=[1, 0, 2])
    start = _start(initial_state, op.Transpose(x, perm=[1, 0, 2]), sizes(a, 1, 2), wide)
    b_real, b_imag = (op.Transpose(part, perm=[1, 0]) for part in _planes(cast(b, wide), 0))
    a_real, a_imag = _planes(cast(a, wide), 0)
    both = [int(reverse)] * 2
    real, imag, last_real, last_imag = shared_recurrence(
        op.MatMul(x, b_real), op.MatMul(x, b_imag), a_real, a_imag, *start, inputs=both, outputs=both
    )
    c_real, c_imag = (op.Transpose(part, perm=[1, 0]) for part in _planes(cast(c, wide), 0))
    y = op.Transpose(op.Sub(op.MatMul(real, c_real), op.MatMul(imag, c_imag)), perm=[1, 0, 2])
    return rounded(y, wide, dtype), _stacked(last_real, last_imag), _nothing(last_real)


def long_conv1d(x: Value, kernel: Value, kernel_back: Value | None, reverse: bool, impl: str) -> Value:
    """Translate `long_conv1d`: a Conv whose filter is as long as the kernel, with zeros on the side that it sees."""
    wide, dtype = wide_dtype(x, kernel), x.dtype
    channels = op.Transpose(cast(x, wide), perm=[0, 2, 1])
    width = kernel.shape[0]
    y = _one_side(channels, cast(kernel, wide), width, reverse)
    if kernel_back is not None:
        y = op.Add(y, _one_side(channels, cast(kernel_back, wide), width, not reverse))
    return rounded(op.Transpose(y, perm=[0, 2, 1]), wide, dtype)


def _one_side(x: Value, kernel: Value, width: int, future: bool) -> Value:
    """Convolve x (B, D, L) with (D, J) that meets the present and the past, or the future."""
    missing = op.Sub(sizes(kernel, 1, 2), ints(1))
    pads = joined(ints(0, 0, 0, 0, 0), missing) if future else joined(ints(0, 0), missing, ints(0, 0, 0))
    weight = op.Unsqueeze(kernel if future else flip(kernel, 1), ints(1))
    return op.Conv(op.Pad(x, pads), weight, group=width)


TABLE = {
    linear_modes_op: linear_modes,
    linear_scan_op: linear_scan,
    diagonal_scan_op: diagonal_scan,
    long_conv1d_op: long_conv1d,
}
