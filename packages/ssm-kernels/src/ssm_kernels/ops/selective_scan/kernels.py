"""Launchers of the selective scan's Triton kernels. Imported on the first launch only.

Two ways through a row, chosen by size: many short rows run one program per row and block of channels, which walks the
row with its state in registers; few long rows run one program per chunk, after a pass that finds what every chunk adds
to a zero state and a pass that carries the states from chunk to chunk. The backward does the same from the other end.
Blocks of channels and chunks write partial sums of the shared gradients, which are added in a fixed order, so that
results repeat exactly. See docs/selective_scan.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .kernels_device import backward_kernel, carry_kernel, forward_kernel, local_kernel, sum_kernel

ENOUGH_PROGRAMS = 1024  # from here on rows alone fill a GPU; with fewer, long rows are cut into chunks
LONG_ROW = 4  # chunks; shorter rows gain nothing from being cut
TILE = 512  # numbers of a state that one program of the forward holds in registers
FLAT_BLOCK = 512  # numbers per program where the state is just a vector


@dataclass(frozen=True)
class _Scan:
    """One call: canonical inputs and how its rows are cut. Parameters and states are contiguous float32."""

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
    slot_row: Tensor | None
    rows: int
    slots: int
    chunk: int
    dt_softplus: bool
    reverse: bool
    parallel: bool
    scale: float

    @property
    def groups(self) -> int:
        return self.B.shape[2]

    @property
    def width(self) -> int:
        """Channels per group."""
        return self.x.shape[2] // self.groups

    @property
    def total_slots(self) -> int:
        """Chunks of all rows; for packed rows the most there can be."""
        return self.rows * self.slots if self.slot_row is None else self.slot_row.shape[0]

    @property
    def units(self) -> int:
        return self.total_slots if self.parallel else self.rows

    def buffer(self, rows: int) -> Tensor:
        """Room for states (rows, D, N)."""
        return torch.empty(rows, *self.A.shape[-2:], dtype=torch.float32, device=self.x.device)

    def blocks(self) -> tuple[int, int, int]:
        """Return the forward's channels per program, padded N and warps."""
        block_n = triton.next_power_of_2(self.A.shape[-1])
        block_d = min(triton.next_power_of_2(self.width), max(1, TILE // block_n), 128)
        return block_d, block_n, max(1, min(4, block_d * block_n // 512))

    def common(self) -> dict[str, object]:
        """Return the arguments that every kernel over time takes under the same name."""
        return {
            "dt": self.dt,
            "A": self.A,
            "z": self.z,
            "dt_bias": self.dt_bias,
            "cu_seqlens": self.cu_seqlens,
            "slot_base": self.slot_base,
            "slot_row": self.slot_row,
            "length": self.x.shape[1],
            "slots": self.slots,
            "groups": self.groups,
            "width": self.width,
            "scale": self.scale,
            "dt_b": self.dt.stride(0),
            "dt_t": self.dt.stride(1),
            "z_b": 0 if self.z is None else self.z.stride(0),
            "z_t": 0 if self.z is None else self.z.stride(1),
            "A_row": 0 if self.A.shape[0] == 1 else self.A.stride(0),
            "N": self.A.shape[-1],
            "CHUNK": self.chunk,
            "SOFTPLUS": self.dt_softplus,
            "REVERSE": self.reverse,
        }

    def weights(self, name: str, x: Tensor) -> dict[str, object]:
        """Return B or C (or W in its place) with its strides."""
        return {name: x, f"{name}_b": x.stride(0), f"{name}_t": x.stride(1), f"{name}_g": x.stride(2)}

    def skip(self) -> dict[str, object]:
        return {"D": self.D, "D_row": 0 if self.D is None or self.D.shape[0] == 1 else self.D.stride(0)}


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
    parallel: bool | None = None,
    scale: float = 1.0,
) -> _Scan:
    """Bring the arguments into the kernels' form and choose the way through the rows.

    Args:
        x: And the following, as in `selective_scan`.
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
        parallel: Cut rows into chunks that run side by side; None decides by size.
        scale: Factor of y.
    """
    batch, length, channels = x.shape
    if B.dim() == 3:
        B, C = B[:, :, None], C[:, :, None]
    A = _parameter(A if A.dim() == 3 else A[None])
    slot_base = slot_row = None
    rows, slots = batch, triton.cdiv(length, chunk)
    if cu_seqlens is not None:
        rows = cu_seqlens.shape[0] - 1
        slot_base = torch.nn.functional.pad((cu_seqlens.diff() + (chunk - 1)) // chunk, (1, 0)).cumsum(0)
        every = torch.arange(length // chunk + rows, device=x.device)
        slot_row = torch.searchsorted(slot_base[1:], every, right=True).clamp_(max=rows - 1)
    if parallel is None:
        programs = rows * triton.cdiv(channels * triton.next_power_of_2(A.shape[-1]), TILE)
        parallel = length > LONG_ROW * chunk * (rows // batch) and programs < ENOUGH_PROGRAMS
    return _Scan(
        x=_unit_stride(x),
        dt=_unit_stride(dt),
        A=A,
        B=_unit_stride(B),
        C=_unit_stride(C),
        D=None if D is None else _parameter(D if D.dim() == 2 else D[None]),
        z=None if z is None else _unit_stride(z),
        dt_bias=None if dt_bias is None else _parameter(dt_bias),
        initial=None if initial_state is None else _parameter(initial_state),
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.long().contiguous(),
        slot_base=slot_base,
        slot_row=slot_row,
        rows=rows,
        slots=slots,
        chunk=chunk,
        dt_softplus=dt_softplus,
        reverse=reverse,
        parallel=parallel,
        scale=scale,
    )


def forward(
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
    save_states: bool,
    chunk: int,
    parallel: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and the states before every chunk (slots, D, N); no slots unless `save_states`."""
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    scan = prepare(*tensors, dt_softplus, reverse, chunk=chunk, parallel=parallel)
    return launch_forward(scan, save_states=save_states, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))


def launch_forward(
    scan: _Scan, *, save_states: bool, out: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward into `out`; `added` (B, L, D) float32 joins C.h + D * x ahead of the gate."""
    block_d, block_n, warps = scan.blocks()
    final = scan.buffer(scan.rows)
    saved = scan.buffer(scan.total_slots if save_states or scan.parallel else 0)
    with _on_device(scan.x):
        if scan.parallel:
            _launch_local(scan, scan.x, None, scan.B, "B", saved, scan.initial, final, adjoint=False)
        grid = (scan.units * scan.groups * triton.cdiv(scan.width, block_d),)
        forward_kernel[grid](
            x=scan.x,
            x_b=scan.x.stride(0),
            x_t=scan.x.stride(1),
            initial=scan.initial,
            added=added,
            y=out,
            saved=saved if save_states or scan.parallel else None,
            final=final,
            BLOCK_D=block_d,
            BLOCK_N=block_n,
            PARALLEL=scan.parallel,
            EVEN=scan.width % block_d == 0 and scan.A.shape[-1] == block_n,
            num_warps=warps,
            **scan.common(),
            **scan.skip(),
            **scan.weights("B", scan.B),
            **scan.weights("C", scan.C),
        )
    return out, final, saved if save_states else saved.new_empty(0, *scan.A.shape[-2:])


def _launch_local(
    scan: _Scan,
    x: Tensor,
    ...
