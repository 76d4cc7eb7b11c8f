"""Random inputs for the operators, in the ranges that trained models use. Deterministic for a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class ScanInputs:
    """Arguments of `selective_scan` under their own names; None where left out."""

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


def scan_inputs(
    batch: int,
    length: int,
    channels: int,
    state: int,
    *,
    groups: int | None = None,
    optional: bool = True,
    batched_A: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ScanInputs:
    """Make inputs for `selective_scan`; sequences in `dtype`, parameters and state in float32 (float64 for float64).

    Args:
        batch: B.
        length: L.
        channels: D.
        state: N.
        groups: G; None gives B and C of shape (B, L, N), a number (B, L, G, N).
        optional: Also make D, z, dt_bias and initial_state.
        batched_A: A of shape (B, D, N) and D of shape (B, D) instead of (D, N) and (D,).
        dtype: Of x, dt, z, B and C.
        device: Where they are put; the values do not depend on it.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind).to(device)

    lead = (batch,) if batched_A else ()
    mid = () if groups is None else (groups,)
    A = -(0.2 + 8 * torch.rand(*lead, channels, state, generator=generator, dtype=torch.float64)).to(wide).to(device)
    return ScanInputs(
        x=normal(batch, length, channels),
        dt=normal(batch, length, channels) * 0.5,
        A=A,
        B=normal(batch, length, *mid, state),
        C=normal(batch, length, *mid, state),
        D=normal(*lead, channels, kind=wide) if optional else None,
        z=normal(batch, length, channels) if optional else None,
        dt_bias=normal(channels, kind=wide) * 0.5 - 2 if optional else None,
        initial_state=normal(batch, channels, state, kind=wide) if optional else None,
    )


@dataclass
class Scan2DInputs:
    """Arguments of `selective_scan_2d` under their own names."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor

    def kwargs(self) -> dict[str, Tensor]:
        """Return them as keyword arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def scan_2d_inputs(
    batch: int,
    height: int,
    width: int,
    channels: int,
    state: int,
    *,
    directions: int = 4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Scan2DInputs:
    """Make inputs for `selective_scan_2d`; x, dt, B and C in `dtype`, A, D and dt_bias in float32 (or float64)."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind).to(device)

    A = -(0.2 + 8 * torch.rand(directions, channels, state, generator=generator, dtype=torch.float64))
    return Scan2DInputs(
        x=normal(batch, height, width, channels),
        dt=normal(batch, height, width, directions, channels) * 0.5,
        A=A.to(wide).to(device),
        B=normal(batch, height, width, directions, state),
        C=normal(batch, height, width, directions, state),
        D=normal(directions, channels, kind=wide),
        dt_bias=normal(directions, channels, kind=wide) * 0.5 - 2,
    )
