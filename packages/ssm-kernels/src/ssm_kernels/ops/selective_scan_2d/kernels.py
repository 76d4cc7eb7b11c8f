"""The two-dimensional scan by the kernels of the one-dimensional one: a row is one direction of an image.

The kernels step from pixel to pixel as the direction has it, so no scanned copy of anything exists. Every direction
leaves its own result, bfloat16 for bfloat16 inputs and else float32, and these are added in one order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..selective_scan import kernels_single as single
from ..selective_scan.kernels import launch_backward, launch_forward, like
from ..selective_scan.kernels_plan import Scan, partial_dtype, prepare
from ..selective_scan.kernels_single_plan import Single, suits
from ..selective_scan.kernels_single_plan import prepare as prepare_single
from ..selective_scan.kernels_sums import add_parts


def _pixels(t: Tensor) -> Tensor:
    """View (B, H, W, ...) as (B, L, ...); a copy only where the strides do not allow it."""
    return t.reshape(t.shape[0], -1, *t.shape[3:])


def _suits(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> bool:
    """Whether the kernels for one state per channel take this image."""
    height, width, channels = x.shape[1:]
    step = max(A.shape[0] * channels, *(t.stride(2) for t in (x, dt, B, C)))
    return suits(A, None, max(height, width), height * width * step)


def _parts(x: Tensor, directions: int) -> Tensor:
    """Make room for the results of all directions."""
    kind = x.dtype if directions == 1 else partial_dtype(x.dtype)
    return torch.empty((directions, *x.shape), dtype=kind, device=x.device)


def _prepare(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    softplus: bool,
    codes: Sequence[int],
    chunk: int,
    span: int | None,
    backward: bool = False,
) -> Scan:
    x, dt, A, B, C, D, dt_bias = inputs
    x, dt, B, C, height, line = _pixels(x), _pixels(dt), _pixels(B), _pixels(C), x.shape[1], x.shape[2]
    rest = (D, None, dt_bias, None, None, softplus, False)
    options = {"chunk": chunk, "span": span, "backward": backward}
    return prepare(x, dt, A, B, C, *rest, **options, codes=tuple(codes), height=height, line=line)


def _prepare_single(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    softplus: bool,
    codes: Sequence[int],
    chunk: int,
    span: int | None,
) -> Single:
    """As `_prepare`, for one state per channel."""
    x, dt, A, B, C, D, dt_bias = inputs
    x, dt, B, C, height, line = _pixels(x), _pixels(dt), _pixels(B), _pixels(C), x.shape[1], x.shape[2]
    rest = (D, None, dt_bias, None, softplus, False)
    shape = {"codes": tuple(codes), "height": height, "line": line}
    return prepare_single(x, dt, A, B, C, *rest, chunk=chunk, span=span, **shape)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
    *,
    save_states: bool,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y and, if `save_states`, the states before every chunk, for `backward` alone.

    Args:
        x: And the following, as in `selective_scan_2d`.
        dt: Time steps.
        A: Rates.
        B: Input weights.
        C: Output weights.
        D: Weight of x in y.
        dt_bias: Bias of dt.
        dt_softplus: Whether dt goes through softplus.
        codes: Of the directions.
        save_states: Keep what the backward starts from.
        chunk: Steps per chunk.
        span: Chunks per program, 0 for whole rows; None decides by size.
    """
    inputs = (x, dt, A, B, C, D, dt_bias)
    parts = _parts(x, len(codes))
    if _suits(x, dt, A, B, C):
        scan = _prepare_single(inputs, dt_softplus, codes, chunk, span)
        _, saved = single.launch_forward(scan, save_states=save_states, out=parts)
    else:
        scan = _prepare(inputs, dt_softplus, codes, chunk, span)
        _, saved = launch_forward(scan, save_states=save_states, out=parts)
    return add_parts(parts, x), saved.view(saved.shape[0], *A.shape[1:])


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
    chunk_states: Tensor,
    grad_y: Tensor,
    *,
    chunk: int,
    span: int | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D, dt_bias in their dtypes; empty for a D or dt_bias of None."""
    inputs = (x, dt, A, B, C, D, dt_bias)
    grad_y, none = _pixels(grad_y), x.new_empty(0)
    unsaved = chunk_states.shape[0] == 0  # the forward was told that nobody would ask
    if _suits(x, dt, A, B, C):
        one = _prepare_single(inputs, dt_softplus, codes, chunk, span)
        if unsaved:
            parts = _parts(x, len(codes))
            chunk_states = single.launch_forward(one, save_states=True, out=parts)[1]
        grads = single.launch_backward(one, chunk_states, grad_y, None, grad_z=none)
    else:
        scan = _prepare(inputs, dt_softplus, codes, chunk, span, backward=True)
        if unsaved:
            parts = _parts(x, len(codes))
            chunk_states = launch_forward(scan, save_states=True, out=parts)[1]
        grads = launch_backward(scan, chunk_states, grad_y, None, grad_z=none)
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, _, grad_bias, _ = grads
    return like((grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias), inputs)
