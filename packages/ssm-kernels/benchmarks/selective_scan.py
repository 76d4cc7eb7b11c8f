"""Selective scan and its bidirectional form at the shapes of vision and language models.

    PYTHONPATH=packages/ssm-kernels/src python packages/ssm-kernels/benchmarks/selective_scan.py --out scan.json

Shapes are (batch, channels, length, state). Rows of source "table": mamba-ssm 2.3.2 on one H100 80GB (torch 2.11,
bfloat16), and what a bidirectional scan costs there by flipping the inputs and the result.
"""

import sys
from collections.abc import Iterator

import torch
from ssm_kernels import selective_scan, selective_scan_bidirectional
from ssm_kernels.bench import Case, Row, floor_ms, main
from ssm_kernels.testing import scan_inputs

SHAPES = {  # model: (batch, channels, length, state), mamba-ssm forward and backward, by flips forward and backward
    "Vim-T 224": ((128, 384, 197, 16), (0.396, 1.213), (0.933, 2.610)),
    "Vim-T 1248": ((8, 384, 6085, 16), (0.579, 2.388), (1.402, 5.129)),
    "muse": ((16, 2048, 333, 16), (0.481, 1.179), (1.114, 2.563)),
    "diffusion V2": ((64, 512, 410, 16), (0.488, 1.260), (1.161, 2.757)),
    "LM": ((8, 2048, 2048, 16), (0.595, 2.439), (1.609, 5.407)),
    "long": ((1, 2048, 65536, 16), (2.995, 11.451), None),
    "SR": ((8, 240, 4096, 1), (0.053, 0.154), (0.216, 0.409)),
}
QUICK = ("Vim-T 224", "SR")
CPU_SHAPES = ((2, 192, 1024, 16), (2, 96, 512, 1))
CPU_QUICK_SHAPES = ((1, 8, 33, 4),)


def floor(batch: int, channels: int, length: int, state: int, directions: int, item: int) -> float:
    """x, dt, z and y once, B and C once a direction; one exponential per state and step."""
    steps = batch * length
    moved = steps * channels * (2 + 2 * directions) + 2 * directions * steps * state
    return floor_ms(moved * item, directions * steps * channels * state)


def forward_case(shape: tuple[int, ...], device: torch.device, dtype: str) -> Case:
    batch, channels, length, state = shape
    kind = getattr(torch, dtype)
    made = scan_inputs(batch, length, channels, state, dtype=kind, device=device).kwargs()
    inputs = {name: x for name, x in made.items() if x is not None and name != "initial_state"}

    def call(x: dict[str, torch.Tensor], impl: str) -> torch.Tensor:
        return selective_scan(**x, dt_softplus=True, impl=impl)

    return Case("selective_scan", shape, dtype, inputs, call, floor(*shape, directions=1, item=kind.itemsize))


def bidirectional_case(shape: tuple[int, ...], device: torch.device, dtype: str) -> Case:
    batch, channels, length, state = shape
    kind = getattr(torch, dtype)
    inputs = {}
    for seed, suffix in enumerate(("", "_b")):
        made = scan_inputs(batch, length, channels, state, dtype=kind, device=device, seed=seed)
        for name in ("x", "dt", "A", "B", "C", "D", "dt_bias"):
            inputs[name + suffix] = getattr(made, name)
    inputs["z"] = made.z

    def call(x: dict[str, torch.Tensor], impl: str) -> torch.Tensor:
        return selective_scan_bidirectional(**x, dt_softplus=True, impl=impl)

    bound = floor(*shape, directions=2, item=kind.itemsize)
    return Case("selective_scan_bidirectional", shape, dtype, inputs, call, bound)


def cases(device: torch.device, dtype: str, quick: bool) -> Iterator[Case]:
    if device.type == "cuda":
        chosen = [SHAPES[name] for name in SHAPES if not quick or name in QUICK]
    else:
        chosen = [(shape, None, True) for shape in (CPU_QUICK_SHAPES if quick else CPU_SHAPES)]
    for shape, _, flips in chosen:
        yield forward_case(shape, device, dtype)
        if flips:
            yield bidirectional_case(shape, device, dtype)


def table() -> list[Row]:
    rows = []
    for shape, one, two in SHAPES.values():
        for op, impl, directions, times in (
            ("selective_scan", "mamba_ssm", 1, one),
            ("selective_scan_bidirectional", "mamba_ssm_flip", 2, two),
        ):
            if times:
                bound = floor(*shape, directions=directions, item=2)
                kept = {"op": op, "shape": shape, "dtype": "bfloat16", "impl": impl, "source": "table"}
                rows.append(Row(**kept, fwd_ms=times[0], bwd_ms=times[1], floor_ms=bound))
    return rows


if __name__ == "__main__":
    sys.exit(main(__doc__, cases, table()))
