"""A call of the Mamba-2 scan in the form that the kernels take, and the way its rows are cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..selective_scan.kernels_plan import cdiv, partial_dtype, power_of_two

ENOUGH_PROGRAMS = 264  # from here on rows alone fill a GPU: two per processor of an H100; long rows are cut below it
WANTED_PROGRAMS = 384  # of a scan that is cut, per block of channels
WANTED_BACKWARD = 512
SHORT_SPAN = 4  # chunks; a unit is never shorter
BLOCK = 64  # channels or states of a tile
LEAST_ROW = 128  # bytes of a tile: from 3.6 on Triton's Hopper products read behind narrower ones (its issue 11366)
LARGEST_STATE = 256  # N that one program holds, with bfloat16; half of it with float16
STATE_TILE = 2**12  # numbers of a state that a program of the forward holds
TRANSIENT_BYTES = 2**27  # what the backward may need besides its results; twice the size of x where that is more
REGISTERS = {"maxnreg": 168}  # three programs of four warps per processor instead of two; a few numbers are spilled
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so


@dataclass(frozen=True)
class Layout:
    """What is compiled for: sizes of tiles, warps, and how products are made. Cached, since a call asks every time.

    Attributes:
        key: What it follows from.
        chunk: Steps that one set of products covers.
        block_p: Channels of a head that a program holds, but for the forward.
        blocks: Programs per head for that.
        fused: One kernel walks a row and makes its outputs: the state fits into registers.
        kept: What states and adjoints are kept in between chunks: the products they enter are made in it.
        forward: Options of the forward, whole rows or chunk by chunk.
        walk: Options of the kernels that carry states along rows.
        backward: Options of the kernel that makes gradients.
    """

    key: tuple[Any, ...]
    chunk: int
    block_p: int
    blocks: int
    fused: bool
    kept: torch.dtype
    forward: dict[str, Any]
    walk: dict[str, Any]
    backward: dict[str, Any]


@lru_cache(maxsize=256)
def layout(heads: int, groups: int, width: int, state: int, chunk: int, dtypes: tuple[torch.dtype, ...]) -> Layout:
    """Choose tiles and products by the sizes of a head and the dtypes of x, B and C; chunk 0 is chosen, too.

    bfloat16 inputs meet in bfloat16 products, float16 ones in tf32 (whose mantissa is theirs, with the range of
    float32). float32 ones do so off the tensor cores, whose sums cut off; a state in registers besides the operands of
    such products would spill.
    """
    key = (heads, groups, width, state, chunk, dtypes)
    half, precise = set(dtypes) == {torch.bfloat16}, torch.float32 in dtypes
    interpreted = triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]
    least = 16 if precise or interpreted else LEAST_ROW // (2 if half else 4)
    block_n = max(least, power_of_two(state))
    most = 64 if half else 16 if precise and block_n > BLOCK else 32  # more would not fit on a processor
    chunk = min(chunk or most, most)
    block_p = max(least, min(BLOCK, power_of_two(width)))
    fused = block_n <= (LARGEST_STATE if half else LARGEST_STATE // 2) and not precise
    common = {
        "H": heads,
        "G": groups,
        "P": width,
        "N": state,
        "CHUNK": chunk,
        "BLOCK_P": block_p,
        "PRECISE": precise,
        "OPERAND": tl.bfloat16 if half and not interpreted else tl.float32,
        "LOST": 16 if half else 0 if precise else 13,  # bits of float32 that bfloat16 and tf32 do not have
        "PRODUCT": "ieee" if precise else "tf32",
        "num_warps": 8 if precise else 4,
        **FUSION,
    }
    forward_p = min(block_p, max(16, STATE_TILE // block_n)) if fused else block_p
    return Layout(
        key=key,
        chunk=chunk,
        block_p=block_p,
        blocks=cdiv(width, block_p),
        fused=fused,
        kept=torch.bfloat16 if half else torch.float32,
        forward={
            **common,
            "BLOCK_P": forward_p,
            "BLOCK_N": block_n if fused else BLOCK,
            "num_stages": 2 if half else 1,
            **(REGISTERS if half and block_n <= BLOCK and torch.version.hip is None else {}),
        },
        walk={
            **common,
            "BLOCK_N": min(block_n, BLOCK if precise else 2 * BLOCK),
            "num_stages": 3 if half else 1,
        },
        backward={**common, "BLOCK_N": min(block_n, BLOCK), "num_stages": 1},
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

    def buffer(self, *lead: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room for states (*lead, P, N)."""
        return torch.empty((*lead, *self.tail[1:]), dtype=dtype, device=self.x.device)

    @cached_property
    def inputs(self) -> dict[str, Tensor | None]:
        """Return the tensors that kernels take under these names."""
        return {
            "x": self.x,
            "dt": self.dt,
            "A": self.A,
            "B": self.B,
            "C": self.C,
            "D": self.D,
            "z": self.z,
            "dt_bias": self.dt_bias,
        }

    @cached_property
    def units_at(self) -> dict[str, Tensor | int | None]:
        """Return what says where rows and units are."""
        return {
            "cu_seqlens": self.cu_seqlens,
            "slot_base": self.slot_base,
            "span_base": self.span_base,
            "span_row": self.span_row,
            "length": self.x.shape[1],
            "slots": self.slots,
            "span": self.span,
            "spans": self.spans,
        }

    @cached_property
    def slots_at(self) -> dict[str, Tensor | int | None]:
        """Return what says where chunks are."""
        slot_row = None
        if self.slot_base is not None:
            every = torch.arange(self.total_slots, device=self.x.device)
            slot_row = torch.searchsorted(self.slot_base[1:], every, right=True).clamp_(max=self.rows - 1)
        own = {"cu_seqlens": self.cu_seqlens, "slot_base": self.slot_base, "slot_row": slot_row}
        return {**own, "length": self.x.shape[1], "slots": self.slots}

    @cached_property
    def strides(self) -> dict[str, int]:
        """From step to step."""
        return {
            "x_t": self.x.stride(1),
            "dt_t": self.dt.stride(1),
            "B_t": self.B.stride(1),
            "C_t": self.C.stride(1),
            "z_t": 0 if self.z is None else self.z.stride(1),
        }

    @cached_property
    def flags(self) -> dict[str, Any]:
        """Return the constants that follow from the call and not from its sizes."""
        return {"SOFTPLUS": self.dt_softplus, "REVERSE": self.reverse, "WIDE": self._wide()}

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Return all that the constants of a launch depend on."""
        return (self.layout.key, self.skip_step, *self.flags.values(), *self.strides.values())

    def heads_at_once(self) -> int:
        """Return how many heads the backward takes at a time, so that states and partial sums stay small.

        Whole groups, or a part that divides a group.
        """
        heads, width, state = self.tail
        each = 2 * self.total_slots * width * state * self.layout.kept.itemsize
        each += 2 * self.x.shape[0] * self.x.shape[1] * self.layout.blocks * state * partial_of(self.B, self.C).itemsize
        most = max(TRANSIENT_BYTES, 2 * self.x.numel() * self.x.element_size()) // each
        share = heads // self.B.shape[2]
        fits = [n for n in range(1, heads + 1) if heads % n == 0 and (n % share == 0 or share % n == 0)]
        return max([n for n in fits if n <= most], default=1)

    def _wide(self) -> bool:
        """Whether offsets inside a row need 64 bits."""
        heads, _, state = self.tail
        inner = (self.x.shape[2] * self.x.shape[3], heads * self.layout.blocks * state)
        return self.x.shape[1] * max(*self.strides.values(), *inner) >= 2**31

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
    chunk: int,
    span: int | None = None,
    wanted: int = WANTED_PROGRAMS,
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
        chunk: Steps per chunk, a power of two; 0 chooses.
        span: Chunks of a row per program, 0 for whole rows; None decides by size.
        wanted: Programs that rows are cut into, if they are.
    """
    batch, length, heads, width = x.shape
    if B.dtype != C.dtype:
        B, C = B.float(), C.float()
    plan = layout(heads, B.shape[2], width, B.shape[3], chunk, (x.dtype, B.dtype, C.dtype))
    chunk = plan.chunk
    rows, slots = batch, cdiv(length, chunk)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.long().contiguous()
        rows = cu_seqlens.shape[0] - 1
    if span is None:
        mean = slots if cu_seqlens is None else cdiv(length // rows, chunk)
        span = _span(rows * heads * plan.blocks, mean, wanted)
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


def _span(programs: int, slots: int, wanted: int) -> int:
    """Return the chunks per unit, 0 for whole rows."""
    if programs >= ENOUGH_PROGRAMS or slots <= SHORT_SPAN:
        return 0
    return max(SHORT_SPAN, cdiv(slots, cdiv(wanted, programs)))


def partial_of(B: Tensor, C: Tensor) -> torch.dtype:
    """Return what the partial sums of the gradients of B and C are kept in."""
    return partial_dtype(torch.bfloat16 if B.dtype == C.dtype == torch.bfloat16 else torch.float32)


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
