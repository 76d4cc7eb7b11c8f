"""The cases of the norms, beside PyTorch's and mamba_ssm's. B batch, L positions, C channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.layer_norm import layer_norm, rms_norm
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker
from .operators import bound
from .peers import Peers
from .roofline import Rates

EPS = 1e-5


def layer_norm_case(
    sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers
) -> Case:
    """Make the case of `layer_norm` with float32 parameters.

    The peers are PyTorch's norm as autocast runs it, in float32 and with the conversion that the next layer asks for,
    and the same with everything in the dtype of x.
    """
    op, kind = "layer_norm", DTYPES[dtype]
    make = Maker(device, kind)
    inputs = {"x": make.normal(*sizes), "weight": make.weight(sizes[-1]), "bias": make.weight(sizes[-1])}

    def call(x: Tensors, impl: Any) -> Tensor:
        return layer_norm(**x, eps=EPS, impl=impl)

    def autocast(x: Tensors) -> Tensor:
        return F.layer_norm(x["x"].float(), sizes[-1:], x["weight"], x["bias"], EPS).to(kind)

    def same(x: Tensors) -> Tensor:
        return F.layer_norm(x["x"], sizes[-1:], x["weight"], x["bias"], EPS)

    others = {
        "torch_autocast": Peer(autocast),
        "torch_same": Peer(same, dtypes={"weight": kind, "bias": kind}),
    }
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def add_rms_norm_case(
    sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers
) -> Case:
    """Make the case of `rms_norm` of a branch and a float32 residual, as a block of Vim has it.

    Everyone writes the sum; its gradient from the next block, which would be one more tensor to read, is left out.
    """
    op, kind = "add_rms_norm", DTYPES[dtype]
    make = Maker(device, kind)
    inputs = {"x": make.normal(*sizes), "weight": make.weight(sizes[-1]), "residual": make.weight(*sizes)}

    def call(x: Tensors, impl: Any) -> Tensor:
        return rms_norm(**x, eps=EPS, impl=impl)[0]

    def autocast(x: Tensors) -> Tensor:
        return F.rms_norm(x["x"] + x["residual"], sizes[-1:], x["weight"], EPS).to(kind)

    def fused(x: Tensors) -> Tensor:
        assert peers.norm is not None
        options = {"prenorm": True, "residual_in_fp32": True, "is_rms_norm": True}
        return peers.norm(x["x"], x["weight"], None, residual=x["residual"], eps=EPS, **options)[0]

    others = {"torch_autocast": Peer(autocast)} | ({} if peers.norm is None else {"mamba_ssm": Peer(fused)})
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)
