"""The compiled convolution that vision code calls directly, `causal_conv1d_cuda`, in the forms of its versions.

Calls without autograd; the number of arguments tells the version. Letters: B batch, D channels, L length, k taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .conv import causal_conv1d_fn
from .conv import causal_conv1d_update as update


def causal_conv1d_fwd(*arguments: Tensor | bool | None) -> Tensor | None:
    """Convolve (B, D, L) with (D, k), as `causal_conv1d_cuda.causal_conv1d_fwd` of these versions.

    1.1 (Vim): x, weight, bias, seq_idx, silu. 1.2 to 1.5: x, weight, bias, seq_idx, initial_states, final_states_out,
    silu. Both return the result. From 1.6: x, weight, bias, seq_idx, initial_states, out, final_states_out, silu; the
    result is written into `out`.
    """
    match arguments:
        case x, weight, bias, seq_idx, silu:
            return _forward(x, weight, bias, seq_idx, None, None, silu)
        case x, weight, bias, seq_idx, initial, final, silu:
            return _forward(x, weight, bias, seq_idx, initial, final, silu)
        case x, weight, bias, seq_idx, initial, out, final, silu:
            _copy(out, _forward(x, weight, bias, seq_idx, initial, final, silu))
            return None
    raise ValueError(f"causal_conv1d_fwd: there must be 5, 7 or 8 arguments, got {len(arguments)}; see its docstring")


def causal_conv1d_bwd(*arguments: Tensor | bool | None) -> tuple[Tensor | None, ...] | None:
    """Differentiate `causal_conv1d_fwd`, as `causal_conv1d_cuda.causal_conv1d_bwd` of these versions.

    1.1 (Vim): x, weight, bias, dout, seq_idx, dx, silu; returns the gradients of x, weight and bias. 1.2 to 1.5: x,
    weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu; returns that of
    initial_states as well. Where dx is a tensor the gradient of x is written into it. From 1.6: x, weight, bias, dout,
    seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states, silu; all are written into those.
    """
    match arguments:
        case x, weight, bias, dout, seq_idx, dx, silu:
            return _backward(x, weight, bias, dout, seq_idx, None, None, dx, silu)[:3]
        case x, weight, bias, dout, seq_idx, initial, dfinal, dx, wanted, silu:
            *gradients, of_initial = _backward(x, weight, bias, dout, seq_idx, initial, dfinal, dx, silu)
            return *gradients, of_initial if wanted else None
        case x, weight, bias, dout, seq_idx, initial, dfinal, dx, dweight, dbias, dinitial, silu:
            gradients = _backward(x, weight, bias, dout, seq_idx, initial, dfinal, dx, silu)
            for place, gradient in zip((dweight, dbias, dinitial), gradients[1:], strict=True):
                _copy(place, gradient)
            return None
    raise ValueError(f"causal_conv1d_bwd: there must be 7, 10 or 12 arguments, got {len(arguments)}; see its docstring")


def causal_conv1d_update(*arguments: Tensor | bool | None) -> Tensor | None:
    """Convolve the next steps, as `causal_conv1d_cuda.causal_conv1d_update` of these versions.

    Up to 1.5: x, conv_state, weight, bias, silu, then cache_seqlens and conv_state_indices where the version has them;
    returns the result. From 1.6: x, conv_state, weight, bias, out, silu, cache_seqlens, conv_state_indices; the result
    is written into `out`.
    """
    match arguments:
        case x, state, weight, bias, Tensor() as out, silu, lengths, indices:
            _copy(out, update(x, state, weight, bias, "silu" if silu else None, lengths, indices))  # pyright: ignore
            return None
        case x, state, weight, bias, silu, *more if len(more) <= 2:
            return update(x, state, weight, bias, "silu" if silu else None, *more)  # pyright: ignore
    raise ValueError(f"causal_conv1d_update: there must be 5 to 8 arguments, got {len(arguments)}; see its docstring")


def _forward(x, weight, bias, seq_idx, initial, final, silu) -> Tensor:
    with torch.no_grad():
        activation = "silu" if silu else None
        done = causal_conv1d_fn(x, weight, bias, seq_idx, initial, final is not None, final, activation)
    return done if isinstance(done, Tensor) else done[0]


def _backward(x, weight, bias, dout, seq_idx, initial, dfinal, dx, silu) -> tuple[Tensor | None, ...]:
    """Give the gradients of x, weight, bias and the initial states; None for what is not there."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, initial)]
        activation = "silu" if silu else None
        done = causal_conv1d_fn(*leaves[:3], seq_idx, leaves[3], dfinal is not None, None, activation)  # pyright: ignore
        outputs, grads = (done, dout) if isinstance(done, Tensor) else (done, (dout, dfinal))
        there = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, there, grads))
    gradients = [None if leaf is None else next(found) for leaf in leaves]
    if dx is not None:
        gradients[0] = dx.copy_(gradients[0])
    return tuple(gradients)


def _copy(place, value: Tensor | None) -> None:
    if place is not None and value is not None:
        place.copy_(value)
