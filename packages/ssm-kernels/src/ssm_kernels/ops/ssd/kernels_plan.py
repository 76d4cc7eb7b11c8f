"""A call of the Mamba-2 scan in the form that the kernels take, and the way its rows are cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..selective_scan.kernels_plan import cdiv, power_of_two

ENOUGH_PROGRAMS = 264  # from here on rows alone fill a GPU: two per processor of an H100; long rows are cut below it
WANTED_PROGRAMS = 512  # of a scan that is cut
SHORT_SPAN = 4  # chunks; a unit is never shorter
LARGEST_STATE = 256  # N that one program holds
TILE = 2**13  # numbers of a state that one program holds
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so


@dataclass(frozen=True)
class Layout:
    """What is compiled for: sizes of tiles, warps, and how products are made. Cached, since a call asks every time."""

    block_p: int
    block_n: int
    blocks: int
    forward: dict[str, object]
    backward: dict[str, object]


@lru_cache(maxsize=256)
def layout(heads: int, groups: int, width: int, state: int, chunk: int, kept: torch.dtype, x: torch.dtype) -> Layout:
    """Choose tiles and products by head dim, state, and the dtypes of the inputs and of what is kept between chunks.

    bfloat16 inputs meet in bfloat16 products, float16 ones in tf32 (whose mantissa is theirs, with the range of
    float32), float32 ones in three tf32 products, which is as good as float32.
    """
    block_n = max(16, power_of_two(state))
    block_p = max(16, min(64, power_of_two(width), TILE // block_n))
    half = kept == torch.bfloat16
    precise = x == torch.float32
    interpreted = triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]
    common = {
        "H": heads,
        "G": groups,
        "P": width,
        "N": state,
        "CHUNK": chunk,
        "BLOCK_P": block_p,
        "BLOCK_N": block_n,
        "PRECISE": precise,
        "OPERAND": tl.bfloat16 if half and not interpreted else tl.float32,
        "HALF": half,
        "PRODUCT": "tf32x3" if precise else "tf32",
        **FUSION,
    }
    big = block_n * block_p > 2**12 or chunk > 64
    return Layout(
        block_p,
        block_n,
        cdiv(width, block_p),
        {**common, "num_warps": 8 if big or not half else 4, "num_stages": 1},
        {**common, "num_warps": 8, "num_stages": 1},
    )


@dataclass(frozen=True)
class Scan:
    """One call: inputs whose rows follow one another at one stride, and how the rows are cut."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial: Tensor | None
    cu_seqlens: Tensor | None
    slot_base: Tensor | None
    span_base: Tensor | None
    span_row: Tensor | None
    rows: int
    slots: int
    span: int  # chunks per unit, 0: a unit is a row
    chunk: int
    dt_softplus: bool
    reverse: bool
    layout: Layout

    @property
    def heads(self) -> int:
        """H."""
        return self.x.shape[2]

    @property
    def spans(self) -> int:
        """Units per row that is not packed."""
        return cdiv(self.slots, self.span) if self.span else 1

    @property
    def units(self) -> int:
        """Programs per head and block; for packed rows the most there can be."""
        return self.rows * self.spans if self.span_row is None else self.span_row.shape[0]

    @property
    def total_slots(self) -> int:
        """Chunks of all rows; for packed rows the most there can be."""
        return self.rows * self.slots if self.cu_seqlens is None else self.x.shape[1] // self.chunk + self.rows

    @property
    def tail(self) -> tuple[int, int, int]:
        """Sizes of a state behind the row: H, P, N."""
        return self.x.shape[2], self.x.shape[3], self.B.shape[3]

    @property
    def programs(self) -> int:
        """Of a kernel that walks units."""
        return self.units * self.heads * self.layout.blocks

    def buffer(self, rows: int) -> Tensor:
        """Room for states (rows, H, P, N)."""
        return torch.empty((rows, *self.tail), dtype=torch.float32, device=self.x.device)

    def rows_at(self) -> tuple[object, ...]:
        """Return what says where rows and units are, in the order in which the kernels take it."""
        return (
            self.cu_seqlens,
            self.slot_base,
            self.span_base,
            self.span_row,
            self.x.shape[1],
            self.slots,
            self.span,
            self.spans,
        )

    def flags(self) -> dict[str, object]:
        """Return the constants that follow from the call and not from its sizes."""
        return {
            "PARALLEL": self.span > 0,
            "SOFTPLUS": self.dt_softplus,
            "REVERSE": self.reverse,
            "WIDE": self._wide(),
        }

    def _wide(self) -> bool:
        """Whether offsets inside a row need 64 bits."""
        heads, _, state = self.tail
        steps = [t.stride(1) for t in (self.x, self.dt, self.B, self.C, self.z) if t is not None]
        steps += [self.x.shape[2] * self.x.shape[3], heads * self.layout.blocks * state]
        return self.x.shape[1] * max(steps) >= 2**31

    @property
    def skip_step(self) -> int:
        """Stride of D along a head's channels."""
        return 0 if self.D is None or self.D.dim() == 1 else 1


