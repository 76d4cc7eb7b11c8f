"""The kernels that discretise modes of channels: one launch each way instead of dozens. Imported on first launch only.

A lane is one mode of one channel; arithmetic is float64, of which there is little.
"""
# Kernels take constexpr parameters as plain values, launch options besides their own parameters, and have the types of
# scalars as annotations.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch

BLOCK = 128
NEAR = tl.constexpr(1e-6)  # of |z|^2, below which a series is exact to 1e-14


@triton.jit
def _times(p_re, p_im, q_re, q_im):
    return p_re * q_re - p_im * q_im, p_re * q_im + p_im * q_re


@triton.jit
def _times_conjugate(p_re, p_im, q_re, q_im):
    return p_re * q_re + p_im * q_im, p_im * q_re - p_re * q_im


@triton.jit
def _load(pointer, at, plane, here):
    re = tl.load(pointer + at, mask=here, other=0.0).to(tl.float64)
    im = tl.load(pointer + plane + at, mask=here, other=0.0).to(tl.float64)
    return re, im


@triton.jit
def _store(pointer, at, plane, here, re, im):
    tl.store(pointer + at, re.to(pointer.dtype.element_ty), mask=here)
    tl.store(pointer + plane + at, im.to(pointer.dtype.element_ty), mask=here)


@triton.jit
def _discretize(re, im, step, BILINEAR: tl.constexpr):
    """Return a, f / step, the derivative of a by z = step * rate, and that of f / step."""
    x = re * step
    y = im * step
    if BILINEAR:
        u = 1.0 - 0.5 * x
        w = 0.5 * y
        size = u * u + w * w
        v_re = u / size
        v_im = w / size
        more_re, more_im = _times(x, y, v_re, v_im)
        a_re = 1.0 + more_re
        a_im = more_im
        f_re = v_re
        f_im = v_im
        slope_re, slope_im = _times(v_re, v_im, v_re, v_im)
        turn_re = 0.5 * slope_re
        turn_im = 0.5 * slope_im
    else:
        growth = tl.exp(x)
        a_re = growth * tl.cos(y)
        a_im = growth * tl.sin(y)
        slope_re = a_re
        slope_im = a_im
        size = x * x + y * y
        near = size < NEAR
        safe = tl.where(near, 1.0, size)
        f_re, f_im = _times_conjugate(a_re - 1.0, a_im, x, y)
        f_re /= safe
        f_im /= safe
        square_re, square_im = _times(x, y, x, y)
        cube_re, cube_im = _times(square_re, square_im, x, y)
        f_re = tl.where(near, 1.0 + x / 2 + square_re / 6 + cube_re / 24, f_re)
        f_im = tl.where(near, y / 2 + square_im / 6 + cube_im / 24, f_im)
        turn_re, turn_im = _times_conjugate(a_re - f_re, a_im - f_im, x, y)
        turn_re = tl.where(near, 0.5 + x / 3 + square_re / 8 + cube_re / 30, turn_re / safe)
        turn_im = tl.where(near, y / 3 + square_im / 8 + cube_im / 30, turn_im / safe)
    return a_re, a_im, f_re, f_im, slope_re, slope_im, turn_re, turn_im


