"""The cases of the linear scans: S4D, and S5 with modes that all channels share, each next to its convolution.

B batch, L length, D channels, M modes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.linear_scan import linear_scan
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker
from .operators import bound
from .peers import Peers
from .roofline import Rates

STEP = 0.02  # mean length of a step


def linear_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `linear_scan` with M modes for every channel."""
    return _case("linear_scan", sizes, dtype, device, rates, shared=False)


def shared_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `linear_scan` with modes that all channels share."""
    return _case("linear_scan_shared", sizes, dtype, device, rates, shared=True)


def _case(
    op: str, sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, *, shared: bool
) -> Case:
    """Make the case; complex parameters are two leaves each."""
    batch, channels, length, modes = sizes
    make = Maker(device, DTYPES[dtype])
    form = (modes,) if shared else (channels, modes)
    into = (modes, channels) if shared else (channels, modes)
    inputs = {
        "x": make.normal(batch, length, channels),
        "Lambda_real": make.rate(*form) / 8,
        "Lambda_imag": make.weight(*form, scale=20),
        "B_real": make.weight(*into),
        "B_imag": make.weight(*into),
        "C_real": make.weight(channels, modes),
        "C_imag": make.weight(channels, modes),
        "step": make.weight(form[0], scale=STEP / 4, shift=STEP).abs(),
    }

    def call(x: Tensors, impl: Any) -> Tensor:
        return _run(x, impl=impl)

    def convolve(x: Tensors) -> Tensor:
        return _run(x, mode="fft")

    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers={"torch_fft": Peer(convolve)})


def _run(x: Tensors, **options: Any) -> Tensor:
    """Put the complex parameters together and scan."""
    Lambda, B, C = (torch.complex(x[f"{name}_real"], x[f"{name}_imag"]) for name in ("Lambda", "B", "C"))
    return linear_scan(x["x"], Lambda, B, C, x["step"], **options)