def prepare(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    *,
    kept: torch.dtype,
    chunk: int,
    span: int | None = None,
) -> Scan:
    """Bring the arguments into the kernels' form and choose the way through the rows.

    Args:
        x: And the following, as in `ssd`.
        dt: Time steps.
        A: Rates.
        B: Input weights.
        C: Output weights.
        D: Weight of x in y.
        z: Gate.
        dt_bias: Bias of dt.
        initial_state: States before the first steps.
        cu_seqlens: Bounds of packed sequences.
        dt_softplus: Whether dt goes through softplus.
        reverse: Whether the scan runs from the last step.
        kept: What states are kept in between chunks.
        chunk: Steps per chunk, a power of two.
        span: Chunks of a row per program, 0 for whole rows; None decides by size.
    """
    batch, length, heads, width = x.shape
    precise = x.dtype if kept == torch.bfloat16 else torch.promote_types(torch.promote_types(x.dtype, B.dtype), C.dtype)
    plan = layout(heads, B.shape[2], width, B.shape[3], chunk, kept, precise)
    rows, slots = batch, cdiv(length, chunk)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.long().contiguous()
        rows = cu_seqlens.shape[0] - 1
    if span is None:
        mean = slots if cu_seqlens is None else cdiv(length // rows, chunk)
        span = _span(rows * heads * plan.blocks, mean)
    slot_base = span_base = span_row = None
    if cu_seqlens is not None:
        slots_of = (cu_seqlens.diff() + (chunk - 1)) // chunk
        slot_base = torch.nn.functional.pad(slots_of, (1, 0)).cumsum(0)
        if span:
            span_base = torch.nn.functional.pad((slots_of + (span - 1)) // span, (1, 0)).cumsum(0)
            every = torch.arange(length // (chunk * span) + rows, device=x.device)
            span_row = torch.searchsorted(span_base[1:], every, right=True).clamp_(max=rows - 1)
    return Scan(
        x=in_rows(x),
        dt=in_rows(dt),
        A=A.contiguous(),
        B=in_rows(B),
        C=in_rows(C),
        D=None if D is None else D.contiguous(),
        z=None if z is None else in_rows(z),
        dt_bias=None if dt_bias is None else dt_bias.contiguous(),
        initial=None if initial_state is None else initial_state.contiguous(),
        cu_seqlens=cu_seqlens,
        slot_base=slot_base,
        span_base=span_base,
        span_row=span_row,
        rows=rows,
        slots=slots,
        span=span,
        chunk=chunk,
        dt_softplus=dt_softplus,
        reverse=reverse,
        layout=plan,
    )


def _span(programs: int, slots: int) -> int:
    """Return the chunks per unit, 0 for whole rows."""
    if programs >= ENOUGH_PROGRAMS or slots <= SHORT_SPAN:
        return 0
    return max(SHORT_SPAN, cdiv(slots, cdiv(WANTED_PROGRAMS, programs)))


def in_rows(x: Tensor) -> Tensor:
    """Copy only what the kernels cannot address: steps must follow one another at one stride, and be dense inside."""
    shape, strides = x.shape, x.stride()
    inner = 1
    for size, stride in zip(reversed(shape[2:]), reversed(strides[2:]), strict=True):
        if stride != inner and size > 1:
            return x.contiguous()
        inner *= size
    if shape[1] > 1 and shape[0] > 1 and strides[0] != shape[1] * strides[1]:
        return x.contiguous()
    if shape[1] == 1:  # the stride over one step says nothing; it is what leads from row to row
        return x if shape[0] == 1 or strides[0] == strides[1] else x.contiguous()
    return x
