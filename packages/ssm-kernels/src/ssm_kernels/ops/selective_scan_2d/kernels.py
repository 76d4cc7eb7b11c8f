"""Launchers of the two-dimensional scan's Triton kernels. Imported on the first launch only.

Parallel over chunks of the scan, in three phases: decay product and end state of every chunk, carry over the chunks,
outputs. The backward does the same with the adjoint as well, from the other end. The two axes of the image are two
launches, and the second adds to what the first stored; parameter gradients and those of B and C are partial sums, added
afterwards in one order. No atomics, so results repeat bit by bit. See docs/selective_scan_2d.md.
"""
# Kernels take constexpr parameters as plain values, and launch options besides their own parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .kernels_device import carry_kernel, chunk_states_kernel, gradient_kernel, output_kernel

WIDEST = 32  # channels of a tile: with one warp, each thread scans one channel in its registers
CHUNK, SHORT_CHUNK = 16, 8  # positions of a tile: as many registers for everything that is alive
SHORT = 64  # pixels: below it there would be few chunks
GROUP = 32  # chunks that the carry takes at a time
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}  # fusion is Triton's default until 3.9, which asks to say so


@dataclass(frozen=True)
class _Launch:
    """Arguments as the kernels want them, and what every launch of one call shares."""

    x: Tensor  # (B, L, D)
    dt: Tensor  # (B, L, K, D)
    A: Tensor  # (K, N, D), float32
    B: Tensor  # (B, L, K, N)
    C: Tensor  # (B, L, K, N)
    D: Tensor | None  # (K, D)
    bias: Tensor | None  # (K, D)
    height: int
    width: int
    softplus: bool
    codes: tuple[int, ...]
    chunk: int
    block: int

    @property
    def chunks(self) -> int:
        """Count the chunks of an image."""
        return -(-self.x.shape[1] // self.chunk)

    @property
    def blocks(self) -> int:
        """Count the blocks of channels."""
        return -(-self.x.shape[2] // self.block)

    @property
    def axes(self) -> list[int]:
        """Name the axes with a direction: 0 along the rows, 1 down the columns."""
        return sorted({code % 2 for code in self.codes})

    def launches(self, total: Tensor) -> list[tuple[int, Tensor | None, Tensor]]:
        """Pair every axis with the sum that it adds to and the tensor that it stores into, at the end `total`."""
        if len(self.axes) == 1:
            return [(self.axes[0], None, total)]
        partial = torch.empty_like(total, dtype=torch.float32)
        return [(0, None, partial), (1, partial, total)]

    def grid(self) -> tuple[int]:
        """Return one program for each batch entry, chunk and channel block."""
        return (self.x.shape[0] * self.chunks * self.blocks,)

    def sizes(self) -> tuple[int, ...]:
        """Return height, width, length, chunks."""
        return self.height, self.width, self.x.shape[1], self.chunks

    def strides(self) -> tuple[int, ...]:
        """Return the strides of x, dt, B and C, but for the innermost, which is 1."""
        return (*self.x.stride()[:2], *self.dt.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3])

    def constants(self, axis: int) -> dict[str, int | bool]:
        """Return what the kernels of one axis are compiled for."""
        return {
            "CODES": sum(code << (2 * k) for k, code in enumerate(self.codes)),
            "K": len(self.codes),
            "COLUMN": axis,
            "SOFTPLUS": self.softplus,
            "N": self.A.shape[1],
            "CHANNELS": self.x.shape[2],
            "CHUNK": self.chunk,
            "BLOCK": self.block,
            "BLOCKS": self.blocks,
            **OPTIONS,
        }

    def states(self) -> Tensor:
        """Make a buffer with a state for every chunk."""
        batch, _, channels = self.x.shape
        return _float32(self.x, batch, len(self.codes), self.A.shape[1], self.chunks, channels)


def _pixels(t: Tensor) -> Tensor:
    """View (B, H, W, ...) as (B, L, ...) with the innermost stride 1; a copy only where the strides do not allow it."""
    flat = t.reshape(t.shape[0], -1, *t.shape[3:])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _prepare(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    softplus: bool,
    codes: Sequence[int],
) -> _Launch:
    x, dt, A, B, C, D, bias = inputs
    return _Launch(
        x=_pixels(x),
        dt=_pixels(dt),
        A=A.to(torch.float32).transpose(1, 2).contiguous(),
        B=_pixels(B),
        C=_pixels(C),
        D=None if D is None else D.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        height=x.shape[1],
        width=x.shape[2],
        softplus=softplus,
        codes=tuple(codes),
        chunk=SHORT_CHUNK if x.shape[1] * x.shape[2] < SHORT else CHUNK,
        block=min(WIDEST, triton.next_power_of_2(x.shape[3])),
    )


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of `x` current, since Triton launches on the current device and not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _float32(x: Tensor, *shape: int) -> Tensor:
    """Make a buffer for partial sums."""
    return x.new_empty(shape, dtype=torch.float32)


def _carry(launch: _Launch, decay: Tensor, end: Tensor, reverse: bool) -> Tensor:
    """Return the state that enters each chunk, or with `reverse` the adjoint of the state that leaves it."""
    rows, chunks, channels = decay[..., 0, 0].numel(), launch.chunks, launch.x.shape[2]
    entering = torch.empty_like(end)
    carry_kernel[(rows * launch.blocks,)](
        decay, end, entering, chunks,
        REVERSE=reverse, CHANNELS=channels, GROUP=min(GROUP, triton.next_power_of_2(chunks)), BLOCK=launch.block,
        BLOCKS=launch.blocks, **OPTIONS,
    )  # fmt: skip
    return entering


def _chunk_states(launch: _Launch, gy: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the state that enters each chunk and the adjoint of the state that leaves it (only with `gy`)."""
    decay, end = launch.states(), launch.states()
    if launch.chunks == 1:
        return end.zero_(), end
    adjoint = end if gy is None else launch.states()
    gradient = launch.x if gy is None else gy
    for axis in launch.axes:
        chunk_states_kernel[launch.grid()](
            launch.x, launch.dt, launch.A, launch.B, launch.C, launch.bias, gradient, decay, end, adjoint,
            *launch.sizes(), *launch.strides(), *gradient.stride()[:2], ADJOINT=gy is not None,
            **launch.constants(axis),
        )  # fmt: skip
    entering = _carry(launch, decay, end, reverse=False)
    return entering, entering if gy is None else _carry(launch, decay, adjoint, reverse=True)


def selective_scan_2d_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
) -> Tensor:
    """Compute `selective_scan_2d` with float32 arithmetic; three passes, two of them once an axis."""
    with _on(x):
        launch = _prepare((x, dt, A, B, C, D, dt_bias), dt_softplus, codes)
        entering, _ = _chunk_states(launch, None)
        y = x.new_empty(x.shape)
        for axis, before, target in launch.launches(y):
            output_kernel[launch.grid()](
                launch.x, launch.dt, launch.A, launch.B, launch.C, launch.D, launch.bias, entering, before, target,
                *launch.sizes(), *launch.strides(), **launch.constants(axis),
            )  # fmt: skip
    return y


def selective_scan_2d_triton_backward(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, dt, A, B, C, D, dt_bias in their dtypes; empty for a D or dt_bias of None."""
    with _on(x):
        launch = _prepare((x, dt, A, B, C, D, dt_bias), dt_softplus, codes)
        gy = _pixels(grad_y)
        entering, leaving = _chunk_states(launch, gy)
        dx, ddt, chunks = x.new_empty(x.shape), dt.new_empty(dt.shape), (x.shape[0], launch.chunks)
        dB, dC = (_float32(x, launch.blocks, *t.shape) for t in (B, C))
        dA = _float32(x, *chunks, *launch.A.shape)
        dD = None if D is None else _float32(x, *chunks, x.shape[3])
        dbias = None if dt_bias is None else _float32(x, *chunks, *dt_bias.shape)
        for axis, before, target in launch.launches(dx):
            gradient_kernel[launch.grid()](
                launch.x, launch.dt, launch.A, launch.B, launch.C, launch.D, launch.bias, gy, entering, leaving, before,
                target, ddt, dA, dB, dC, dD if target is dx else None, dbias,
                *launch.sizes(), x.shape[0], *launch.strides(), *gy.stride()[:2], **launch.constants(axis),
            )  # fmt: skip
        return (
            dx,
            ddt,
            dA.sum((0, 1)).transpose(1, 2).to(A.dtype).contiguous(),
            dB.sum(0).to(B.dtype),
            dC.sum(0).to(C.dtype),
            x.new_empty(0) if D is None or dD is None else dD.sum((0, 1)).to(D.dtype).repeat(len(codes), 1),
            x.new_empty(0) if dt_bias is None or dbias is None else dbias.sum((0, 1)).to(dt_bias.dtype),
        )