@triton.jit(do_not_specialize=["channels", "plane"])
def forward_kernel(
    rate, into, out, step, a, b, c, channels, plane,
    SCALE: tl.constexpr, BILINEAR: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Make a, b and c of one block of (M, D)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < plane
    delta = tl.load(step + at % channels, mask=here, other=0.0).to(tl.float64)
    re, im = _load(rate, at, plane, here)
    b_re, b_im = _load(into, at, plane, here)
    c_re, c_im = _load(out, at, plane, here)
    a_re, a_im, f_re, f_im, _, _, _, _ = _discretize(re, im, delta, BILINEAR)
    b_re, b_im = _times(f_re * delta, f_im * delta, b_re, b_im)
    _store(a, at, plane, here, a_re, a_im)
    if UNIT:
        c_re, c_im = _times(b_re, b_im, c_re, c_im)
    else:
        _store(b, at, plane, here, b_re, b_im)
    _store(c, at, plane, here, c_re * SCALE, c_im * SCALE)


@triton.jit(do_not_specialize=["channels", "plane"])
def backward_kernel(
    grad_a, grad_b, grad_c, rate, into, out, step, grad_rate, grad_into, grad_out, grad_step, channels, plane,
    SCALE: tl.constexpr, BILINEAR: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Make the gradients of one block of (M, D), that of the step before the sum over the modes."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < plane
    delta = tl.load(step + at % channels, mask=here, other=0.0).to(tl.float64)
    re, im = _load(rate, at, plane, here)
    b_re, b_im = _load(into, at, plane, here)
    c_re, c_im = _load(out, at, plane, here)
    _, _, f_re, f_im, slope_re, slope_im, turn_re, turn_im = _discretize(re, im, delta, BILINEAR)
    ga_re, ga_im = _load(grad_a, at, plane, here)
    gc_re, gc_im = _load(grad_c, at, plane, here)
    gc_re *= SCALE
    gc_im *= SCALE
    if UNIT:
        w_re, w_im = _times(f_re * delta, f_im * delta, b_re, b_im)
        gb_re, gb_im = _times_conjugate(gc_re, gc_im, c_re, c_im)
        gc_re, gc_im = _times_conjugate(gc_re, gc_im, w_re, w_im)
    else:
        gb_re, gb_im = _load(grad_b, at, plane, here)
    gi_re, gi_im = _times_conjugate(gb_re, gb_im, f_re * delta, f_im * delta)
    gf_re, gf_im = _times_conjugate(gb_re, gb_im, b_re, b_im)
    gz_re, gz_im = _times_conjugate(ga_re, ga_im, slope_re, slope_im)
    more_re, more_im = _times_conjugate(gf_re, gf_im, turn_re, turn_im)
    gz_re += delta * more_re
    gz_im += delta * more_im
    by_step = gz_re * re + gz_im * im + gf_re * f_re + gf_im * f_im
    _store(grad_rate, at, plane, here, delta * gz_re, delta * gz_im)
    _store(grad_into, at, plane, here, gi_re, gi_im)
    _store(grad_out, at, plane, here, gc_re, gc_im)
    tl.store(grad_step + at, by_step, mask=here)


def forward(
    rate: Tensor, into: Tensor, out: Tensor, step: Tensor, rule: str, unit: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b and c (2, M, D) in float32; with `unit` b is empty."""
    shape, device = rate.shape, rate.device
    a, c = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    b = torch.empty((0,) if unit else shape, dtype=torch.float32, device=device)
    plane = rate[0].numel()
    tensors = {"rate": rate.contiguous(), "into": into.contiguous(), "out": out.contiguous()}
    tensors |= {"step": step.contiguous(), "a": a, "b": b, "c": c, "channels": shape[2], "plane": plane}
    with _on_device(rate):
        _launch(forward_kernel, plane, tensors, rule, unit, scale)
    return a, b, c


def backward(
    grad_a: Tensor,
    grad_b: Tensor,
    grad_c: Tensor,
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    step: Tensor,
    rule: str,
    unit: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of rate, into, out and step."""
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (rate, into, out)]
    by_step = torch.empty(rate.shape[1:], dtype=torch.float64, device=rate.device)
    plane = rate[0].numel()
    given = {"grad_a": grad_a, "grad_b": grad_b, "grad_c": grad_c, "rate": rate, "into": into, "out": out, "step": step}
    tensors: dict[str, Tensor | int | None] = {name: t.contiguous() for name, t in given.items()}
    tensors |= {"grad_rate": grads[0], "grad_into": grads[1], "grad_out": grads[2], "grad_step": by_step}
    tensors |= {"channels": rate.shape[2], "plane": plane}
    with _on_device(rate):
        _launch(backward_kernel, plane, tensors, rule, unit, scale)
    return grads[0], grads[1], grads[2], by_step.sum(0)


def _launch(
    kernel: Any, plane: int, tensors: dict[str, Tensor | int | None], rule: str, unit: bool, scale: float
) -> None:
    constants = {"SCALE": scale, "BILINEAR": rule == "bilinear", "UNIT": unit, "BLOCK": BLOCK, "enable_fp_fusion": True}
    launch(kernel, -(-plane // BLOCK), (rule, unit, scale), tensors, lambda: constants)


def _on_device(x: Tensor) -> AbstractContextManager[None] | torch.cuda.device:
    """Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
