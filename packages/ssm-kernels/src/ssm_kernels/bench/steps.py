"""The cases of the operators that make one token. The peers have no gradient and write their state in place.

B batch, D channels, N state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.depthwise_conv1d_step import depthwise_conv1d_step
from ..ops.selective_scan_step import selective_scan_step
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker, scan_tensors
from .operators import bound
from .peers import Peers
from .roofline import Rates


def _own_state(x: Tensors) -> Tensors:
    """Give a peer a state that it may write to."""
    return {**x, "state": x["state"].clone()}


def scan_step_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `selective_scan_step`."""
    batch, channels, state = sizes
    make = Maker(device, DTYPES[dtype])
    made = scan_tensors(make, batch, 1, channels, state)
    inputs = {name: x[:, 0].contiguous() if x.dim() == 3 else x for name, x in made.items()}
    inputs["state"] = make.weight(batch, channels, state)

    def call(x: Tensors, impl: Any) -> Tensor:
        return selective_scan_step(**x, dt_softplus=True, impl=impl)[0]

    def other(x: Tensors) -> Tensor:
        assert peers.scan_step is not None
        own = (x[name] for name in ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"))
        return peers.scan_step(*own, dt_softplus=True)

    others = {} if peers.scan_step is None else {"mamba_ssm": Peer(other, _own_state, differentiable=False)}
    op = "selective_scan_step"
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def conv_step_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `depthwise_conv1d_step`, with bias and SiLU."""
    batch, channels, taps = sizes
    kind = DTYPES[dtype]
    make = Maker(device, kind)
    inputs = {
        "x": make.normal(batch, channels),
        "weight": make.weight(channels, taps, scale=1 / taps),
        "bias": make.weight(channels),
        "state": make.normal(batch, channels, taps - 1),
    }

    def call(x: Tensors, impl: Any) -> Tensor:
        return depthwise_conv1d_step(**x, activation="silu", impl=impl)[0]

    def other(x: Tensors) -> Tensor:
        assert peers.conv_step is not None
        return peers.conv_step(x["x"], x["state"], x["weight"], x["bias"], "silu")

    same = {"weight": kind, "bias": kind}
    fits = peers.conv_step is not None and taps <= 4
    others = {"causal_conv1d": Peer(other, _own_state, dtypes=same, differentiable=False)} if fits else {}
    op = "depthwise_conv1d_step"
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)
