"""The Triton kernel of one step of the Mamba-2 scan. One program makes a tile of (channels, states) of one head.

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

from ..selective_scan.kernels_device_steps import power, sigmoid, softplus

TILE = 1024  # numbers of the state that a program of four warps holds


@triton.jit(do_not_specialize=["heads", "x_b", "dt_b", "z_b", "B_b", "C_b"])
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
    heads: tl.int32,
    share: tl.int32,
    x_b: tl.int64,
    dt_b: tl.int64,
    z_b: tl.int64,
    B_b: tl.int64,
    C_b: tl.int64,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    OWN_D: tl.constexpr,
):
    """Make y (B, H, P) and the next state `following` (B, H, P, N). OWN_D: channels have a D of their own."""
    blocks = (P + BLOCK_P - 1) // BLOCK_P
    row = (tl.program_id(0) // (blocks * heads)).to(tl.int64)
    head = (tl.program_id(0) // blocks) % heads
    p = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    here = p < P
    inside = here[:, None] & (n < N)[None, :]
    at = (row * heads + head) * (P * N) + p[:, None] * N + n[None, :]
    here_x = tl.load(x + row * x_b + head * P + p, mask=here, other=0.0).to(tl.float32)
    delta = tl.load(dt + row * dt_b + head).to(tl.float32)
    if dt_bias is not None:
        delta += tl.load(dt_bias + head).to(tl.float32)
    if SOFTPLUS:
        delta = softplus(delta, True)
    group = (head // share) * N + n
    weights_in = tl.load(B + row * B_b + group, mask=n < N, other=0.0).to(tl.float32)
    weights_out = tl.load(C + row * C_b + group, mask=n < N, other=0.0).to(tl.float32)
    decay = power(delta * tl.load(A + head).to(tl.float32), True)
    before = tl.load(state + at, mask=inside, other=0.0).to(tl.float32)
    after = decay * before + (delta * here_x)[:, None] * weights_in[None, :]
    tl.store(following + at, after, mask=inside)
    total = tl.sum(after * weights_out[None, :], 1)
    if D is not None:
        if OWN_D:
            total += tl.load(D + head * P + p, mask=here, other=0.0).to(tl.float32) * here_x
        else:
            total += tl.load(D + head).to(tl.float32) * here_x
    if z is not None:
        gate = tl.load(z + row * z_b + head * P + p, mask=here, other=0.0).to(tl.float32)
        total *= gate * sigmoid(gate, True)
    tl.store(y + (row * heads + head) * P + p, total.to(y.dtype.element_ty), mask=here)


def _rows(x: Tensor) -> Tensor:
    """Copy what the kernel cannot address: rows whose elements are not next to one another."""
    return x if x[0].is_contiguous() else x.contiguous()


def ssd_step_triton(
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
    batch, heads, width = x.shape
    groups, size = B.shape[1:]
    x, dt, B, C = _rows(x), _rows(dt), _rows(B), _rows(C)
    z = None if z is None else _rows(z)
    block_n = triton.next_power_of_2(size)
    block_p = max(1, min(triton.next_power_of_2(width), TILE // block_n))
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        following = torch.empty(state.shape, dtype=torch.float32, device=x.device)
        step_kernel[(batch * heads * triton.cdiv(width, block_p),)](
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
            heads,
            heads // groups,
            x.stride(0),
            dt.stride(0),
            0 if z is None else z.stride(0),
            B.stride(0),
            C.stride(0),
            P=width,
            N=size,
            BLOCK_P=block_p,
            BLOCK_N=block_n,
            SOFTPLUS=dt_softplus,
            OWN_D=D is not None and D.dim() == 2,
            enable_fp_fusion=True,
        )
    return y, following
