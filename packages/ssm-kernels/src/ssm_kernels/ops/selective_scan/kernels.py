"""Launchers of the selective scan's Triton kernels. Imported on the first launch only.

Two ways through a row, chosen by size: many short rows run one program per row and block of channels, which walks the
row with its state in registers; few long rows run one program per chunk, after a pass that finds what every chunk adds
to a zero state and a pass that carries the states from chunk to chunk. The backward does the same from the other end.
Blocks of channels and chunks write partial sums of the shared gradients, which are added in a fixed order, so that
results repeat exactly. See docs/selective_scan.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

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
BACKWARD_CHANNELS = 16  # per program; with a chunk of 64 steps a tile is 8 numbers a thread
FUSION = {"enable_fp_fusion": True}  # Triton's default until 3.9, which asks to say so


@dataclass(frozen=True)
class Scan:
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
        """G."""
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
        """Programs per block of channels."""
        return self.total_slots if self.parallel else self.rows

    def buffer(self, rows: int) -> Tensor:
        """Room for states (rows, D, N)."""
        return torch.empty(rows, *self.A.shape[-2:], dtype=torch.float32, device=self.x.device)

    def blocks(self) -> tuple[int, int, int]:
        """Return the forward's channels per program, padded N and warps."""
        block_n = triton.next_power_of_2(self.A.shape[-1])
        block_d = min(triton.next_power_of_2(self.width), max(1, TILE // block_n), 128)
        return block_d, block_n, max(1, min(4, block_d * block_n // 512))

    def even(self, block_d: int, block_n: int) -> bool:
        """Whether blocks fit exactly, so that loads need no mask."""
        return self.width % block_d == 0 and self.A.shape[-1] == block_n

    def common(self, gated: bool = True) -> dict[str, object]:
        """Return the arguments that every kernel over time takes under the same name, without the gate if asked to."""
        z = self.z if gated else None
        return {
            "dt": self.dt,
            "A": self.A,
            "z": z,
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
            "z_b": 0 if z is None else z.stride(0),
            "z_t": 0 if z is None else z.stride(1),
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
        """Return D with its stride."""
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
) -> Scan:
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
    return Scan(
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
    scan: Scan, *, save_states: bool, out: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward into `out`; `added` (B, L, D) float32 joins C.h + D * x ahead of the gate."""
    block_d, block_n, warps = scan.blocks()
    final = scan.buffer(scan.rows)
    saved = scan.buffer(scan.total_slots if save_states or scan.parallel else 0)
    with _on_device(scan.x):
        if scan.parallel:
            _launch_local(scan, scan.x, scan.B, saved, scan.initial, final, adjoint=False)
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
            EVEN=scan.even(block_d, block_n),
            num_warps=warps,
            **FUSION,
            **scan.common(),
            **scan.skip(),
            **scan.weights("B", scan.B),
            **scan.weights("C", scan.C),
        )
    return out, final, saved if save_states else saved.new_empty(0, *scan.A.shape[-2:])


def _launch_local(
    scan: Scan,
    values: Tensor,
    weights: Tensor,
    ends: Tensor,
    initial: Tensor | None,
    final: Tensor,
    *,
    adjoint: bool,
) -> None:
    """Fill `ends` with the state that enters every chunk (the adjoint that does so from behind), `final` with the last.

    Args:
        scan: The call.
        values: x, or the gradient of y.
        weights: B, or C.
        ends: Written, (slots, D, N).
        initial: State that enters a row, (rows, D, N), zero if None.
        final: Written: the state that leaves it.
        adjoint: Walk from the last step to the first.
    """
    block_d, block_n, warps = scan.blocks()
    totals = torch.empty_like(ends)
    local_kernel[(scan.total_slots * scan.groups * triton.cdiv(scan.width, block_d),)](
        x=values,
        x_b=values.stride(0),
        x_t=values.stride(1),
        ends=ends,
        totals=totals,
        BLOCK_D=block_d,
        BLOCK_N=block_n,
        ADJOINT=adjoint,
        EVEN=scan.even(block_d, block_n),
        num_warps=warps,
        **FUSION,
        **scan.common(gated=adjoint),
        **scan.weights("W", weights),
    )
    size = final[0].numel()
    carry_kernel[(scan.rows * triton.cdiv(size, FLAT_BLOCK),)](
        ends, totals, initial, final, scan.slot_base, scan.slots, size, ADJOINT=adjoint, BLOCK=FLAT_BLOCK, **FUSION
    )


def backward(
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
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    chunk: int,
    parallel: bool | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the nine floating arguments in their order, empty tensors for those that are None."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = prepare(*inputs, cu_seqlens, dt_softplus, reverse, chunk=chunk, parallel=parallel)
    grad_z = x.new_empty(0) if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    grads = launch_backward(scan, chunk_states, grad_y, grad_final, grad_z=grad_z)
    return like(grads, inputs)


def like(grads: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Give every gradient the shape and dtype of its argument; an empty tensor where there is no argument."""
    x = inputs[0]
    assert x is not None
    return tuple(
        x.new_empty(0) if grad is None or given is None else grad.reshape(given.shape).to(given.dtype)
        for grad, given in zip(grads, inputs, strict=True)
    )


def launch_backward(
    scan: Scan,
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    grad_z: Tensor,
    added: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of the arguments; `grad_z` is written, `added` (B, L, D) float32 joins it."""
    x, channels = scan.x, scan.x.shape[2]
    if chunk_states.shape[0] == 0:  # the forward was told that nobody would ask
        chunk_states = launch_forward(scan, save_states=True, out=torch.empty_like(x))[2]
    block_d = min(triton.next_power_of_2(scan.width), BACKWARD_CHANNELS)
    per_group = triton.cdiv(scan.width, block_d)
    grad_y = _unit_stride(grad_y)
    grad_final = None if grad_final is None else _parameter(grad_final)
    grad_initial = scan.buffer(scan.rows).zero_() if grad_final is None else grad_final.clone()
    adjoints, part_A = scan.buffer(scan.total_slots), scan.buffer(scan.total_slots)
    parts = [x.new_empty(scan.total_slots, channels, dtype=torch.float32) for _ in range(2)]
    shape = (per_group, x.shape[0], scan.groups, scan.A.shape[-1], x.shape[1])
    part_B, part_C = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    grad_x, grad_dt = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, scan.dt))
    with _on_device(x):
        if scan.parallel:
            _launch_local(scan, grad_y, scan.C, adjoints, grad_final, grad_initial, adjoint=True)
        backward_kernel[(scan.units * scan.groups * per_group,)](
            x=x,
            x_b=x.stride(0),
            x_t=x.stride(1),
            grad_y=grad_y,
            grad_b=grad_y.stride(0),
            grad_t=grad_y.stride(1),
            saved=chunk_states,
            adjoints=adjoints,
            grad_final=grad_final,
            added=added,
            grad_x=grad_x,
            grad_dt=grad_dt,
            grad_z=grad_z,
            part_A=part_A,
            part_B=part_B,
            part_C=part_C,
            part_D=parts[0],
            part_bias=parts[1],
            grad_initial=grad_initial,
            batches=x.shape[0],
            BLOCK_D=block_d,
            PARALLEL=scan.parallel,
            num_warps=4,
            **FUSION,
            **scan.common(),
            **scan.skip(),
            **scan.weights("B", scan.B),
            **scan.weights("C", scan.C),
        )
        grad_A = _sum_chunks(scan, part_A)
        grad_D = None if scan.D is None else _sum_chunks(scan, parts[0])
        grad_bias = None if scan.dt_bias is None else _sum_chunks(scan, parts[1]).sum(0)
    if scan.A.shape[0] == 1:
        grad_A = grad_A.sum(0)
    if grad_D is not None and scan.D is not None and scan.D.shape[0] == 1:
        grad_D = grad_D.sum(0)
    grad_B, grad_C = (part.sum(0).permute(0, 3, 1, 2).contiguous() for part in (part_B, part_C))
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial


def _sum_chunks(scan: Scan, parts: Tensor) -> Tensor:
    """Add partial sums (slots, ...) over the chunks of every row."""
    out = parts.new_empty(scan.rows, *parts.shape[1:])
    size = out[0].numel()
    sum_kernel[(scan.rows * triton.cdiv(size, FLAT_BLOCK),)](
        parts, out, scan.slot_base, scan.slots, size, BLOCK=FLAT_BLOCK, **FUSION
    )
    return out


def _unit_stride(x: Tensor) -> Tensor:
    """Copy only what the kernels cannot address: a last axis whose elements are not next to one another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _parameter(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
