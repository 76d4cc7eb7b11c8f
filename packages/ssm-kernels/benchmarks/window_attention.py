"""Window attention at the shapes of super-resolution and classification models.

    PYTHONPATH=packages/ssm-kernels/src python packages/ssm-kernels/benchmarks/window_attention.py --out window.json

Shapes are (windows, heads, queries, keys, head dim). The peers run too, on windows that are already cut out: matrix
products and a softmax (torch_eager), scaled_dot_product_attention with the bias as mask (torch_sdpa) and without a
bias (torch_sdpa_nobias). Rows of source "table": the same three on one H100 80GB (torch 2.11, bfloat16).
"""

import math
import sys
from collections.abc import Iterator

import torch
from ssm_kernels import window_attention
from ssm_kernels.bench import Case, Row, floor_ms, main
from torch import Tensor
from torch.nn import functional as F

SHAPES = {  # model: (windows, heads, queries, keys, head dim), eager, SDPA with bias, SDPA without: forward, backward
    "HAT-light": ((128, 6, 256, 256, 10), (0.351, 0.489), (1.067, 1.032), (0.093, 0.211)),
    "HAT": ((128, 6, 256, 256, 30), (0.365, 0.508), (1.181, 1.162), (0.120, 0.264)),
    "OCAB": ((128, 6, 256, 576, 30), (0.906, 1.217), (2.465, 2.433), (0.235, 0.475)),
    "MambaVision w14": ((512, 8, 196, 196, 40), (1.412, 1.909), (1.167, 3.159), (0.226, 0.741)),
}
QUICK = ("HAT-light", "OCAB")
CPU_SHAPES = ((16, 6, 256, 256, 10), (16, 6, 256, 576, 9))
CPU_QUICK_SHAPES = ((4, 2, 16, 36, 5),)
PEERS = ("torch_eager", "torch_sdpa", "torch_sdpa_nobias")
GRID = 2  # windows on a side of each picture


def floor(windows: int, heads: int, queries: int, keys: int, dim: int, item: int) -> float:
    """q, k, v and the result once; one exponential per pair of query and key."""
    return floor_ms(4 * windows * heads * queries * dim * item, windows * heads * queries * keys)


def make_case(shape: tuple[int, ...], device: torch.device, dtype: str, bias: bool) -> Case:
    windows, heads, queries, keys, dim = shape
    window, key_window = math.isqrt(queries), math.isqrt(keys)
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, kind)

    side = GRID * window
    inputs = {name: normal(windows // GRID**2, side, side, heads, dim) for name in "qkv"}
    if bias:
        inputs["bias_table"] = normal((window + key_window - 1) ** 2, heads)

    def call(x: dict[str, Tensor], impl: str) -> Tensor:
        return window_attention(**x, window=window, key_window=key_window, impl=impl)

    cut = {"q": normal(windows, heads, queries, dim), "k": normal(windows, heads, keys, dim)}
    cut["v"] = normal(windows, heads, keys, dim)
    bound = floor(*shape, item=kind.itemsize)
    peers = {"torch_sdpa_nobias": (cut, lambda x: F.scaled_dot_product_attention(x["q"], x["k"], x["v"]))}
    if not bias:
        return Case("window_attention_nobias", shape, dtype, inputs, call, bound, triton=False, peers=peers)
    masked = {**cut, "bias": normal(heads, queries, keys)}
    peers["torch_eager"] = (masked, lambda x: ((x["q"] * dim**-0.5) @ x["k"].mT + x["bias"]).softmax(-1) @ x["v"])
    peers["torch_sdpa"] = (
        masked,
        lambda x: F.scaled_dot_product_attention(x["q"], x["k"], x["v"], attn_mask=x["bias"]),
    )
    return Case("window_attention", shape, dtype, inputs, call, bound, triton=False, peers=peers)


def cases(device: torch.device, dtype: str, quick: bool) -> Iterator[Case]:
    if device.type == "cuda":
        shapes = [SHAPES[name][0] for name in SHAPES if not quick or name in QUICK]
    else:
        shapes = list(CPU_QUICK_SHAPES if quick else CPU_SHAPES)
    for shape in shapes:
        yield make_case(shape, device, dtype, bias=True)
        yield make_case(shape, device, dtype, bias=False)


def table() -> list[Row]:
    rows = []
    for shape, *times in SHAPES.values():
        for impl, (forward, backward) in zip(PEERS, times, strict=True):
            kept = {"op": "window_attention", "shape": shape, "dtype": "bfloat16", "impl": impl, "source": "table"}
            rows.append(Row(**kept, fwd_ms=forward, bwd_ms=backward, floor_ms=floor(*shape, item=2)))
    return rows


if __name__ == "__main__":
    sys.exit(main(__doc__, cases, table()))
