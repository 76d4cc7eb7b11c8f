"""Packed sequences as mamba-ssm gives them, an index per step, and as the operators take them, bounds in one row.

Letters: B batch, L length, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def runs(seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Find where sequences begin in (B, L) indices, every row laid behind the one before.

    Args:
        seq_idx: Which sequence each step belongs to, (B, L), integer. Sequences of different rows are different.

    Returns:
        The bounds (S + 1,), int64, from 0 to B * L, and the number of each row's first sequence, (B,), int64. How many
        there are is read from the device, which a GPU has to be waited for.
    """
    batch, length = seq_idx.shape
    begins = torch.ones_like(seq_idx, dtype=torch.bool)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_full((1,), batch * length)])
    rows = torch.arange(batch, device=seq_idx.device) * length
    return bounds, torch.searchsorted(starts, rows)


def in_one_row(x: Tensor) -> Tensor:
    """Lay the rows of (B, L, ...) one behind another: (1, B * L, ...)."""
    return x.flatten(0, 1).unsqueeze(0)


def from_one_row(y: Tensor, batch: int) -> Tensor:
    """Undo `in_one_row`."""
    return y.squeeze(0).unflatten(0, (batch, -1))


def last_of_rows(first: Tensor, sequences: int) -> Tensor:
    """Give the number of each row's last sequence from those of the first ones."""
    return torch.cat([first[1:], first.new_full((1,), sequences)]) - 1
