"""The one-token operators in ONNX, for decoders that carry their states as inputs and outputs.

Letters: B batch, D channels, N state, G groups, d = D / G, k taps.
"""

from __future__ import annotations

from ..ops.depthwise_conv1d_step.schema import depthwise_conv1d_step_op
from ..ops.selective_scan_step.schema import selective_scan_step_op
from .common import Value, cast, fixed, ints, op, rounded, silu, softplus, wide_dtype


def selective_scan_step(
    x: Value,
    dt: Value,
    A: Value,
    B: Value,
    C: Value,
    D: Value | None,
    z: Value | None,
    dt_bias: Value | None,
    state: Value,
    dt_softplus: bool,
    impl: str,
) -> tuple[Value, Value]:
    """Translate `selective_scan_step`."""
    wide, dtype = wide_dtype(x), x.dtype
    channels, states = fixed("selective_scan_step", "A", A.shape[-2:])
    groups = fixed("selective_scan_step", "B", B.shape[1:2])[0] if len(B.shape) == 3 else 1
    form = (groups, channels // groups)
    rates = op.Reshape(cast(A, wide), ints(*([0] if len(A.shape) == 3 else []), *form, states))
    x, delta, B, C, before = (cast(v, wide) for v in (x, dt, B, C, state))
    if dt_bias is not None:
        delta = op.Add(delta, cast(dt_bias, wide))
    if dt_softplus:
        delta = softplus(delta, wide)
    delta_x = op.Reshape(op.Mul(delta, x), ints(0, *form, 1))
    decay = op.Exp(op.Mul(op.Reshape(delta, ints(0, *form, 1)), rates))
    added = op.Mul(delta_x, op.Reshape(B, ints(0, groups, 1, states)))
    following = op.Add(op.Mul(decay, op.Reshape(before, ints(0, *form, states))), added)
    seen = op.Mul(following, op.Reshape(C, ints(0, groups, 1, states)))
    y = op.Reshape(op.ReduceSum(seen, ints(-1), keepdims=0), ints(0, channels))
    if D is not None:
        y = op.Add(y, op.Mul(cast(D, wide), x))
    if z is not None:
        y = op.Mul(y, silu(cast(z, wide), wide))
    return rounded(y, wide, dtype), op.Reshape(following, ints(0, channels, states))


def depthwise_conv1d_step(
    x: Value, weight: Value, bias: Value | None, state: Value, activation: str | None, impl: str
) -> tuple[Value, Value]:
    """Translate `depthwise_conv1d_step`."""
    wide = wide_dtype(x, weight)
    newest = op.Unsqueeze(x, ints(2))
    steps = op.Concat(cast(state, wide), newest if x.dtype == wide else op.Cast(newest, to=wide), axis=2)
    y = op.ReduceSum(op.Mul(steps, cast(weight, wide)), ints(-1), keepdims=0)
    if bias is not None:
        y = op.Add(y, cast(bias, wide))
    if activation == "silu":
        y = silu(y, wide)
    kept = op.Slice(state, ints(1), ints(2**63 - 1), ints(2))
    following = op.Concat(kept, newest if x.dtype == state.dtype else op.Cast(newest, to=state.dtype), axis=2)
    return rounded(y, wide, x.dtype), following


TABLE = {selective_scan_step_op: selective_scan_step, depthwise_conv1d_step_op: depthwise_conv1d_step}
