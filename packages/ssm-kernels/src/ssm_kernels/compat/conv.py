"""causal-conv1d in its own layout, (B, D, L), on `ssm_kernels.depthwise_conv1d` and `depthwise_conv1d_step`.

Letters: B batch, D channels, L length, k taps, S sequences.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse
from ..ops.depthwise_conv1d import depthwise_conv1d
from ..ops.depthwise_conv1d_step import depthwise_conv1d_step
from .errors import UnknownChoice
from .packed import from_one_row, in_one_row, runs

ConvImpl = Literal["auto", "reference"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve as `causal_conv1d.causal_conv1d_fn`.

    Args:
        x: Sequences, (B, D, L), any floating dtype and strides.
        weight: Filters, (D, k), k in 2..8.
        bias: (D,) or None.
        seq_idx: Which sequence a step belongs to, (B, L), integer: no filter reaches from one into the next, and steps
            with a negative index give zeros. Steps of one sequence stand side by side. On a GPU it costs a wait.
        initial_states: The k - 1 steps before the first of each row, (B, D, k - 1).
        return_final_states: Also return the last k - 1 steps of each row. Not with seq_idx.
        final_states_out: Where to write them, (B, D, k - 1).
        activation: None, "silu" or "swish", which is the same.

    Returns:
        (B, D, L) in x.dtype, channels next to one another in memory; with `return_final_states` also (B, D, k - 1).

    Raises:
        UnknownChoice: The activation is another one.
        ValueError: A shape, dtype, device or combination is wrong. The message names the argument.
    """
    return _convolve(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation, "auto"
    )


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Do what `causal_conv1d_fn` does with the loop that defines it; the order of the arguments is another."""
    return _convolve(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation, "reference"
    )


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    return_final_states: bool,
    final_states_out: Tensor | None,
    activation: str | None,
    impl: ConvImpl,
) -> Tensor | tuple[Tensor, Tensor]:
    op = "causal_conv1d_fn"
    silu = known_activation(activation)
    if x.dim() != 3:
        refuse(op, "x", "(B, D, L)", tuple(x.shape), "channels come before time")
    if seq_idx is None:
        y = depthwise_conv1d(x.mT, weight, bias, activation=silu, initial_state=initial_states, impl=impl).mT
    else:
        if return_final_states:
            refuse(op, "return_final_states", "False with seq_idx", True, "causal_conv1d_varlen_states gives them")
        y = _packed(x, weight, bias, seq_idx, initial_states, silu, impl)
    if not return_final_states:
        return y
    last = last_steps(x, weight.shape[1] - 1, initial_states)
    if final_states_out is None:
        return y, last
    return y, final_states_out.copy_(last)


def known_activation(activation: str | None) -> Literal["silu"] | None:
    """Translate an activation; those that causal-conv1d does not have raise UnknownChoice."""
    if activation not in (None, "silu", "swish"):
        raise UnknownChoice(f"activation must be None, silu, or swish, got {activation!r}")
    return None if activation is None else "silu"


def last_steps(x: Tensor, steps: int, before: Tensor | None) -> Tensor:
    """Give the last `steps` of (B, D, L), filled up on the left with those before, or zeros."""
    missing = steps - x.shape[-1]
    if missing <= 0:
        return x[..., -steps:].clone()
    if before is None:
        return F.pad(x, (missing, 0))
    return torch.cat([before[..., -missing:].to(x.dtype), x], dim=-1)


def _packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor,
    initial_states: Tensor | None,
    silu: Literal["silu"] | None,
    impl: ConvImpl,
) -> Tensor:
    batch, channels, length = x.shape
    check_shape("causal_conv1d_fn", "seq_idx", seq_idx, [(batch, length)], "(B, L)", "one number per step")
    bounds, first = runs(seq_idx)
    state = None
    if initial_states is not None:
        shape = (batch, channels, weight.shape[1] - 1)
        check_shape("causal_conv1d_fn", "initial_states", initial_states, [shape], "(B, D, k - 1)", "one per row")
        state = initial_states.new_zeros(bounds.shape[0] - 1, *shape[1:]).index_copy(0, first, initial_states)
    y = depthwise_conv1d(
        in_one_row(x.mT), weight, bias, activation=silu, initial_state=state, cu_seqlens=bounds, impl=impl
    )
    return from_one_row(y, batch).masked_fill((seq_idx < 0).unsqueeze(-1), 0.0).mT


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next steps, and write them into the state, as `causal_conv1d.causal_conv1d_update`.

    Args:
        x: (B, D), or several steps, (B, D, L).
        conv_state: The steps before, (B, D, K) with K at least k - 1, newest last; changed in place.
        weight: Filters, (D, k).
        bias: (D,) or None.
        activation: None, "silu" or "swish".
        cache_seqlens: How many steps each row has seen, (B,), integer: the state is a ring then, whose place
            cache_seqlens modulo K the first new step takes.
        conv_state_indices: Which row of a larger state each row of x goes with, (B,), integer; rows with a negative
            one are left alone and give zeros.

    Returns:
        The shape and dtype of x.

    Raises:
        UnknownChoice: The activation is another one.
        ValueError: A shape, dtype or device is wrong.
    """
    return _update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices, "auto")


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """Do what `causal_conv1d_update` does with the loop that defines it."""
    return _update(x, conv_state, weight, bias, activation, cache_seqlens, None, "reference")


