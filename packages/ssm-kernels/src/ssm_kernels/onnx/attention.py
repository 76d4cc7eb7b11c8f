"""Attention in windows in ONNX: windows by reshaping or gathering, then two matrix products.

Letters: B batch, H height, W width, h heads, d head dim; n windows of a picture, Q queries and K keys of a window. In
sliding windows every pixel is a window of its own, with K keys along an axis.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from ..ops.sliding_window_attention.schema import sliding_window_attention_op
from ..ops.window_attention.schema import window_attention_op
from .common import DataType, Value, cast, fixed, ints, joined, number, op, rounded, sizes, wide_dtype


def _roll(x: Value, shift: int) -> Value:
    """Move the pixels of (B, H, W, ...) up and to the left by `shift` (down and to the right if negative)."""
    for axis in (1, 2):
        first = op.Slice(x, ints(0), ints(shift), ints(axis))
        last = op.Slice(x, ints(shift), ints(2**63 - 1), ints(axis))
        x = op.Concat(last, first, axis=axis)
    return x


def _count(x: Value, axis: int, window: int) -> Value:
    """Give the number of windows along an axis, (1,)."""
    return op.Div(sizes(x, axis, axis + 1), ints(window))


def _indices(count: Value) -> Value:
    """Give 0 .. count - 1."""
    return op.Range(0, op.Squeeze(count), 1)


def _positions(count: Value, window: int, key_window: int) -> Value:
    """Give the pixels of every window along an axis with its border in front, (count, key_window)."""
    starts = op.Mul(_indices(count), ints(window))
    return op.Add(op.Unsqueeze(starts, ints(1)), ints(*range(key_window)))


def _stacked(x: Value, size: int, heads: int, dim: int) -> Value:
    """Bring (B, rows, size, columns, size, h, d) to (B, n, h, size^2, d)."""
    return op.Reshape(op.Transpose(x, perm=[0, 1, 3, 5, 2, 4, 6]), ints(0, -1, heads, size * size, dim))


def _windows(x: Value, window: int, heads: int, dim: int) -> Value:
    """Cut (B, H, W, h, d) into windows, (B, n, h, window^2, d)."""
    rows, columns = _count(x, 1, window), _count(x, 2, window)
    shape = joined(sizes(x, 0, 1), rows, ints(window), columns, ints(window, heads, dim))
    return _stacked(op.Reshape(x, shape), window, heads, dim)


def _key_windows(x: Value, window: int, key_window: int, heads: int, dim: int) -> Value:
    """Cut (B, H, W, h, d) into the overlapping windows of the keys, (B, n, h, key_window^2, d)."""
    if key_window == window:
        return _windows(x, window, heads, dim)
    border = (key_window - window) // 2
    rows, columns = (_positions(_count(x, axis, window), window, key_window) for axis in (1, 2))
    x = op.Pad(x, ints(0, border, border, 0, 0, 0, border, border, 0, 0))
    return _stacked(op.Gather(op.Gather(x, rows, axis=1), columns, axis=3), key_window, heads, dim)


def _picture(windows: Value, like: Value, window: int, heads: int, dim: int) -> Value:
    """Put (B, n, h, window^2, d) back into the picture `like`, (B, H, W, h, d)."""
    rows, columns = _count(like, 1, window), _count(like, 2, window)
    shape = joined(sizes(like, 0, 1), rows, columns, ints(heads, window, window, dim))
    return op.Reshape(op.Transpose(op.Reshape(windows, shape), perm=[0, 1, 4, 2, 5, 3, 6]), op.Shape(like))


def _position_bias(table: Value, window: int, key_window: int) -> Value:
    """Spread the table over all pairs of query and key, (h, Q, K)."""
    query, key = np.arange(window), np.arange(key_window) - (key_window - window) // 2
    offset = key[None, :] - query[:, None] if key_window > window else query[:, None] - key[None, :]
    side, reach = window + key_window - 1, (window + key_window) // 2 - 1
    rows = (offset + reach)[:, None, :, None] * side + (offset + reach)[None, :, None, :]
    index = op.Constant(value=ir.tensor(rows.reshape(window**2, key_window**2).astype(np.int32)))
    return op.Transpose(op.Gather(table, index, axis=0), perm=[2, 0, 1])


def _region_bias(like: Value, window: int, shift: int, wide: DataType) -> Value:
    """Give a large negative number to pairs that only the wrap-around made neighbours, 0 to others, (n, 1, Q, Q)."""

    def parts(axis: int) -> Value:
        """Number the parts of a moved axis whose pixels are neighbours in the picture too, (windows, window)."""
        size = sizes(like, axis, axis + 1)
        pixel = _indices(size)
        number = [
            op.Cast(op.GreaterOrEqual(pixel, op.Sub(size, ints(reach))), to=DataType.INT64) for reach in (window, shift)
        ]
        return op.Reshape(op.Add(number[0], number[1]), ints(-1, window))

    rows = op.Unsqueeze(op.Mul(parts(1), ints(3)), ints(1, 3))
    columns = op.Unsqueeze(parts(2), ints(0, 2))
    region = op.Reshape(op.Add(rows, columns), ints(-1, 1, window**2))
    apart = op.Not(op.Equal(op.Unsqueeze(region, ints(3)), op.Unsqueeze(region, ints(2))))
    return op.Mul(op.Cast(apart, to=wide), number(-1e30, wide))


def window_attention(
    q: Value,
    k: Value,
    v: Value,
    bias_table: Value | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
    impl: str,
) -> tuple[Value, Value]:
    """Translate `window_attention`; what it saves for the backward is empty."""
    heads, dim = fixed("window_attention", "q", q.shape[3:])
    wide, dtype = wide_dtype(q, k, v), q.dtype
    q, k, v = (cast(x, wide) for x in (q, k, v))
    if shift:
        q, k, v = (_roll(x, shift) for x in (q, k, v))
    queries = _windows(q, window, heads, dim)
    keys, values = (_key_windows(x, window, key_window, heads, dim) for x in (k, v))
    scores = op.MatMul(op.Mul(queries, number(scale, wide)), op.Transpose(keys, perm=[0, 1, 2, 4, 3]))
    if bias_table is not None:
        scores = op.Add(scores, _position_bias(cast(bias_table, wide), window, key_window))
    if shift:
        scores = op.Add(scores, _region_bias(q, window, shift, wide))
    y = _picture(op.MatMul(op.Softmax(scores, axis=-1), values), q, window, heads, dim)
    return rounded(_roll(y, -shift) if shift else y, wide, dtype), op.Constant(value_floats=[])


def _neighbours(size: Value, window: int, band: bool) -> tuple[Value, int]:
    """Give the keys that every position of an axis sees, (size, K), and K; those of a band may lie outside."""
    position = op.Unsqueeze(_indices(size), ints(1))
    if band:
        return op.Add(position, ints(*range(-window, window + 1))), 2 * window + 1
    first = op.Min(op.Max(op.Sub(position, ints(window // 2)), ints(0)), op.Sub(size, ints(window)))
    return op.Add(first, ints(*range(window))), window


def sliding_window_attention(q: Value, k: Value, v: Value, window: int, band: bool, impl: str) -> tuple[Value, Value]:
    """Translate `sliding_window_attention` on (B, H, W, h, d); what it saves for the backward is empty.

    The keys of every query are gathered: K (band) or K^2 (picture) copies of keys and values are made when it is run.
    """
    heads, dim = fixed("sliding_window_attention", "q", q.shape[3:])
    wide, dtype = wide_dtype(q, k, v), q.dtype
    width = sizes(q, 2, 3)
    columns, count = _neighbours(width, window, band)
    inside = op.Min(op.Max(columns, ints(0)), op.Sub(width, ints(1)))
    rows = None if band else _neighbours(sizes(q, 1, 2), window, False)[0]

    def near(x: Value) -> Value:
        """Gather (B, H, W, h, d) to (B, H, W, h, keys, d)."""
        if rows is None:
            return op.Transpose(op.Gather(x, inside, axis=2), perm=[0, 1, 2, 4, 3, 5])
        both = op.Gather(op.Gather(x, rows, axis=1), inside, axis=3)  # (B, H, K, W, K, h, d)
        shape = joined(sizes(q, 0, 3), ints(heads, count * count, dim))
        return op.Reshape(op.Transpose(both, perm=[0, 1, 3, 5, 2, 4, 6]), shape)

    q, k, v = (cast(x, wide) for x in (q, k, v))
    query = op.Unsqueeze(op.Mul(q, number(dim**-0.5, wide)), ints(4))
    scores = op.MatMul(query, op.Transpose(near(k), perm=[0, 1, 2, 3, 5, 4]))  # (B, H, W, h, 1, keys)
    if band:
        outside = op.Cast(op.Not(op.Equal(columns, inside)), to=wide)
        scores = op.Add(scores, op.Unsqueeze(op.Mul(outside, number(-1e30, wide)), ints(1, 2)))
    y = op.Squeeze(op.MatMul(op.Softmax(scores, axis=-1), near(v)), ints(4))
    return rounded(y, wide, dtype), op.Constant(value_floats=[])


TABLE = {window_attention_op: window_attention, sliding_window_attention_op: sliding_window_attention}
