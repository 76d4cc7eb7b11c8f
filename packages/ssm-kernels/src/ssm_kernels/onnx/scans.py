"""The selective scans in ONNX: one Scan node over time, whose body is one step for all channels and states.

Letters: B batch, L length, D channels, N state, G groups, d = D / G; H height, W width, K directions. Within a Scan the
state is (B, G, N, d) and time comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, Union

import onnxscript
from onnxscript import DOUBLE, FLOAT
from onnxscript.values import Opset

from ..ops.checks import refuse
from ..ops.selective_scan.schema import selective_scan_op
from ..ops.selective_scan_2d.cross import is_column, is_reversed
from ..ops.selective_scan_2d.schema import selective_scan_2d_op
from ..ops.selective_scan_bidirectional.schema import selective_scan_bidirectional_op
from .common import (
    DataType,
    Value,
    cast,
    fixed,
    flip,
    ints,
    joined,
    number,
    op,
    rounded,
    silu,
    sizes,
    softplus,
    wide_dtype,
)

Float = TypeVar("Float", bound=Union[FLOAT, DOUBLE])  # noqa: UP007 - onnxscript does not know FLOAT | DOUBLE
OURS = Opset("ssm_kernels", 1)


@onnxscript.script(OURS, default_opset=op)
def recurrence(
    delta: Float,
    u: Float,
    A: Float,
    B: Float,
    C: Float,
    state: Float,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> tuple[Float, Float]:
    """Run h = exp(delta * A) * h + u * B, y = C h over axis 0 of delta, u (.., 1, d), B (.., N, 1), C (.., 1, N)."""

    @onnxscript.graph()
    def step(h, delta_t, u_t, B_t, C_t):
        following = h * op.Exp(delta_t * A) + u_t * B_t
        y_t = op.MatMul(C_t, following)
        return following, y_t

    final, y = op.Scan(
        state,
        delta,
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
class Form:
    """The sizes that a scan must know when the model is exported, and the dtype it computes in."""

    channels: int
    states: int
    groups: int
    wide: DataType

    @classmethod
    def of(cls, operator: str, A: Value, B: Value, wide: DataType) -> Form:
        """Read them off the arguments of a scan along a sequence."""
        channels, states = fixed(operator, "A", A.shape[-2:])
        groups = fixed(operator, "B", B.shape[2:3])[0] if len(B.shape) == 4 else 1
        return cls(channels, states, groups, wide)

    @property
    def width(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    def by_time(self, x: Value, rows: int, columns: int) -> Value:
        """Bring (B, L, ...) to (L, B, G, rows, columns)."""
        return op.Transpose(op.Reshape(x, ints(0, 0, self.groups, rows, columns)), perm=[1, 0, 2, 3, 4])

    def by_state(self, x: Value, batched: bool) -> Value:
        """Bring (D, N), or (B, D, N) if `batched`, to (G, N, d) or (B, G, N, d)."""
        if batched:
            return op.Transpose(op.Reshape(x, ints(0, self.groups, self.width, self.states)), perm=[0, 1, 3, 2])
        return op.Transpose(op.Reshape(x, ints(self.groups, self.width, self.states)), perm=[0, 2, 1])

    def zero_state(self, x: Value) -> Value:
        """Make the state of zeros for x (B, ...)."""
        return op.Expand(number(0.0, self.wide), joined(sizes(x, 0, 1), ints(self.groups, self.states, self.width)))

    def no_rows(self, state: Value) -> Value:
        """Make what stands for saved states, (0, D, N)."""
        return op.Reshape(op.Slice(state, ints(0), ints(0), ints(0)), ints(0, self.channels, self.states), allowzero=1)


def scan(
    form: Form,
    x: Value,
    dt: Value,
    A: Value,
    B: Value,
    C: Value,
    dt_bias: Value | None,
    state: Value,
    dt_softplus: bool,
    reverse: bool,
) -> tuple[Value, Value]:
    """Scan x, dt (B, L, D), A (.., G, N, d), B, C (B, L, .., N), bias (D,), all of the wide dtype.

    Returns C h, (B, L, D), and the final state, (B, G, N, d).
    """
    delta = dt if dt_bias is None else op.Add(dt, dt_bias)
    if dt_softplus:
        delta = softplus(delta, form.wide)
    y, final = recurrence(
        form.by_time(delta, 1, form.width),
        form.by_time(op.Mul(delta, x), 1, form.width),
        A,
        form.by_time(B, form.states, 1),
        form.by_time(C, 1, form.states),
        state,
        inputs=[int(reverse)] * 4,
        outputs=[int(reverse)],
    )
    return op.Transpose(op.Reshape(y, ints(0, 0, form.channels)), perm=[1, 0, 2]), final


def _one_way(
    form: Form,
    x: Value,
    dt: Value,
    A: Value,
    B: Value,
    C: Value,
    D: Value | None,
    dt_bias: Value | None,
    initial_state: Value | None,
    dt_softplus: bool,
    reverse: bool,
) -> tuple[Value, Value]:
    """Do all of a selective scan but the gate and the rounding; the state is (B, G, N, d)."""
    rates = form.by_state(cast(A, form.wide), len(A.shape) == 3)
    state = form.zero_state(x) if initial_state is None else form.by_state(cast(initial_state, form.wide), True)
    bias = None if dt_bias is None else cast(dt_bias, form.wide)
    x, dt, B, C = (cast(v, form.wide) for v in (x, dt, B, C))
    y, final = scan(form, x, dt, rates, B, C, bias, state, dt_softplus, reverse)
    if D is not None:
        weight = cast(D, form.wide)
        y = op.Add(y, op.Mul(x, op.Unsqueeze(weight, ints(1)) if len(D.shape) == 2 else weight))
    return y, final


def selective_scan(
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
    save_states: bool,
    impl: str,
) -> tuple[Value, Value, Value]:
    """Translate `selective_scan`; the states that a backward would need come out empty."""
    if cu_seqlens is not None:
        remedy = "export the model without packing, one sequence a row"
        refuse("selective_scan", "cu_seqlens in an ONNX export", "None", "a tensor", remedy)
    wide = wide_dtype(x)
    form = Form.of("selective_scan", A, B, wide)
    y, final = _one_way(form, x, dt, A, B, C, D, dt_bias, initial_state, dt_softplus, reverse)
    if z is not None:
        y = op.Mul(y, silu(cast(z, wide), wide))
    saved = form.no_rows(final)
    final = op.Reshape(op.Transpose(final, perm=[0, 1, 3, 2]), ints(0, form.channels, form.states))
    return rounded(y, wide, x.dtype), final, saved


def selective_scan_bidirectional(
    x: Value,
    dt: Value,
    A: Value,
    B: Value,
    C: Value,
    D: Value | None,
    dt_bias: Value | None,
    x_b: Value,
    dt_b: Value,
    A_b: Value,
    B_b: Value,
    C_b: Value,
    D_b: Value | None,
    dt_bias_b: Value | None,
    z: Value | None,
    dt_softplus: bool,
    average: bool,
    save_states: bool,
    impl: str,
) -> tuple[Value, Value, Value]:
    """Translate `selective_scan_bidirectional`; the states that a backward would need come out empty."""
    operator, wide = "selective_scan_bidirectional", wide_dtype(x)
    ahead, behind = Form.of(operator, A, B, wide), Form.of(operator, A_b, B_b, wide)
    y, state = _one_way(ahead, x, dt, A, B, C, D, dt_bias, None, dt_softplus, False)
    y_b, state_b = _one_way(behind, x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b, None, dt_softplus, True)
    y = op.Add(y, y_b)
    if z is not None:
        y = op.Mul(y, silu(cast(z, wide), wide))
    if average:
        y = op.Mul(y, number(0.5, wide))
    return rounded(y, wide, x.dtype), ahead.no_rows(state), behind.no_rows(state_b)


def _turned(x: Value, axes: int) -> Value:
    """Exchange H and W of (B, H, W, ...) with so many axes."""
    return op.Transpose(x, perm=[0, 2, 1, *range(3, axes)])


@dataclass(frozen=True)
class Directions:
    """Scan directions, those from the first pixel before those from the last one: `order` indexes what was given."""

    codes: tuple[int, ...]

    @property
    def order(self) -> list[int]:
        """The given place of each direction here."""
        return sorted(range(len(self.codes)), key=lambda k: is_reversed(self.codes[k]))

    @property
    def ahead(self) -> int:
        """How many start at the first pixel."""
        return sum(not is_reversed(code) for code in self.codes)

    def sorted(self, parameter: Value) -> Value:
        """Put (K, ...) into this order."""
        order = self.order
        return parameter if order == sorted(order) else op.Gather(parameter, ints(*order), axis=0)

    def read(self, image: Value, size: int, own: bool) -> Value:
        """Read (B, H, W, size), or (B, H, W, K, size) if each has its `own`, in scan order: (B, L, K * size)."""
        shape = ints(0, -1, len(self.codes), size) if own else ints(0, -1, size)
        sources = {}
        for column in sorted({is_column(code) for code in self.codes}):
            sources[column] = op.Reshape(_turned(image, 5 if own else 4) if column else image, shape)
        parts = [sources[is_column(self.codes[k])] for k in self.order]
        if own:
            parts = [op.Gather(part, k, axis=2) for part, k in zip(parts, self.order, strict=True)]
        ahead, behind = parts[: self.ahead], parts[self.ahead :]
        joint = [op.Concat(*ahead, axis=2)] if ahead else []
        if behind:
            joint.append(flip(op.Concat(*behind, axis=2), 1))
        return op.Concat(*joint, axis=2)

    def merge(self, y: Value, size: int, like: Value) -> list[Value]:
        """Give images (B, H, W, size) as `like`, whose sum is that of (B, L, K * size) over the directions."""
        turn = y
        if self.ahead < len(self.codes):
            turn = flip(op.Slice(y, ints(self.ahead * size), ints(2**63 - 1), ints(2)), 1)
        images = []
        for column in sorted({is_column(code) for code in self.codes}):
            found = []
            for place, k in enumerate(self.order):
                if is_column(self.codes[k]) == column:
                    source, start = (y, place) if place < self.ahead else (turn, place - self.ahead)
                    found.append(op.Slice(source, ints(start * size), ints((start + 1) * size), ints(2)))
            total = op.Sum(*found) if len(found) > 1 else found[0]
            image = op.Reshape(total, op.Shape(_turned(like, 4) if column else like))
            images.append(_turned(image, 4) if column else image)
        return images


def selective_scan_2d(
    x: Value,
    dt: Value,
    A: Value,
    B: Value,
    C: Value,
    D: Value | None,
    dt_bias: Value | None,
    dt_softplus: bool,
    directions: Sequence[int],
    impl: str,
    save_states: bool,
) -> tuple[Value, Value]:
    """Translate `selective_scan_2d`: the K directions are the groups of one scan over K * D channels."""
    wide, dtype, cuts = wide_dtype(x), x.dtype, Directions(tuple(directions))
    count, channels, states = fixed("selective_scan_2d", "A", A.shape)
    form = Form(count * channels, states, count, wide)
    skip = None if D is None else op.ReduceSum(cast(D, wide), ints(0), keepdims=0)
    bias = None if dt_bias is None else op.Reshape(cuts.sorted(cast(dt_bias, wide)), ints(-1))
    x, dt, A, B, C = (cast(v, wide) for v in (x, dt, A, B, C))
    rates = op.Transpose(cuts.sorted(A), perm=[0, 2, 1])
    images = cuts.read(x, channels, own=False)
    dt, B, C = (cuts.read(v, size, own=True) for v, size in ((dt, channels), (B, states), (C, states)))
    y, _ = scan(form, images, dt, rates, B, C, bias, form.zero_state(x), dt_softplus, False)
    images = cuts.merge(y, channels, x)
    total = images[0] if len(images) == 1 else op.Add(images[0], images[1])
    if skip is not None:
        total = op.Add(total, op.Mul(x, skip))
    saved = op.Slice(A, ints(0), ints(0), ints(0))  # (0, D, N): a backward's states
    return rounded(total, wide, dtype), saved


TABLE = {
    selective_scan_op: selective_scan,
    selective_scan_bidirectional_op: selective_scan_bidirectional,
    selective_scan_2d_op: selective_scan_2d,
}
