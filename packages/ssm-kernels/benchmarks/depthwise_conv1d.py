"""Depthwise convolution in front of a selective scan, at the shapes of vision and language models.

    PYTHONPATH=packages/ssm-kernels/src python packages/ssm-kernels/benchmarks/depthwise_conv1d.py --out conv.json

Shapes are (batch, channels, length, taps); bias and SiLU as in Mamba. The peer torch_eager is PyTorch's conv1d with
padding, cut and SiLU in its own layout (batch, channels, length); transposing to and from it is not counted.
"""

import sys
from collections.abc import Iterator

import torch
from ssm_kernels import depthwise_conv1d
from ssm_kernels.bench import Case, Row, floor_ms, main
from torch import Tensor
from torch.nn import functional as F

SHAPES = {
    "Vim-T 224": (128, 384, 197, 4),
    "muse": (16, 2048, 333, 4),
    "LM": (8, 2048, 2048, 4),
}
QUICK = ("Vim-T 224",)
CPU_SHAPES = ((2, 192, 1024, 4), (8, 240, 4096, 4))
CPU_QUICK_SHAPES = ((2, 6, 33, 4),)


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

        def call(x: dict[str, Tensor], impl: str) -> Tensor:
            return depthwise_conv1d(**x, activation="silu", impl=impl)

        def eager(x: dict[str, Tensor], channels: int = channels, length: int = length, taps: int = taps) -> Tensor:
            return F.silu(F.conv1d(x["x"], x["weight"], x["bias"], padding=taps - 1, groups=channels)[..., :length])

        native = {"x": x.mT.contiguous(), "weight": weight[:, None].to(kind), "bias": inputs["bias"].to(kind)}
        bound = floor_ms(2 * x.numel() * kind.itemsize, x.numel())
        peers = {"torch_eager": (native, eager)}
        yield Case("depthwise_conv1d", shape, dtype, inputs, call, bound, triton=False, peers=peers)


def table() -> list[Row]:
    return []


if __name__ == "__main__":
    sys.exit(main(__doc__, cases, table()))
