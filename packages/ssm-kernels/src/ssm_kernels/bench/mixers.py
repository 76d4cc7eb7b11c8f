"""Whole mixers, from the normalisation in front to the last projection: ours, and as the peers publish them.

Ours are the modules of `ssm_kernels.nn`. The peers do what the published blocks do around mamba_ssm's scan: channels
first inside, so transposes on the way in and out, flips for the second direction (Vim v2), copies in four orders for
pictures (VMamba, MambaIR). Both sides have the same parameters: projections, convolution and norm in the dtype of the
sequences, everything that enters the recurrence (A, D, the bias of dt) in float32.

B batch, L length, D inner channels, N state, R rank of dt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..nn.bidirectional import BidirectionalMamba
from ..nn.mamba import Mamba
from ..nn.ss2d import SS2D
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker
from .peers import Conv, Peers, Scan, cross_merge_copies, cross_scan_copies, eager_conv_silu, scan_four

MAMBA_IR_INNER = 360
PEER_NAME = {"Mamba": "mamba_ssm", "BidirectionalMamba": "mamba_ssm_flip", "SS2D": "mamba_ssm"}
RECURRENCE = ("A_log", "A_b_log", "A_logs", "D", "D_b", "Ds", "dt_proj.bias", "dt_proj_b.bias", "dt_projs_bias")
SLACK = 8.0  # of the error limit: operators round in turn, and a LayerNorm on a CPU sums its bias' gradient in bfloat16
NORM = "norm.weight"

MixerImpl = Literal["auto", "torch", "reference"]


def mixer_case(op: str, sizes: tuple[int, ...], dtype: str, device: torch.device, peers: Peers) -> Case:
    """Make the case of one mixer.

    Args:
        op: "Mamba", "BidirectionalMamba" or "SS2D".
        sizes: As `shapes.LEGEND` has them: the inner width of the mixer, as in the rows of its scan.
        dtype: Of the sequences and of the projections.
        device: Where it runs.
        peers: What can be called here.
    """
    batch, inner, *places, state = sizes
    make = Maker(device, DTYPES[dtype])
    width = inner // _widening(op, inner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = {impl: _build(op, width, inner, state, impl) for impl in ("torch", "auto", "reference")}
    inputs = {"x": make.normal(batch, *places, width), NORM: make.weight(width, scale=0.1, shift=1).to(make.dtype)}
    inputs |= dict(_parameters(modules["torch"], make))

    def call(x: Tensors, impl: str) -> Tensor:
        weights = {name: t for name, t in x.items() if name not in ("x", NORM)}
        return functional_call(modules["auto" if impl == "triton" else impl], weights, (_norm(op, x),))

    others = {} if peers.scan is None else {PEER_NAME[op]: Peer(_peer_call(op, peers.scan, peers.conv))}
    return Case(op, sizes, dtype, inputs, call, peers=others, slack=SLACK)


def _widening(op: str, inner: int) -> int:
    """Return inner channels over model channels: 2, but for pictures 1, and 2 in MambaIR."""
    return 2 if op != "SS2D" or inner == MAMBA_IR_INNER else 1


def _build(op: str, width: int, inner: int, state: int, impl: MixerImpl) -> nn.Module:
    if op == "SS2D":
        return SS2D(width, state, inner / width, activation="silu", init="v0", impl=impl)
    kind = Mamba if op == "Mamba" else BidirectionalMamba
    return kind(width, d_state=state, expand=inner // width, impl=impl)


def _parameters(module: nn.Module, make: Maker) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters under their names, with random rates in the place of -1, ..., -N."""
    for name, parameter in module.named_parameters():
        if name.startswith("A_"):
            yield name, (-make.rate(*parameter.shape)).log()
        elif name in RECURRENCE:
            yield name, parameter.detach().to(make.device)
        else:
            yield name, parameter.detach().to(make.device, make.dtype)


