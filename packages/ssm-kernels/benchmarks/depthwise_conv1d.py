"""Depthwise convolution in front of a selective scan, at the shapes of vision and language models.

    PYTHONPATH=packages/ssm-kernels/src python packages/ssm-kernels/benchmarks/depthwise_conv1d.py --out conv.json

Shapes are (batch, channels, length, taps); bias and SiLU as in Mamba. Peers run in their own layout (batch, channels,
length), and transposing to and from it is not counted: torch_eager is PyTorch's conv1d with padding, cut and SiLU,
causal_conv1d the CUDA function of that package, where it is installed.
"""

import importlib.util
import sys
from collections.abc import Iterator

import torch
from ssm_kernels import depthwise_conv1d
from ssm_kernels.bench import Case, Peer, Row, floor_ms, main
from torch import Tensor
from torch.nn import functional as F

SHAPES = {
    "Vim-T 224": (128, 384, 197, 4),
    "Vim-T 1248": (8, 384, 6085, 4),
    "muse": (16, 2048, 333, 4),
    "diffusion V2": (64, 512, 410, 4),
    "LM": (8, 2048, 2048, 4),
    "long": (1, 2048, 65536, 4),
    "SR": (8, 240, 4096, 4),
}
QUICK = ("Vim-T 224",)
CPU_SHAPES = ((2, 192, 1024, 4), (8, 240, 4096, 4))
CPU_QUICK_SHAPES = ((2, 6, 33, 4),)


def call(x: dict[str, Tensor], impl: str) -> Tensor:
    return depthwise_conv1d(**x, activation="silu", impl=impl)


def eager(x: dict[str, Tensor]) -> Tensor:
    (channels, _, taps), length = x["weight"].shape, x["x"].shape[2]
    return F.silu(F.conv1d(x["x"], x["weight"], x["bias"], padding=taps - 1, groups=channels)[..., :length])


def cuda(x: dict[str, Tensor]) -> Tensor:
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(x["x"], x["weight"], x["bias"], activation="silu")


def peers(device: torch.device, kind: torch.dtype, taps: int) -> dict[str, Peer]:
    def first(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**x, "x": x["x"].mT}

    def first_with_axis(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**first(x), "weight": x["weight"][:, None]}

    same = {"weight": kind, "bias": kind}
    found = {"torch_eager": Peer(eager, first_with_axis, lambda y: y.mT, same)}
    if device.type == "cuda" and taps <= 4 and importlib.util.find_spec("causal_conv1d"):
        found["causal_conv1d"] = Peer(cuda, first, lambda y: y.mT, same)
    return found


def cases(device: torch.device, dtype: str, quick: bool) -> Iterator[Case]:
    if device.type == "cuda":
        shapes = [SHAPES[name] for name in SHAPES if not quick or name in QUICK]
    else:
        shapes = list(CPU_QUICK_SHAPES if quick else CPU_SHAPES)
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        batch, channels, length, taps = shape
        x = torch.randn(batch, length, channels, generator=generator).to(device, kind)
        weight = (torch.randn(channels, taps, generator=generator) / taps).to(device)
        inputs = {"x": x, "weight": weight, "bias": torch.randn(channels, generator=generator).to(device)}
        bound = floor_ms(2 * x.numel() * kind.itemsize, x.numel())
        yield Case("depthwise_conv1d", shape, dtype, inputs, call, bound, peers=peers(device, kind, taps))


def table() -> list[Row]:
    return []


if __name__ == "__main__":
    sys.exit(main(__doc__, cases, table()))
