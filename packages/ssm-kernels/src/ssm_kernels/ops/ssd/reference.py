"""The definition of the Mamba-2 scan: a loop over time in plain PyTorch, which PyTorch differentiates itself.

Letters: B batch, L length, H heads, P head dim, N state, G groups of heads that share B and C, S packed sequences.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_reference(
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
    """Run the scan one step at a time; arguments and shapes as in `ssd`.

    Returns:
        y (B, L, H, P) in x.dtype and the state after the last step (B or S, H, P, N), float32 (float64 for float64 x).
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, _, heads, width = x.shape
    with torch.autocast(device_type=x.device.type, enabled=False):
        delta = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
        if dt_softplus:
            delta = F.softplus(delta)
        wide = x.to(kind)
        B, C = (t.to(kind).repeat_interleave(heads // t.shape[2], 2) for t in (B, C))  # (B, L, H, N)
        bounds = None if cu_seqlens is None else cu_seqlens.tolist()
        rows = batch if bounds is None else len(bounds) - 1
        state = wide.new_zeros(rows, heads, width, B.shape[-1]) if initial_state is None else initial_state.to(kind)
        if bounds is None:
            y, final = _loop(wide, delta, A.to(kind), B, C, state, reverse)
        else:
            y, final = _packed(wide, delta, A.to(kind), B, C, state, bounds, reverse)
        if D is not None:
            y = y + (D if D.dim() == 2 else D[:, None]).to(kind) * wide
        if z is not None:
            y = y * F.silu(z.to(kind))
    return y.to(x.dtype), final


def _loop(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Scan whole rows: x (B, L, H, P), delta (B, L, H), A (H,), B, C (B, L, H, N), state (B, H, P, N)."""
    steps = list(zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    outputs = []
    for x_t, delta_t, B_t, C_t in reversed(steps) if reverse else steps:
        decay = torch.exp(delta_t * A)[..., None, None]
        state = decay * state + (delta_t[..., None] * x_t)[..., None] * B_t[..., None, :]
        outputs.append((state * C_t[..., None, :]).sum(-1))
    return torch.stack(outputs[::-1] if reverse else outputs, 1), state


def _packed(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    states: Tensor,
    bounds: list[int],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Scan the sequences of one packed row, each from its own state; an empty one returns the state it was given."""
    outputs, finals = [], []
    for state, (begin, end) in zip(states.split(1), pairwise(bounds), strict=True):
        final = state
        if end > begin:
            part = slice(begin, end)
            y, final = _loop(x[:, part], delta[:, part], A, B[:, part], C[:, part], state, reverse)
            outputs.append(y)
        finals.append(final)
    return torch.cat(outputs, 1), torch.cat(finals, 0)
