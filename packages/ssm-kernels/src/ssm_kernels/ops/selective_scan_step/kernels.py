"""The Triton kernel of one step of the scan. One program makes a tile of (channels, states) of one batch row.

All arithmetic is float32 from the load on; sizes are not specialised on, so that a new batch compiles nothing.
"""
# Kernels take constexpr parameters as plain values, launch options besides their own parameters, and have the types of
# scalars as annotations.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 512  # numbers of the state that a program of four warps holds


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)); log1p is 2 * artanh(s) as a series in s = e / (2 + e), which is at most 1/3."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15))))))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)


@triton.jit(do_not_specialize=["channels", "width", "x_b", "dt_b", "z_b", "B_b", "C_b", "B_g", "C_g"])
def step_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    dt_bias,
    state,
    y,
    following,
    channels: tl.int32,
    width: tl.int32,
    x_b: tl.int64,
    dt_b: tl.int64,
    z_b: tl.int64,
    B_b: tl.int64,
    C_b: tl.int64,
    B_g: tl.int64,
    C_g: tl.int64,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    OWN_A: tl.constexpr,
    OWN_D: tl.constexpr,
):
    """Make y (B, D) and the next state `following` (B, D, N). OWN_A, OWN_D: rows have an A, a D of their own."""
    blocks = (channels + BLOCK_D - 1) // BLOCK_D
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    here = d < channels
    inside = here[:, None] & (n < N)[None, :]
    tile = d[:, None].to(tl.int64) * N + n[None, :]
    at = row * channels * N + tile
    here_x = tl.load(x + row * x_b + d, mask=here, other=0.0).to(tl.float32)
    delta = tl.load(dt + row * dt_b + d, mask=here, other=0.0).to(tl.float32)
    if dt_bias is not None:
        delta += tl.load(dt_bias + d, mask=here, other=0.0).to(tl.float32)
    if SOFTPLUS:
        delta = _softplus(delta)
    group = (d // width).to(tl.int64)[:, None]
    weights_in = tl.load(B + row * B_b + group * B_g + n[None, :], mask=inside, other=0.0).to(tl.float32)
    weights_out = tl.load(C + row * C_b + group * C_g + n[None, :], mask=inside, other=0.0).to(tl.float32)
    rates = tl.load(A + (at if OWN_A else tile), mask=inside, other=0.0).to(tl.float32)
    before = tl.load(state + at, mask=inside, other=0.0).to(tl.float32)
    after = tl.exp(delta[:, None] * rates) * before + (delta * here_x)[:, None] * weights_in
    tl.store(following + at, after, mask=inside)
    total = tl.sum(after * weights_out, 1)
    if D is not None:
        skip = D + row * channels + d if OWN_D else D + d
        total += tl.load(skip, mask=here, other=0.0).to(tl.float32) * here_x
    if z is not None:
        gate = tl.load(z + row * z_b + d, mask=here, other=0.0).to(tl.float32)
        total *= gate / (1.0 + tl.exp(-gate))
    tl.store(y + row * channels + d, total.to(y.dtype.element_ty), mask=here)


def _rows(x: Tensor) -> Tensor:
    """Copy what the kernel cannot address: a last axis whose elements are not next to one another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def selective_scan_step_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Return y and the next state."""
    batch, channels = x.shape
    size = A.shape[-1]
    x, dt, B, C = _rows(x), _rows(dt), _rows(B), _rows(C)
    z = None if z is None else _rows(z)
    groups = 1 if B.dim() == 2 else B.shape[1]
    block_n = triton.next_power_of_2(size)
    block_d = max(1, TILE // block_n)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        following = torch.empty(state.shape, dtype=torch.float32, device=x.device)
        step_kernel[(batch * triton.cdiv(channels, block_d),)](
            x,
            dt,
            A.contiguous(),
            B,
            C,
            None if D is None else D.contiguous(),
            z,
            None if dt_bias is None else dt_bias.contiguous(),
            state.contiguous(),
            y,
            following,
            channels,
            channels // groups,
            x.stride(0),
            dt.stride(0),
            0 if z is None else z.stride(0),
            B.stride(0),
            C.stride(0),
            0 if B.dim() == 2 else B.stride(1),
            0 if C.dim() == 2 else C.stride(1),
            N=size,
            BLOCK_D=block_d,
            BLOCK_N=block_n,
            SOFTPLUS=dt_softplus,
            OWN_A=A.dim() == 3,
            OWN_D=D is not None and D.dim() == 2,
            enable_fp_fusion=True,
        )
    return y, following
