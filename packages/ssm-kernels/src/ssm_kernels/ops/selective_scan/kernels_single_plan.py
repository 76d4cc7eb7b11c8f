"""A call of a scan with one state per channel in the form that its kernels take, and the way its rows are cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels_plan import cdiv, parameter, power_of_two, unit_stride

LANES = 32  # channels per program: one per thread of a warp
TILE = 8  # steps that a thread holds in registers, as many again are under way
ENOUGH_PROGRAMS = 1024  # from here on rows alone fill a GPU; with fewer, long rows are cut into spans
WANTED_PROGRAMS = 2112  # of a scan that is cut: 16 per processor of an H100
TALLEST = 1 << 15  # lines of an image, for the product that stands for a division by their number
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}  # the kernels load ahead by themselves


def suits(A: Tensor, cu_seqlens: Tensor | None = None, height: int = 0, reach: int = 0) -> bool:
    """Whether a call goes to the kernels for one state per channel: the only place that decides it.

    Packed sequences are left to the general kernels, and so are images of more lines than anybody has or whose pixels
    lie further apart than 32 bits reach: `reach` is the most numbers from the first pixel to behind the last.
    """
    return A.shape[-1] == 1 and cu_seqlens is None and height <= TALLEST and reach < 1 << 31


@dataclass(frozen=True)
class Single:
    """One call: inputs as the kernels address them and how rows are cut. Parameters and states are (.., D), float32.

    In two dimensions x is (B, H * W, D), dt (B, H * W, K, D), and B and C (B, H * W, K): a row is one direction of an
    image. In one dimension K is 1, and B and C are (B, L, G).
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial: Tensor | None
    groups: int
    codes: tuple[int, ...]
    height: int
    line: int
    plane: bool
    chunk: int
    span: int  # steps per program, a multiple of chunk
    spans: int
    lanes: int
    tile: int
    dt_softplus: bool
    scale: float

    @property
    def rows(self) -> int:
        """B * K."""
        return self.x.shape[0] * len(self.codes)

    @property
    def slots(self) -> int:
        """Chunks of all rows."""
        return self.rows * cdiv(self.x.shape[1], self.chunk)

    @property
    def blocks(self) -> int:
        """Blocks of channels per group."""
        return cdiv(self.x.shape[2] // self.groups, self.lanes)

    @property
    def precise(self) -> bool:
        """Whether single precision is wanted to its last bits."""
        return self.x.dtype == torch.float32

    def programs(self, spans: int) -> int:
        """Return how many there are with that many spans per row."""
        return self.rows * spans * self.groups * self.blocks

    def buffer(self, rows: int) -> Tensor:
        """Room for states (rows, D)."""
        return torch.empty(rows, self.x.shape[2], dtype=torch.float32, device=self.x.device)

    def arguments(self, z: Tensor | None) -> dict[str, Tensor | int | None]:
        """Return what every kernel over time takes under the same name and nothing is compiled for."""
        dt = self.dt
        return {
            "dt": dt,
            "A": self.A,
            "z": z,
            "dt_bias": self.dt_bias,
            "length": self.x.shape[1],
            "span": self.span,
            "spans": self.spans,
            "height": max(self.height, 1),
            "line": self.line,
            "magic": magic(self.height),
            "A_rows": self.A.shape[0],
            "dt_b": dt.stride(0),
            "dt_k": dt.stride(2) if self.plane else 0,
            "z_b": 0 if z is None else z.stride(0),
        }

    def constants(self, z: Tensor | None) -> dict[str, object]:
        """Return what a kernel over time is compiled for."""
        return {
            "DT_T": self.dt.stride(1),
            "Z_T": 0 if z is None else z.stride(1),
            "CHANNELS": self.x.shape[2],
            "GROUPS": self.groups,
            "SOFTPLUS": self.dt_softplus,
            "PRECISE": self.precise,
            "SCALE": self.scale,
            "CODES": sum(code << (2 * k) for k, code in enumerate(self.codes)),
            "KINDS": sum(1 << code for code in set(self.codes)),
            "DIRS": len(self.codes),
            "BLOCK_D": self.lanes,
            "T": self.tile,
            **OPTIONS,
        }


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
    dt_softplus: bool,
    reverse: bool,
    *,
    chunk: int,
    span: int | None = None,
    scale: float = 1.0,
    codes: tuple[int, ...] | None = None,
    height: int = 0,
    line: int = 0,
) -> Single:
    """Bring the arguments into the kernels' form and choose the way through the rows.

    Args:
        x: And the following, as in `selective_scan`; in two dimensions as `Single` has them, B and C with an N of 1.
        dt: Time steps.
        A: Rates.
        B: Input weights.
        C: Output weights.
        D: Weight of x in y.
        z: Gate.
        dt_bias: Bias of dt.
        initial_state: States before the first steps.
        dt_softplus: Whether dt goes through softplus.
        reverse: Whether the scan runs from the last step.
        chunk: Steps per chunk, a power of two.
        span: Chunks of a row per program, 0 for whole rows; None decides by size.
        scale: Factor of y.
        codes: Of the directions in two dimensions.
        height: Of the image.
        line: Of the image, its width.
    """
    batch, length, channels = x.shape
    B, C = ((t[..., 0] if t.dim() == 4 else t) for t in (B, C))
    groups = B.shape[2] if codes is None else 1
    plane = codes is not None
    if codes is None:
        codes = (2,) if reverse else (0,)
    if height == 1:
        height, line = line, 1  # the same order
    slots = cdiv(length, chunk)
    if span is None:
        span = _span(batch * len(codes) * groups * cdiv(channels // groups, LANES), slots)
    return Single(
        x=along(x),
        dt=along(dt),
        A=parameter(A).view(-1, channels) if not plane else parameter(A).view(len(codes), channels),
        B=along(B, unit=False),
        C=along(C, unit=False),
        D=None if D is None else parameter(D).view(-1, channels),
        z=None if z is None else along(z),
        dt_bias=None if dt_bias is None else parameter(dt_bias),
        initial=None if initial_state is None else parameter(initial_state),
        groups=groups,
        codes=codes,
        height=height,
        line=line,
        plane=plane,
        chunk=chunk,
        span=span * chunk or length,
        spans=cdiv(slots, span) if span else 1,
        # Triton's interpreter takes the time of every lane
        lanes=LANES if x.is_cuda else min(LANES, power_of_two(channels // groups)),
        tile=min(TILE, chunk),
        dt_softplus=dt_softplus,
        scale=scale,
    )


def _span(programs: int, slots: int) -> int:
    """Return the chunks per program, 0 for whole rows: a cut row takes two walks along a span, not one along it."""
    if programs >= ENOUGH_PROGRAMS:
        return 0
    span = cdiv(slots, max(2, WANTED_PROGRAMS // programs))
    return span if 2 * span < slots else 0


def along(t: Tensor, unit: bool = True) -> Tensor:
    """Copy what the kernels cannot address, or would compile anew for another batch: its stride along a row."""
    if unit:
        t = unit_stride(t)
    return t if t.shape[0] == 1 or t.stride(1) <= t.stride(0) or t.stride(0) == 0 else t.contiguous()


def magic(height: int) -> int:
    """Return 2**32 / height rounded up, as the bits of a signed number."""
    value = cdiv(1 << 32, max(height, 2))
    return value - (1 << 32) if value >= 1 << 31 else value
