"""The cases of the single operators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.depthwise_conv1d import depthwise_conv1d
from ..ops.selective_scan import selective_scan
from ..ops.selective_scan_2d import selective_scan_2d
from ..ops.selective_scan_bidirectional import selective_scan_bidirectional
from ..ops.window_attention import window_attention
from .case import DTYPES, Case, Peer, Tensors
from .inputs import Maker, scan_2d_tensors, scan_tensors
from .peers import Peers, conv_peers, flip_peer, picture_peer, scan_peer
from .roofline import Rates, floor_ms
from .shapes import DIRECTIONS, cost

GRID = 2  # windows on a side of each picture


def bound(op: str, sizes: tuple[int, ...], dtype: str, rates: Rates | None) -> float | None:
    """Return the lower bound of a forward pass in milliseconds; None where no bound is known."""
    work = cost(op, sizes, DTYPES[dtype].itemsize)
    return None if work is None or rates is None else floor_ms(work.moved_bytes, work.exponentials, rates)


def scan_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `selective_scan`: everything but the initial state, with softplus."""
    batch, channels, length, state = sizes
    inputs = scan_tensors(Maker(device, DTYPES[dtype]), batch, length, channels, state)

    def call(x: Tensors, impl: Any) -> Tensor:
        return selective_scan(**x, dt_softplus=True, impl=impl)

    others = {} if peers.scan is None else {"mamba_ssm": scan_peer(peers.scan)}
    op = "selective_scan"
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def bidirectional_case(
    sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers
) -> Case:
    """Make the case of `selective_scan_bidirectional`: each direction has its own x, one gate for both."""
    batch, channels, length, state = sizes
    inputs: Tensors = {}
    for seed, suffix in enumerate(("", "_b")):
        made = scan_tensors(Maker(device, DTYPES[dtype], seed), batch, length, channels, state)
        z = made.pop("z")
        inputs |= {name + suffix: x for name, x in made.items()}
        if not suffix:
            inputs["z"] = z

    def call(x: Tensors, impl: Any) -> Tensor:
        return selective_scan_bidirectional(**x, dt_softplus=True, impl=impl)

    others = {} if peers.scan is None else {"mamba_ssm_flip": flip_peer(peers.scan)}
    op = "selective_scan_bidirectional"
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def picture_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `selective_scan_2d` in all four directions."""
    batch, channels, height, width, state = sizes
    inputs = scan_2d_tensors(Maker(device, DTYPES[dtype]), batch, height, width, channels, state, DIRECTIONS)

    def call(x: Tensors, impl: Any) -> Tensor:
        return selective_scan_2d(**x, dt_softplus=True, impl=impl)

    others = {} if peers.scan is None else {"mamba_ssm": picture_peer(peers.scan, height, width)}
    op = "selective_scan_2d"
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def conv_case(sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers) -> Case:
    """Make the case of `depthwise_conv1d`: causal, with bias and SiLU, as in front of a scan."""
    batch, channels, length, taps = sizes
    make = Maker(device, DTYPES[dtype])
    x = make.normal(batch, length, channels)
    inputs = {"x": x, "weight": make.weight(channels, taps, scale=1 / taps), "bias": make.weight(channels)}

    def call(x: Tensors, impl: Any) -> Tensor:
        return depthwise_conv1d(**x, activation="silu", impl=impl)

    op, others = "depthwise_conv1d", conv_peers(peers.conv, taps, DTYPES[dtype])
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def attention_case(
    sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, *, bias: bool
) -> Case:
    """Make the case of `window_attention` with a relative position table, or without one.

    The peers work on windows that are already cut out and on a bias that is already gathered: eager matrix products,
    scaled_dot_product_attention with the bias as its mask, and the same without a bias where ours has none.
    """
    windows, heads, queries, keys, dim = sizes
    window, key_window = math.isqrt(queries), math.isqrt(keys)
    make, side = Maker(device, DTYPES[dtype]), GRID * window
    inputs = {name: make.normal(windows // GRID**2, side, side, heads, dim) for name in "qkv"}
    if bias:
        inputs["bias_table"] = make.normal((window + key_window - 1) ** 2, heads)

    def call(x: Tensors, impl: Any) -> Tensor:
        return window_attention(**x, window=window, key_window=key_window, impl=impl)

    op = "window_attention" if bias else "window_attention_nobias"
    others = _attention_peers(window, key_window, bias)
    return Case(op, sizes, dtype, inputs, call, bound(op, sizes, dtype, rates), peers=others)


def _attention_peers(window: int, key_window: int, bias: bool) -> dict[str, Peer]:
    def prepare(x: Tensors) -> Tensors:
        cut = {"q": _cut(x["q"], window, window)}
        cut |= {name: _cut(x[name], window, key_window) for name in "kv"}
        return cut | {"bias_table": _gather_bias(x["bias_table"], window, key_window)} if bias else cut

    def restore(y: Tensor) -> Tensor:
        blocks = y.unflatten(0, (-1, GRID, GRID)).unflatten(-2, (window, window))
        return blocks.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)

    def fused(x: Tensors) -> Tensor:
        return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], attn_mask=x.get("bias_table"))

    def eager(x: Tensors) -> Tensor:
        scores = (x["q"] * x["q"].shape[-1] ** -0.5) @ x["k"].mT
        return (scores + x["bias_table"]).softmax(-1) @ x["v"]

    if not bias:
        return {"torch_sdpa_nobias": Peer(fused, prepare, restore)}
    return {"torch_eager": Peer(eager, prepare, restore), "torch_sdpa": Peer(fused, prepare, restore)}


def _cut(x: Tensor, window: int, key_window: int) -> Tensor:
    """Cut (B, H, W, heads, d) into windows, (windows, heads, key_window^2, d); pixels outside are zeros."""
    heads, reach = x.shape[-2], (key_window - window) // 2
    planes = F.pad(x.flatten(3).permute(0, 3, 1, 2), (reach,) * 4)
    cut = planes.unfold(2, key_window, window).unfold(3, key_window, window)  # (B, heads * d, rows, columns, k, k)
    return cut.permute(0, 2, 3, 1, 4, 5).unflatten(3, (heads, -1)).flatten(0, 2).flatten(-2).transpose(-1, -2)


def _gather_bias(table: Tensor, window: int, key_window: int) -> Tensor:
    """Gather the table to (heads, queries, keys), as the documentation of `window_attention` orders its rows."""
    place = torch.arange(window, device=table.device)
    key_place = torch.arange(key_window, device=table.device) - (key_window - window) // 2
    offset = place[:, None] - key_place if window == key_window else key_place - place[:, None]
    offset = offset + (window + key_window) // 2 - 1
    width = window + key_window - 1
    rows = offset[:, None, :, None] * width + offset[None, :, None, :]  # (qy, qx, ky, kx)
    return table[rows.flatten(0, 1).flatten(1)].permute(2, 0, 1)
