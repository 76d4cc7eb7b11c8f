"""What the translations share. They run while a model is exported and record ONNX nodes; tensors have no values here.

Arguments of a translation know dtype and shape, batch and positions perhaps as symbols. What is made of them knows
neither, so a translation reads off what it needs at its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from onnxscript import ir, opset18

from ..ops.checks import refuse

Value: TypeAlias = Any  # an ONNX value under construction
DataType: TypeAlias = ir.DataType
op: Any = opset18  # its own annotations are those of scripts, not of the values that are recorded here


def ints(*values: int) -> Value:
    """Make a constant (n,) of int64."""
    return op.Constant(value_ints=list(values))


def number(value: float, dtype: DataType) -> Value:
    """Make a scalar constant."""
    return op.Constant(value=ir.tensor(value, dtype=dtype))


def sizes(x: Value, start: int, end: int) -> Value:
    """Take sizes `start` to `end` of a tensor, int64, when the model is run."""
    return op.Shape(x, start=start, end=end)


def joined(*parts: Value) -> Value:
    """Put together a shape from int64 vectors."""
    return op.Concat(*parts, axis=0)


def fixed(operator: str, argument: str, shape: Sequence[object]) -> list[int]:
    """Return sizes that must be known when the model is exported."""
    found = [size for size in shape if isinstance(size, int)]
    if len(found) < len(shape):
        shown = ", ".join(map(str, shape))
        refuse(operator, f"{argument} in an ONNX export", "of fixed size", shown, "let only batch and positions change")
    return found


def wide_dtype(*tensors: Value) -> DataType:
    """Give the dtype to compute in: float64 if an argument has that, else float32."""
    return DataType.DOUBLE if any(x.dtype == DataType.DOUBLE for x in tensors) else DataType.FLOAT


def cast(x: Value, dtype: DataType) -> Value:
    """Convert an argument where its dtype is another one."""
    return x if x.dtype == dtype else op.Cast(x, to=dtype)


def rounded(x: Value, wide: DataType, dtype: DataType) -> Value:
    """Convert a result from the wide dtype."""
    return x if wide == dtype else op.Cast(x, to=dtype)


def flip(x: Value, axis: int) -> Value:
    """Reverse an axis."""
    return op.Slice(x, ints(-1), ints(-(2**63) + 1), ints(axis), ints(-1))


def softplus(x: Value, wide: DataType) -> Value:
    """Compute log(1 + exp(x)) to the last bits for all x.

    ONNX has no log1p, and Softplus of onnxruntime is 0 below about -17. log(u) with u = 1 + e rounded misses e by
    (e - (u - 1)) / u.
    """
    one = number(1.0, wide)
    e = op.Exp(op.Neg(op.Abs(x)))
    u = op.Add(e, one)
    log1p = op.Add(op.Log(u), op.Div(op.Sub(e, op.Sub(u, one)), u))
    return op.Add(op.Relu(x), log1p)


def silu(x: Value, wide: DataType) -> Value:
    """Compute x * sigmoid(x); Sigmoid of onnxruntime does not fall below 1.5e-8."""
    return op.Div(x, op.Add(op.Exp(op.Neg(x)), number(1.0, wide)))
