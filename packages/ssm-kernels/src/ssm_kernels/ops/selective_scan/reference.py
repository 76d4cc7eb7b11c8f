"""The definition of the selective scan: a loop over time in plain PyTorch, which PyTorch differentiates itself.

Letters: B batch, L length, D channels, N state, G groups of channels that share B and C, S packed sequences.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the scan one step at a time; arguments and shapes as in `selective_scan`.

    Returns:
        y (B, L, D) in x.dtype and the state after the last step (B or S, D, N), float32 (float64 for float64 x).
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(device_type=x.device.type, enabled=False):
        delta = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
        if dt_softplus:
            delta = F.softplus(delta)
        wide = x.to(kind)
        channels, state = A.shape[-2:]
        B, C = _per_channel(B.to(kind), channels), _per_channel(C.to(kind), channels)
        if cu_seqlens is None:
            start = wide.new_zeros(x.shape[0], channels, state) if initial_state is None else initial_state.to(kind)
            y, final = _loop(wide, delta, A.to(kind), B, C, start, reverse)
        else:
            y, final = _packed(wide, delta, A.to(kind), B, C, initial_state, cu_seqlens.tolist(), reverse)
        if D is not None:
            y = y + _skip_weight(D.to(kind), cu_seqlens) * wide
        if z is not None:
            y = y * F.silu(z.to(kind))
    return y.to(x.dtype), final


def _loop(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Scan whole rows: x, delta (B, L, D), A (D, N) or (B, D, N), B, C (B, L, D, N), state (B, D, N)."""
    steps = list(zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    outputs = []
    for x_t, delta_t, B_t, C_t in reversed(steps) if reverse else steps:
        decay = torch.exp(delta_t[..., None] * A)
        state = decay * state + (delta_t * x_t)[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    return torch.stack(outputs[::-1] if reverse else outputs, 1), state


def _packed(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    bounds: list[int],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Scan the sequences of one packed row, each from its own state; an empty one returns the state it was given."""
    outputs, finals = [], []
    for s, (begin, end) in enumerate(pairwise(bounds)):
        state = x.new_zeros(1, *A.shape[-2:]) if initial_state is None else initial_state[s : s + 1].to(x.dtype)
        if end > begin:
            part = slice(begin, end)
            rates = A if A.dim() == 2 else A[s]
            y, state = _loop(x[:, part], delta[:, part], rates, B[:, part], C[:, part], state, reverse)
            outputs.append(y)
        finals.append(state)
    return torch.cat(outputs, 1), torch.cat(finals, 0)


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """Repeat (B, L, N) or (B, L, G, N) to (B, L, D, N): group g serves the channels [g * D / G, (g + 1) * D / G)."""
    grouped = x[:, :, None] if x.dim() == 3 else x
    return grouped.repeat_interleave(channels // grouped.shape[2], 2)


def _skip_weight(D: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Shape D for a product with x (B, L, D); one row per sequence becomes one row per step."""
    if D.dim() == 1:
        return D
    if cu_seqlens is None:
        return D[:, None]
    return D.repeat_interleave(cu_seqlens.diff().to(D.device), 0)[None]
