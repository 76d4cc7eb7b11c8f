"""Other people's kernels, called the way their own packages call them: layout (B, D, L), flips, copies and all.

B batch, L length, D channels, N state, K directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.selective_scan_2d.cross import DIRECTIONS, to_sequence
from .case import Peer, Tensors

Scan = Callable[..., Tensor]  # mamba_ssm's selective_scan_fn
Conv = Callable[..., Tensor]  # causal_conv1d's causal_conv1d_fn
Ssd = Callable[..., Tensor]  # mamba_ssm's mamba_chunk_scan_combined
Norm = Callable[..., tuple[Tensor, ...]]  # mamba_ssm's layer_norm_fn
Step = Callable[..., Tensor]  # mamba_ssm's selective_state_update, causal_conv1d's causal_conv1d_update


@dataclass(frozen=True)
class Peers:
    """The functions of other packages that can be called here, and why the others cannot."""

    scan: Scan | None = None
    conv: Conv | None = None
    scan_step: Step | None = None
    conv_step: Step | None = None
    ssd: Ssd | None = None
    norm: Norm | None = None
    missing: dict[str, str] = field(default_factory=dict)


def find_peers(device: torch.device) -> Peers:
    """Look for the functions of mamba_ssm and causal_conv1d, each by itself; they run on NVIDIA GPUs only."""
    if device.type != "cuda":
        return Peers(missing=dict.fromkeys(("mamba_ssm", "causal_conv1d"), "runs on NVIDIA GPUs only"))
    scan = conv = scan_step = conv_step = ssd = norm = None
    missing = {}
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as scan
    except ImportError as error:
        missing["mamba_ssm's selective_scan_fn"] = str(error)
    try:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update as scan_step
    except ImportError as error:
        missing["mamba_ssm's selective_state_update"] = str(error)
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as ssd
    except ImportError as error:
        missing["mamba_ssm's mamba_chunk_scan_combined"] = str(error)
    try:
        from mamba_ssm.ops.triton.layer_norm import layer_norm_fn as norm
    except ImportError as error:
        missing["mamba_ssm's layer_norm_fn"] = str(error)
    try:
        from causal_conv1d import causal_conv1d_fn as conv
        from causal_conv1d import causal_conv1d_update as conv_step
    except ImportError as error:
        missing["causal_conv1d"] = str(error)
    return Peers(scan, conv, scan_step, conv_step, ssd, norm, missing)


def _channels_first(x: Tensors) -> Tensors:
    """Sequences (B, L, D) to (B, D, L); parameters stay."""
    return {name: t.transpose(1, 2) if t.dim() == 3 else t for name, t in x.items()}


def _channels_last(y: Tensor) -> Tensor:
    return y.transpose(1, 2)


def scan_peer(scan: Scan) -> Peer:
    """Give mamba_ssm's scan in its own layout; neither its inputs nor its output are transposed while it is timed."""

    def call(x: Tensors) -> Tensor:
        return _gated(scan, x, x["z"])

    return Peer(call, _channels_first, _channels_last)


def _gated(scan: Scan, x: Tensors, z: Tensor, suffix: str = "") -> Tensor:
    u, dt, A, B, C, D, bias = (x[name + suffix] for name in ("x", "dt", "A", "B", "C", "D", "dt_bias"))
    return scan(u, dt, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)


def flip_peer(scan: Scan) -> Peer:
    """Give Vision Mamba's way: flip what the second direction reads, gate included, scan, flip back, add."""

    def call(x: Tensors) -> Tensor:
        forward = _gated(scan, x, x["z"])
        flipped = {
            name: t.flip(-1) if t.dim() == 3 else t for name, t in x.items() if name.endswith("_b") or name == "z"
        }
        return forward + _gated(scan, flipped, flipped["z"], "_b").flip(-1)

    return Peer(call, _channels_first, _channels_last)


def cross_scan_copies(x: Tensor) -> Tensor:
    """Copy pictures (B, D, H, W) into four sequences, (B, 4, D, L), as VMamba and MambaIR do in PyTorch."""
    rows = x.flatten(2)
    two = torch.stack([rows, x.transpose(2, 3).flatten(2)], dim=1)
    return torch.cat([two, two.flip(-1)], dim=1)


def cross_merge_copies(y: Tensor, height: int, width: int) -> Tensor:
    """Add four sequences (B, 4, D, L) up, each put back to its pixels: (B, D, L)."""
    two = y[:, :2] + y[:, 2:].flip(-1)
    columns = two[:, 1].unflatten(-1, (width, height)).transpose(2, 3).flatten(2)
    return two[:, 0] + columns


def scan_four(scan: Scan, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """Run mamba_ssm's scan over four sequences at once: u, dt (B, 4, D, L), A (4 D, N), B, C (B, 4, N, L)."""
    y = scan(u.flatten(1, 2), dt.flatten(1, 2), A, B, C, D=D, z=None, delta_bias=bias, delta_softplus=True)
    return y.view(u.shape)


def picture_peer(scan: Scan, height: int, width: int) -> Peer:
    """Give MambaIR's way to scan a picture: copies in four orders, one scan with four groups, flips back, sum.

    dt, B and C come in scan order, since that is how a model makes them there: reordering them is not timed.
    """

    def prepare(x: Tensors) -> Tensors:
        own = {name: t.flatten(0, 1) for name, t in x.items() if name in ("A", "D", "dt_bias")}
        own["x"] = x["x"].permute(0, 3, 1, 2)
        for name in ("dt", "B", "C"):
            sequences = [to_sequence(x[name][:, :, :, k], k).transpose(1, 2) for k in range(len(DIRECTIONS))]
            own[name] = torch.stack(sequences, dim=1)
        return own

    def call(x: Tensors) -> Tensor:
        u = cross_scan_copies(x["x"])
        y = scan_four(scan, u, x["dt"], x["A"], x["B"], x["C"], x["D"], x["dt_bias"])
        return cross_merge_copies(y, height, width)

    def restore(y: Tensor) -> Tensor:
        return y.unflatten(-1, (height, width)).permute(0, 2, 3, 1)

    return Peer(call, prepare, restore)


def conv_peers(conv: Conv | None, taps: int, kind: torch.dtype) -> dict[str, Peer]:
    """Give PyTorch's convolution with padding, cut and SiLU, and causal_conv1d where it is, both on (B, D, L)."""

    def eager(x: Tensors) -> Tensor:
        return eager_conv_silu(x["x"], x["weight"], x["bias"])

    same = {"weight": kind, "bias": kind}
    peers = {"torch_eager": Peer(eager, _channels_first, _channels_last, same)}
    if conv is not None and taps <= 4:
        fused = conv

        def call(x: Tensors) -> Tensor:
            return fused(x["x"], x["weight"], x["bias"], activation="silu")

        peers["causal_conv1d"] = Peer(call, _channels_first, _channels_last, same)
    return peers


def eager_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (B, D, L) causally with (D, taps) and apply SiLU, as PyTorch has it."""
    length, taps = x.shape[-1], weight.shape[-1]
    padded = F.conv1d(x, weight.unsqueeze(1), bias, padding=taps - 1, groups=weight.shape[0])
    return F.silu(padded[..., :length])
