"""A call of the selective scans in the form that the kernels take, and the way its rows are cut."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

ENOUGH_PROGRAMS = 1024  # from here on rows alone fill a GPU; with fewer, long rows are cut into spans
WANTED_PROGRAMS = 1584  # of a scan that is cut: 12 per processor of an H100, as many as registers allow
WANTED_BACKWARD = 1056  # its programs take all registers that there are: 8 per processor
WANTED_LOCAL = 3168  # of the pass ahead of it, which needs fewer registers and may cut finer
WANTED_SHORT_PROGRAMS = 4224  # where the states are small and a program needs few registers
LANES = 32  # channels per program: one per thread of a warp
STATE_PER_WARP = 1024  # numbers of a state that one warp holds
STEPS = 4  # loaded ahead of their use
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so
UNPIPELINED = {"num_stages": 1}  # the kernels load ahead by themselves


@dataclass(frozen=True)
class Scan:
    """One call: canonical inputs and how its rows are cut. A is (rows, N, D), states (.., N, D), contiguous float32.

    In two dimensions x is (B, H * W, D), dt (B, H * W, K, D), and B and C (B, H * W, K, N): a row is one direction of
    an image.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor  # (B, L, G, words) or (B, L, K, words)
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial: Tensor | None
    cu_seqlens: Tensor | None
    slot_base: Tensor | None
    span_base: Tensor | None
    span_row: Tensor | None
    words: int  # 1 and 2: two bfloat16 or float16 numbers in an int32
    align: int  # words that the strides of B and C are multiples of
    rows: int
    slots: int
    span: int  # chunks per unit, 0: a unit is a row
    pieces: int  # of a unit, in the pass that finds what units add to a zero state
    chunk: int
    codes: tuple[int, ...] | None  # of the directions in two dimensions
    height: int
    line: int
    dt_softplus: bool
    reverse: bool
    scale: float
    key: Hashable  # all of the above but the tensors' contents

    @property
    def directions(self) -> int:
        """K, 1 in one dimension."""
        return 1 if self.codes is None else len(self.codes)

    @property
    def groups(self) -> int:
        """G."""
        return self.B.shape[2] if self.codes is None else 1

    @property
    def width(self) -> int:
        """Channels per group."""
        return self.x.shape[2] // self.groups

    @property
    def spans(self) -> int:
        """Units per row that is not packed."""
        return cdiv(self.slots, self.span) if self.span else 1

    @property
    def units(self) -> int:
        """Programs per block of channels; for packed rows the most there can be."""
        return self.rows * self.spans if self.span_row is None else self.span_row.shape[0]

    @property
    def total_slots(self) -> int:
        """Chunks of all rows; for packed rows the most there can be."""
        return self.rows * self.slots if self.cu_seqlens is None else self.x.shape[1] // self.chunk + self.rows

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of B and C."""
        return (self.B.dtype, torch.bfloat16, torch.float16)[self.words]

    @property
    def precise(self) -> bool:
        """Whether single precision is wanted to its last bits."""
        return self.x.dtype == torch.float32

    @cached_property
    def block(self) -> tuple[int, int]:
        """Return the padded N and the warps of a program."""
        padded = power_of_two(self.A.shape[1])
        return padded, max(1, LANES * padded // STATE_PER_WARP)

    @property
    def blocks(self) -> int:
        """Blocks of channels per group."""
        return cdiv(self.width, LANES)

    def buffer(self, rows: int) -> Tensor:
        """Room for states (rows, N, D)."""
        return self.x.new_empty(rows, *self.A.shape[1:], dtype=torch.float32)

    def tensors(self, gated: bool = True) -> dict[str, Tensor | None]:
        """Return the tensors that every kernel over time takes under the same name, without the gate if asked to."""
        return {
            "dt": self.dt,
            "A": self.A,
            "z": self.z if gated else None,
            "dt_bias": self.dt_bias,
            "cu_seqlens": self.cu_seqlens,
            "slot_base": self.slot_base,
            "span_base": self.span_base,
            "span_row": self.span_row,
        }

    def constants(self, gated: bool = True) -> dict[str, object]:
        """Return the other arguments that these kernels share: they follow from `key`."""
        z, dt = self.z if gated else None, self.dt
        padded, warps = self.block
        return {
            "length": self.x.shape[1],
            "slots": self.slots,
            "span": self.span,
            "spans": self.spans,
            "pieces": self.pieces,
            "height": self.height,
            "line": self.line,
            "groups": self.groups,
            "width": self.width,
            "A_rows": self.A.shape[0],
            "scale": self.scale,
            "dt_b": dt.stride(0),
            "dt_k": 0 if self.codes is None else dt.stride(2),
            "dt_t": dt.stride(1),
            "z_b": 0 if z is None else z.stride(0),
            "z_t": 0 if z is None else z.stride(1),
            "N": self.A.shape[1],
            "CHUNK": self.chunk,
            "PARALLEL": self.span > 0,
            "STEPS": min(STEPS, self.chunk),
            "BLOCK_D": LANES,
            "BLOCK_N": padded,
            "WORDS": self.words,
            "SOFTPLUS": self.dt_softplus,
            "PRECISE": self.precise,
            "REVERSE": self.reverse,
            "CODES": 0 if self.codes is None else sum(code << (2 * k) for k, code in enumerate(self.codes)),
            "DIRS": self.directions,
            "PLANE": self.codes is not None,
            "WIDE": self.wide(),
            "ALIGN": self.align,
            "EVEN": self.width % LANES == 0,
            "FULL": padded == self.A.shape[1],
            "num_warps": warps,
            **FUSION,
            **UNPIPELINED,
        }

    def wide(self) -> bool:
        """Whether offsets inside a row need 64 bits."""
        strides = [t.stride(1) for t in (self.x, self.dt, self.B, self.C, self.z) if t is not None]
        strides += [self.x.shape[2] * self.directions, 2 * self.A.shape[1] * self.groups * self.directions]
        return self.x.shape[1] * max(strides) >= 2**31

    def strides(self, name: str, t: Tensor) -> dict[str, int]:
        """Return the strides of B or C (or W in its place) in multiples of `align`."""
        b, length, g = (stride // self.align for stride in t.stride()[:3])
        return {f"{name}_b": b, f"{name}_t": length, f"{name}_g": g}

    def sizes(self) -> dict[str, int]:
        """Return what the kernels that take D need besides."""
        return {"D_rows": 1 if self.D is None else self.D.shape[0], "batches": self.x.shape[0]}


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
    backward: bool = False,
    scale: float = 1.0,
    codes: tuple[int, ...] | None = None,
    height: int = 0,
    line: int = 0,
) -> Scan:
    """Bring the arguments into the kernels' form and choose the way through the rows.

    Args:
        x: And the following, as in `selective_scan`; in two dimensions as `Scan` has them.
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
        chunk: Steps per chunk, a power of two.
        span: Chunks of a row per program, 0 for whole rows; None decides by size.
        backward: Cut for the kernels of the backward.
        scale: Factor of y.
        codes: Of the directions of an image: 0 along rows, 1 down columns, 2 and 3 the same reversed.
        height: Of the image.
        line: Its width.
    """
    batch, length, channels = x.shape
    if B.dim() == 3:
        B, C = B[:, :, None], C[:, :, None]
    state = A.shape[-1]
    B, C, words, align = _words(B, C)
    rows, slots = batch * (1 if codes is None else len(codes)), cdiv(length, chunk)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.long().contiguous()
        rows = cu_seqlens.shape[0] - 1
    groups = 1 if codes is not None else B.shape[2]
    width = channels // groups
    programs = rows * groups * cdiv(width, LANES)
    if span is None:
        mean = length if cu_seqlens is None else length // rows
        span = _span(programs, cdiv(mean, chunk), state, backward)
    slot_base = span_base = span_row = None
    if cu_seqlens is not None:
        slots_of = (cu_seqlens.diff() + (chunk - 1)) // chunk
        slot_base = torch.nn.functional.pad(slots_of, (1, 0)).cumsum(0)
        if span:
            span_base = torch.nn.functional.pad((slots_of + (span - 1)) // span, (1, 0)).cumsum(0)
            every = torch.arange(length // (chunk * span) + rows, device=x.device)
            span_row = torch.searchsorted(span_base[1:], every, right=True).clamp_(max=rows - 1)
    pieces = 1
    if span and cu_seqlens is None:  # the last unit of a row adds nothing that anybody asks for
        found = programs * (cdiv(slots, span) - 1)
        pieces = max(1, min(span, WANTED_LOCAL // max(found, 1)))
    tensors = (
        unit_stride(x),
        unit_stride(dt),
        transposed(A if A.dim() == 3 else A[None]),
        B,
        C,
        None if D is None else parameter(D if D.dim() == 2 else D[None]),
        None if z is None else unit_stride(z),
        None if dt_bias is None else parameter(dt_bias),
        None if initial_state is None else transposed(initial_state),
        cu_seqlens,
    )
    sizes = (words, align, rows, slots, span, pieces, chunk, codes, height, line, dt_softplus, reverse, scale)
    kinds = tuple([None if t is None else (t.dtype, t.shape, t.stride()) for t in tensors])
    return Scan(*tensors, slot_base, span_base, span_row, *sizes, (kinds, sizes))


def _span(programs: int, slots: int, state: int, backward: bool) -> int:
    """Return the chunks per unit, 0 for whole rows.

    A cut row takes two walks along a span in the place of one along the row; ahead of the backward the first is short.
    """
    if programs >= ENOUGH_PROGRAMS:
        return 0
    wanted = WANTED_SHORT_PROGRAMS if state <= 4 else WANTED_PROGRAMS
    span = cdiv(slots, max(2, (WANTED_BACKWARD if backward else wanted) // programs))
    return span if span * (3 if backward else 4) < 2 * slots else 0


def _words(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Pack two half-precision numbers into a word, so that a thread unpacks a pair by a shift and a mask."""
    if B.dtype != C.dtype:
        B, C = B.float(), C.float()
    words = 0
    if B.dtype in (torch.bfloat16, torch.float16) and B.shape[-1] % 2 == 0:
        words = 1 if B.dtype == torch.bfloat16 else 2
        B, C = (t if _packs(t) else t.contiguous() for t in (B, C))
        B, C = B.view(torch.int32), C.view(torch.int32)
    else:
        B, C = unit_stride(B), unit_stride(C)
    strides = [_stride(t, axis) for t in (B, C) for axis in range(3)]
    align = next(a for a in (4, 2, 1) if all(stride % a == 0 for stride in strides))
    return B, C, words, align


def _stride(t: Tensor, axis: int) -> int:
    """Return a stride; for an axis of size 1, which may have any, that of a contiguous tensor."""
    return t.stride(axis) if t.shape[axis] > 1 else prod(t.shape[axis + 1 :])


def _packs(t: Tensor) -> bool:
    """Whether pairs along the last axis lie in whole words."""
    return t.stride(-1) == 1 and t.data_ptr() % 4 == 0 and all(stride % 2 == 0 for stride in t.stride()[:-1])


def cdiv(a: int, b: int) -> int:
    """Divide and round up; Triton's own takes ten times as long, which many small launches would feel."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """Return the least power of two from n on."""
    return 1 << (n - 1).bit_length()


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what partial results are kept in until they are added to a result of `dtype`."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def unit_stride(x: Tensor) -> Tensor:
    """Copy only what the kernels cannot address: a last axis whose elements are not next to one another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def parameter(x: Tensor) -> Tensor:
    """Return a parameter as the kernels take it."""
    return x.to(torch.float32).contiguous()


def transposed(x: Tensor) -> Tensor:
    """Return (rows, D, N) as (rows, N, D)."""
    return x.mT.to(torch.float32).contiguous()