def _update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    impl: ConvImpl,
) -> Tensor:
    op = "causal_conv1d_update"
    silu = known_activation(activation)
    steps = x if x.dim() == 3 else x.unsqueeze(-1)
    batch, channels, length = steps.shape
    rows = conv_state.shape[0] if conv_state_indices is not None else batch
    if conv_state.dim() != 3 or conv_state.shape[:2] != (rows, channels) or conv_state.shape[2] < weight.shape[1] - 1:
        wanted = f"(B, D, K) = ({rows}, {channels}, K) with K at least k - 1 = {weight.shape[1] - 1}"
        refuse(op, "conv_state", wanted, tuple(conv_state.shape), "allocate it once, with zeros, before the first step")
    state, used = conv_state, None
    if conv_state_indices is not None:
        check_shape(op, "conv_state_indices", conv_state_indices, [(batch,)], "(B,)", "one row of the state for each")
        used = conv_state_indices >= 0
        state = conv_state[conv_state_indices.clamp_min(0)]
    if cache_seqlens is not None:
        check_shape(op, "cache_seqlens", cache_seqlens, [(batch,)], "(B,)", "one number for each row")
        before = _around(state, cache_seqlens, -(weight.shape[1] - 1), 0)
    else:
        before = state[..., state.shape[2] - (weight.shape[1] - 1) :]
    if length == 1:
        y, _ = depthwise_conv1d_step(steps[..., 0], weight, bias, state=before, activation=silu, impl=impl)
        y = y.unsqueeze(-1)
    else:
        y = depthwise_conv1d(steps.mT, weight, bias, activation=silu, initial_state=before, impl=impl).mT
    _remember(conv_state, state, steps, cache_seqlens, conv_state_indices, used)
    if used is not None:
        y = y.masked_fill(~used[:, None, None], 0.0)
    return y if x.dim() == 3 else y[..., 0]


def _places(cache_seqlens: Tensor, start: int, stop: int, size: int) -> Tensor:
    """Give the places in a ring of `size` of the steps from `start` to `stop` relative to the next one, (B, 1, n)."""
    steps = torch.arange(start, stop, device=cache_seqlens.device)
    return (cache_seqlens.long()[:, None] + steps).remainder(size).unsqueeze(1)


def _around(state: Tensor, cache_seqlens: Tensor, start: int, stop: int) -> Tensor:
    places = _places(cache_seqlens, start, stop, state.shape[2])
    return state.gather(2, places.expand(-1, state.shape[1], -1))


@torch.no_grad()
def _remember(
    conv_state: Tensor,
    state: Tensor,
    steps: Tensor,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    used: Tensor | None,
) -> None:
    """Write the new steps into the state."""
    size = state.shape[2]
    if cache_seqlens is None:
        new = torch.cat([state, steps.to(state.dtype)], dim=-1)[..., -size:]
    else:
        recent = steps[..., -size:].to(state.dtype)  # of two steps for one place, the later one stays
        first = steps.shape[2] - recent.shape[2]
        places = _places(cache_seqlens, first, steps.shape[2], size).expand(-1, state.shape[1], -1)
        new = state.scatter(2, places, recent)
    if conv_state_indices is None or used is None:
        conv_state.copy_(new)
    else:
        conv_state[conv_state_indices[used].long()] = new[used]


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Give the last steps of packed sequences, as `causal_conv1d.causal_conv1d_varlen.causal_conv1d_varlen_states`.

    Args:
        x: All sequences one behind another, (L, D).
        cu_seqlens: Their bounds, (S + 1,), integer, from 0 to L.
        state_len: How many steps to give of each.

    Returns:
        (S, D, state_len) in x.dtype; zeros stand where a sequence is shorter.
    """
    ends, starts = cu_seqlens[1:].long(), cu_seqlens[:-1].long()
    steps = ends[:, None] + torch.arange(-state_len, 0, device=x.device)
    inside = steps >= starts[:, None]
    states = x[steps.clamp_min(0)].masked_fill(~inside.unsqueeze(-1), 0.0)
    return states.mT


causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