def _norm(op: str, x: Tensors) -> Tensor:
    """Normalise as the blocks do: RMSNorm in Vim and Mamba, LayerNorm around SS2D."""
    size = (x["x"].shape[-1],)
    return F.layer_norm(x["x"], size, x[NORM]) if op == "SS2D" else F.rms_norm(x["x"], size, x[NORM], 1e-5)


def _peer_call(op: str, scan: Scan, fused: Conv | None) -> Callable[[Tensors], Tensor]:
    if op == "SS2D":
        return lambda x: _vmamba(scan, x)

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return eager_conv_silu(x, weight, bias) if fused is None else fused(x, weight, bias, activation="silu")

    return lambda x: _vim(scan, conv, x, both=op == "BidirectionalMamba")


def _vim(scan: Scan, conv: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensors, *, both: bool) -> Tensor:
    """Mix as mamba-ssm's block does, or as Vim v2 does with a second branch over the flipped sequence, halved."""
    hidden = _norm("Mamba", x)
    batch, length, width = hidden.shape
    # the projection writes (2 D, B L), which is seen as (B, 2 D, L) with unit stride along the sequence
    xz = (x["in_proj.weight"] @ hidden.reshape(-1, width).t()).view(-1, batch, length).transpose(0, 1)
    y = _branch(scan, conv, xz, x, "")
    if both:
        y = (y + _branch(scan, conv, xz.flip(-1), x, "_b").flip(-1)) / 2
    return F.linear(y.transpose(1, 2), x["out_proj.weight"])


def _branch(
    scan: Scan, conv: Callable[[Tensor, Tensor, Tensor], Tensor], xz: Tensor, x: Tensors, suffix: str
) -> Tensor:
    """Convolve, project and scan one direction: (B, 2 D, L) to (B, D, L)."""
    u, z = xz.chunk(2, dim=1)
    batch, inner, length = u.shape
    u = conv(u, x[f"conv1d{suffix}.weight"][:, 0], x[f"conv1d{suffix}.bias"])
    low = F.linear(u.transpose(1, 2).reshape(batch * length, inner), x[f"x_proj{suffix}.weight"])
    weight, A_log = x[f"dt_proj{suffix}.weight"], x[f"A{suffix}_log"]
    rank, state = weight.shape[1], A_log.shape[1]
    low, B, C = low.split([rank, state, state], dim=-1)
    dt = (weight @ low.t()).view(inner, batch, length).transpose(0, 1)
    B, C = (t.view(batch, length, state).transpose(1, 2).contiguous() for t in (B, C))
    A, D, bias = -torch.exp(A_log.float()), x[f"D{suffix}"].float(), x[f"dt_proj{suffix}.bias"].float()
    return scan(u, dt, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)


def _vmamba(scan: Scan, x: Tensors) -> Tensor:
    """Mix a picture as VMamba's v05_noz does: (B, H, W, C) to (B, H, W, C)."""
    u = F.linear(_norm("SS2D", x), x["in_proj.weight"]).permute(0, 3, 1, 2).contiguous()
    height, width = u.shape[2:]
    u = F.silu(F.conv2d(u, x["conv2d.weight"], x["conv2d.bias"], padding=1, groups=u.shape[1]))
    rank, state = x["dt_projs_weight"].shape[2], x["A_logs"].shape[1]
    four = cross_scan_copies(u)
    low = torch.einsum("bkdl,kcd->bkcl", four, x["x_proj_weight"])
    low, B, C = low.split([rank, state, state], dim=2)
    dt = torch.einsum("bkrl,kdr->bkdl", low, x["dt_projs_weight"]).contiguous()
    A, D, bias = -torch.exp(x["A_logs"].float()), x["Ds"].float(), x["dt_projs_bias"].flatten().float()
    y = scan_four(scan, four, dt, A, B.contiguous(), C.contiguous(), D, bias)
    y = cross_merge_copies(y, height, width).transpose(1, 2).unflatten(1, (height, width))
    y = F.layer_norm(y, y.shape[-1:], x["out_norm.weight"], x["out_norm.bias"])
    return F.linear(y, x["out_proj.weight"])
