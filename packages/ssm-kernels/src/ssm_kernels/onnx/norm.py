"""The norms in ONNX, as a model on a GPU is exported; elsewhere they are PyTorch's own. C channels."""

from __future__ import annotations

from onnxscript import ir

from ..ops.layer_norm.schema import layer_norm_op
from .common import DataType, Value, cast, fixed, ints, number, op, rounded

WIDE = DataType.FLOAT


def layer_norm(
    x: Value,
    weight: Value | None,
    bias: Value | None,
    residual: Value | None,
    dtype: DataType,
    eps: float,
    centered: bool,
) -> tuple[Value, Value]:
    """Translate `layer_norm`: one LayerNormalization node, or the root mean square spelled out."""
    operator = "layer_norm" if centered else "rms_norm"
    (channels,) = fixed(operator, "C of x", x.shape[-1:])
    total, both = op.Constant(value=ir.tensor([], dtype=x.dtype)), x.dtype
    if residual is not None:
        both = x.dtype if x.dtype == residual.dtype else WIDE  # two different half precisions promote to float32
        total = op.Add(cast(x, both), cast(residual, both))
    h = rounded(total if residual is not None else x, both, WIDE)
    weight, bias = (None if part is None else cast(part, WIDE) for part in (weight, bias))
    if centered:
        scale = op.Constant(value_floats=[1.0] * channels) if weight is None else weight
        arguments = (h, scale) if bias is None else (h, scale, bias)
        y, *_ = op.LayerNormalization(*arguments, axis=-1, epsilon=eps)  # mean and factor follow
    else:
        square = op.ReduceMean(op.Mul(h, h), ints(-1))
        y = op.Div(h, op.Sqrt(op.Add(square, number(eps, WIDE))))
        y = y if weight is None else op.Mul(y, weight)
        y = y if bias is None else op.Add(y, bias)
    return rounded(y, WIDE, dtype), total


TABLE = {layer_norm_op: layer_norm}
