"""Mamba-2 in ONNX: `ssd` as one Scan node over time, whose body is one step of all heads, and `ssd_step`.

Letters: B batch, L length, H heads, P head dim, N state, G groups, R = H / G. Within a Scan the state is
(B, G, R, P, N) and time comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnxscript

from ..ops.checks import refuse
from ..ops.ssd.schema import ssd_op
from ..ops.ssd_step.schema import ssd_step_op
from .common import DataType, Value, cast, fixed, ints, joined, number, op, rounded, silu, sizes, softplus, wide_dtype
from .scans import OURS, Float


@onnxscript.script(OURS, default_opset=op)
def head_recurrence(
    decay: Float,
    u: Float,
    B: Float,
    C: Float,
    state: Float,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> tuple[Float, Float]:
    """Run h = decay * h + u B, y = h C over axis 0 of decay (.., 1, 1), u (.., P, 1), B (.., 1, N), C (.., N, 1)."""

    @onnxscript.graph()
    def step(h, decay_t, u_t, B_t, C_t):
        following = h * decay_t + u_t * B_t
        y_t = op.MatMul(following, C_t)
        return following, y_t

    final, y = op.Scan(
        state,
        decay,
        u,
        B,
        C,
        body=step,
        num_scan_inputs=4,
        scan_input_directions=inputs,
        scan_output_directions=outputs,
    )
    return y, final


@dataclass(frozen=True)
class Heads:
    """The sizes that the operators must know when the model is exported, and the dtype they compute in."""

    heads: int
    channels: int
    groups: int
    states: int
    wide: DataType

    @classmethod
    def of(cls, operator: str, x: Value, B: Value, wide: DataType) -> Heads:
        """Read them off the last axes of x (.., H, P) and B (.., G, N)."""
        heads, channels = fixed(operator, "x", x.shape[-2:])
        groups, states = fixed(operator, "B", B.shape[-2:])
        return cls(heads, channels, groups, states, wide)

    def grouped(self, x: Value, *last: int, time: bool) -> Value:
        """Bring (B, ..) to (B, G, R, *last) or, with `time`, (B, L, ..) to (L, B, G, R, *last)."""
        shape = (self.groups, self.heads // self.groups, *last)
        if not time:
            return op.Reshape(x, ints(0, *shape))
        return op.Transpose(op.Reshape(x, ints(0, 0, *shape)), perm=[1, 0, 2, 3, *range(4, 4 + len(last))])

    def shared(self, x: Value, *last: int, time: bool) -> Value:
        """Do the same for B and C, which all heads of a group share: 1 in place of R."""
        shape = (self.groups, 1, *last)
        if not time:
            return op.Reshape(x, ints(0, *shape))
        return op.Transpose(op.Reshape(x, ints(0, 0, *shape)), perm=[1, 0, 2, 3, *range(4, 4 + len(last))])

    def zero_state(self, x: Value) -> Value:
        """Make the state of zeros for x (B, ..)."""
        shape = ints(self.groups, self.heads // self.groups, self.channels, self.states)
        return op.Expand(number(0.0, self.wide), joined(sizes(x, 0, 1), shape))

    def step_size(self, dt: Value, dt_bias: Value | None, dt_softplus: bool) -> Value:
        """Add the bias, apply softplus."""
        delta = cast(dt, self.wide)
        if dt_bias is not None:
            delta = op.Add(delta, cast(dt_bias, self.wide))
        return softplus(delta, self.wide) if dt_softplus else delta

    def finished(self, y: Value, x: Value, D: Value | None, z: Value | None) -> Value:
        """Add D x and apply the gate; y and x (.., H, P), x and the result of the wide dtype."""
        if D is not None:
            weight = cast(D, self.wide)
            y = op.Add(y, op.Mul(x, op.Unsqueeze(weight, ints(1)) if len(D.shape) == 1 else weight))
        return y if z is None else op.Mul(y, silu(cast(z, self.wide), self.wide))


def ssd(
    x: Value,
    dt: Value,
    A: Value,
    B: Value,
    C: Value,
    D: Value | None,
    z: Value | None,
    dt_bias: Value | None,
    initial_state: Value | None,
    cu_seqlens: Value | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
    impl: str,
) -> tuple[Value, Value]:
    """Translate `ssd`."""
    if cu_seqlens is not None:
        remedy = "export the model without packing, one sequence a row"
        refuse("ssd", "cu_seqlens in an ONNX export", "None", "a tensor", remedy)
    wide, dtype = wide_dtype(x), x.dtype
    form = Heads.of("ssd", x, B, wide)
    delta = form.step_size(dt, dt_bias, dt_softplus)
    rates = op.Exp(op.Mul(delta, cast(A, wide)))
    x, B, C = (cast(v, wide) for v in (x, B, C))
    if initial_state is None:
        state = form.zero_state(x)
    else:
        state = form.grouped(cast(initial_state, wide), form.channels, form.states, time=False)
    y, final = head_recurrence(
        form.grouped(rates, 1, 1, time=True),
        form.grouped(op.Mul(x, op.Unsqueeze(delta, ints(3))), form.channels, 1, time=True),
        form.shared(B, 1, form.states, time=True),
        form.shared(C, form.states, 1, time=True),
        state,
        inputs=[int(reverse)] * 4,
        outputs=[int(reverse)],
    )
    y = op.Transpose(op.Reshape(y, ints(0, 0, form.heads, form.channels)), perm=[1, 0, 2, 3])
    final = op.Reshape(final, ints(0, form.heads, form.channels, form.states))
    return rounded(form.finished(y, x, D, z), wide, dtype), final


def ssd_step(
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
    """Translate `ssd_step`."""
    wide, dtype = wide_dtype(x), x.dtype
    form = Heads.of("ssd_step", x, B, wide)
    delta = form.step_size(dt, dt_bias, dt_softplus)
    decay = form.grouped(op.Exp(op.Mul(delta, cast(A, wide))), 1, 1, time=False)
    x, B, C, before = (cast(v, wide) for v in (x, B, C, state))
    added = op.Mul(
        form.grouped(op.Mul(x, op.Unsqueeze(delta, ints(2))), form.channels, 1, time=False),
        form.shared(B, 1, form.states, time=False),
    )
    kept = op.Mul(form.grouped(before, form.channels, form.states, time=False), decay)
    following = op.Add(kept, added)
    seen = op.MatMul(following, form.shared(C, form.states, 1, time=False))
    y = form.finished(op.Reshape(seen, ints(0, form.heads, form.channels)), x, D, z)
    return rounded(y, wide, dtype), op.Reshape(following, ints(0, form.heads, form.channels, form.states))


TABLE = {ssd_op: ssd, ssd_step_op: ssd_step}
