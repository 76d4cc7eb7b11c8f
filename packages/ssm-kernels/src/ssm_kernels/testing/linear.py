"""Random inputs for the linear scans. Deterministic for a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class LinearInputs:
    """Arguments of `linear_scan` under their own names; the state is None where left out."""

    x: Tensor
    Lambda: Tensor
    B: Tensor
    C: Tensor
    step: Tensor
    initial_state: Tensor | None

    def kwargs(self) -> dict[str, Tensor | None]:
        """Return them as keyword arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def linear_inputs(
    batch: int,
    length: int,
    channels: int,
    modes: int,
    *,
    shared: bool = False,
    paired: bool = True,
    state: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LinearInputs:
    """Make inputs for `linear_scan`; x in `dtype`, parameters and state in single precision (double for float64).

    Args:
        batch: B.
        length: L.
        channels: D, for shared modes H.
        modes: M, for shared modes P.
        shared: Modes that all channels share (S5) instead of M for each (S4D).
        paired: Complex modes; False makes real ones.
        state: Also make an initial state.
        dtype: Of x.
        device: Where they are put; the values do not depend on it.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    kind = real if not paired else torch.complex128 if dtype == torch.float64 else torch.complex64

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def weight(*shape: int) -> Tensor:
        return (torch.complex(normal(*shape), normal(*shape)) if paired else normal(*shape)).to(kind).to(device)

    form = (modes,) if shared else (channels, modes)
    rate = -0.01 - 0.5 * normal(*form).abs()
    Lambda = torch.complex(rate, 5 * normal(*form)) if paired else rate
    return LinearInputs(
        x=normal(batch, length, channels).to(dtype).to(device),
        Lambda=Lambda.to(kind).to(device),
        B=weight(modes, channels) if shared else weight(channels, modes),
        C=weight(channels, modes),
        step=(0.01 + 0.2 * normal(form[0]).abs()).to(real).to(device),
        initial_state=weight(batch, *form) if state else None,
    )
