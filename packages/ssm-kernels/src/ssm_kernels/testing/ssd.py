"""Random inputs for the Mamba-2 scan, in the ranges that trained models use. Deterministic for a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class SsdInputs:
    """Arguments of `ssd` under their own names; None where left out."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None

    def kwargs(self) -> dict[str, Tensor | None]:
        """Return them as keyword arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def ssd_inputs(
    batch: int,
    length: int,
    heads: int,
    width: int,
    state: int,
    *,
    groups: int = 1,
    optional: bool = True,
    D_per_channel: bool = False,
    rows: int | None = None,
    rate: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> SsdInputs:
    """Make inputs for `ssd`; sequences in `dtype`, parameters and state in float32 (float64 for float64).

    Args:
        batch: B.
        length: L.
        heads: H.
        width: P.
        state: N.
        groups: G.
        optional: Also make D, z, dt_bias and initial_state.
        D_per_channel: D of shape (H, P) instead of (H,).
        rows: How many initial states; None for the batch.
        rate: Factor of A: with a small one, states outlive their chunk.
        dtype: Of x, dt, z, B and C.
        device: Where they are put; the values do not depend on it.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind).to(device)

    A = -rate * (0.2 + 4 * torch.rand(heads, generator=generator, dtype=torch.float64))
    skip = (heads, width) if D_per_channel else (heads,)
    return SsdInputs(
        x=normal(batch, length, heads, width),
        dt=normal(batch, length, heads) * 0.5,
        A=A.to(wide).to(device),
        B=normal(batch, length, groups, state),
        C=normal(batch, length, groups, state),
        D=normal(*skip, kind=wide) if optional else None,
        z=normal(batch, length, heads, width) if optional else None,
        dt_bias=normal(heads, kind=wide) * 0.5 - 2 if optional else None,
        initial_state=normal(rows or batch, heads, width, state, kind=wide) if optional else None,
    )
