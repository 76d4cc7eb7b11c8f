"""The cases of the Mamba-2 scan and its step, next to mamba_ssm's Triton kernels.

B batch, L length, H heads, P head dim, N state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.ssd import ssd
from ..ops.ssd_step import ssd_step
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker
from .operators import bound
from .peers import Peers
from .roofline import Rates

PEER_CHUNK = 256  # steps per chunk of mamba_ssm's kernels, its own default


def _tensors(make: Maker, heads: int, width: int, state: int, *lead: int) -> Tensors:
    """Make every floating argument but z and the state; one group, as in the published models."""
    return {
        "x": make.normal(*lead, heads, width),
        "dt": make.normal(*lead, heads, scale=0.5),
        "A": make.rate(heads),
        "B": make.normal(*lead, 1, state),
        "C": make.normal(*lead, 1, state),
        "D": make.weight(heads),
        "dt_bias": make.weight(heads, scale=0.5, shift=-2),
    }


def ssd_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `ssd`: D, bias and softplus, no gate, as the block with a gated norm calls it."""
    batch, length, heads, width, state = sizes
    inputs = _tensors(Maker(device, DTYPES[dtype]), heads, width, state, batch, length)

    def call(x: Tensors, impl: Any) -> Tensor:
        return ssd(**x, dt_softplus=True, impl=impl)

    def other(x: Tensors) -> Tensor:
        assert peers.ssd is not None
        first = (x[name] for name in ("x", "dt", "A", "B", "C"))
        return peers.ssd(*first, PEER_CHUNK, D=x["D"], dt_bias=x["dt_bias"], dt_softplus=True)

    others = {} if peers.ssd is None else {"mamba_ssm": Peer(other)}
    return Case("ssd", sizes, dtype, inputs, call, bound("ssd", sizes, dtype, rates), peers=others)


def ssd_step_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `ssd_step`; the peer's function takes a step and a rate for every channel, as views."""
    batch, heads, width, state = sizes
    make = Maker(device, DTYPES[dtype])
    inputs = _tensors(make, heads, width, state, batch) | {"state": make.weight(batch, heads, width, state)}

    def call(x: Tensors, impl: Any) -> Tensor:
        return ssd_step(**x, dt_softplus=True, impl=impl)[0]

    def own_state(x: Tensors) -> Tensors:
        return {**x, "state": x["state"].clone()}

    def other(x: Tensors) -> Tensor:
        assert peers.scan_step is not None
        dt, skip, bias = (x[name][..., None].expand(*x[name].shape, width) for name in ("dt", "D", "dt_bias"))
        A = x["A"][:, None, None].expand(heads, width, state)
        first = (x["state"], x["x"], dt, A, x["B"], x["C"], skip)
        return peers.scan_step(*first, z=None, dt_bias=bias, dt_softplus=True)

    others = {} if peers.scan_step is None else {"mamba_ssm": Peer(other, own_state, differentiable=False)}
    return Case("ssd_step", sizes, dtype, inputs, call, bound("ssd_step", sizes, dtype, rates), peers=others)
