"""The depthwise convolution in ONNX: one Conv node. Letters: B batch, L length, D channels, k taps."""

from __future__ import annotations

from ..ops.checks import refuse
from ..ops.depthwise_conv1d.schema import depthwise_conv1d_op
from .common import Value, cast, fixed, flip, ints, op, rounded, silu, wide_dtype


def depthwise_conv1d(
    x: Value,
    weight: Value,
    bias: Value | None,
    initial_state: Value | None,
    cu_seqlens: Value | None,
    padding: str,
    reverse: bool,
    activation: str | None,
    impl: str,
) -> Value:
    """Translate `depthwise_conv1d`."""
    if cu_seqlens is not None:
        remedy = "export the model without packing, one sequence a row"
        refuse("depthwise_conv1d", "cu_seqlens in an ONNX export", "None", "a tensor", remedy)
    wide, dtype = wide_dtype(x, weight), x.dtype
    channels, taps = fixed("depthwise_conv1d", "weight", weight.shape)
    lead = taps - 1 if padding == "causal" else (taps - 1) // 2
    if reverse:
        lead = taps - 1 - lead
    pads = [lead, taps - 1 - lead]
    row = op.Transpose(cast(x, wide), perm=[0, 2, 1])
    if initial_state is not None:
        state, pads = cast(initial_state, wide), [0, 0]
        row = op.Concat(row, flip(state, 2), axis=2) if reverse else op.Concat(state, row, axis=2)
    filters = op.Unsqueeze(cast(weight, wide), ints(1))
    filters = flip(filters, 2) if reverse else filters
    arguments = (row, filters) if bias is None else (row, filters, cast(bias, wide))
    y = op.Transpose(op.Conv(*arguments, group=channels, kernel_shape=[taps], pads=pads), perm=[0, 2, 1])
    return rounded(silu(y, wide) if activation == "silu" else y, wide, dtype)


TABLE = {depthwise_conv1d_op: depthwise_conv1d}
