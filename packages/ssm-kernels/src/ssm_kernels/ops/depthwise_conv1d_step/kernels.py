"""The Triton kernel of one step of the convolution. One program makes BLOCK channels of one batch row.

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

BLOCK = 128  # channels of a program


@triton.jit(do_not_specialize=["channels", "x_b"])
def step_kernel(
    x,
    weight,
    bias,
    state,
    y,
    following,
    channels: tl.int32,
    x_b: tl.int64,
    K: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make y (B, D) and the next state `following` (B, D, k - 1); all but the rows of x are contiguous."""
    blocks = (channels + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    here = d < channels
    at = (row * channels + d) * (K - 1)
    newest = tl.load(x + row * x_b + d, mask=here, other=0.0)
    total = newest.to(tl.float32) * tl.load(weight + d * K + (K - 1), mask=here, other=0.0).to(tl.float32)
    for j in tl.static_range(K - 1):
        step = tl.load(state + at + j, mask=here, other=0.0)
        total += step.to(tl.float32) * tl.load(weight + d * K + j, mask=here, other=0.0).to(tl.float32)
        if j > 0:
            tl.store(following + at + (j - 1), step, mask=here)
    tl.store(following + at + (K - 2), newest.to(tl.float32).to(following.dtype.element_ty), mask=here)
    if bias is not None:
        total += tl.load(bias + d, mask=here, other=0.0).to(tl.float32)
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    tl.store(y + row * channels + d, total.to(y.dtype.element_ty), mask=here)


def depthwise_conv1d_step_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Return the step and the next state."""
    batch, channels = x.shape
    if x.stride(1) != 1 and channels > 1:
        x = x.contiguous()
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        following = torch.empty(state.shape, dtype=state.dtype, device=x.device)
        step_kernel[(batch * triton.cdiv(channels, BLOCK),)](
            x,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            state.contiguous(),
            y,
            following,
            channels,
            x.stride(0),
            K=weight.shape[1],
            SILU=activation is not None,
            BLOCK=BLOCK,
            enable_fp_fusion=True,
        )
    return y, following
