"""One token of a Mamba layer: the convolution's step and the scan's, at the sizes of language models.

    PYTHONPATH=packages/ssm-kernels/src python packages/ssm-kernels/benchmarks/steps.py --out steps.json

Shapes are (batch, channels, state) and (batch, channels, taps). At small batches the time is that of the launch, which
a CUDA graph hides.
"""

import sys
from collections.abc import Iterator

import torch
from ssm_kernels import depthwise_conv1d_step, selective_scan_step
from ssm_kernels.bench import Case, Row, floor_ms, main
from ssm_kernels.testing import scan_inputs
from torch import Tensor

SIZES = {"one": (1, 2048), "batch": (64, 2048), "large batch": (256, 5120)}
STATE, TAPS = 16, 4
QUICK = ("batch",)
CPU_SIZES = ((8, 2048),)
CPU_QUICK_SIZES = ((2, 6),)


def scan(x: dict[str, Tensor], impl: str) -> Tensor:
    return selective_scan_step(**x, dt_softplus=True, impl=impl)[0]


def conv(x: dict[str, Tensor], impl: str) -> Tensor:
    return depthwise_conv1d_step(**x, activation="silu", impl=impl)[0]


def scan_case(batch: int, channels: int, device: torch.device, dtype: str) -> Case:
    kind = getattr(torch, dtype)
    made = scan_inputs(batch, 1, channels, STATE, dtype=kind, device=device).kwargs()
    state = made.pop("initial_state")
    inputs = {name: x[:, 0] if x.dim() == 3 else x for name, x in made.items()} | {"state": state}
    moved = 2 * state.numel() * 4 + (4 * batch * channels + 2 * batch * STATE) * kind.itemsize + channels * STATE * 4
    shape = (batch, channels, STATE)
    return Case("selective_scan_step", shape, dtype, inputs, scan, floor_ms(moved, state.numel()))


def conv_case(batch: int, channels: int, device: torch.device, dtype: str) -> Case:
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    inputs = {"x": normal(batch, channels).to(kind), "weight": normal(channels, TAPS), "bias": normal(channels)}
    inputs["state"] = normal(batch, channels, TAPS - 1).to(kind)
    moved = 2 * TAPS * batch * channels * kind.itemsize + (TAPS + 1) * channels * 4
    shape = (batch, channels, TAPS)
    return Case("depthwise_conv1d_step", shape, dtype, inputs, conv, floor_ms(moved))


def cases(device: torch.device, dtype: str, quick: bool) -> Iterator[Case]:
    if device.type == "cuda":
        sizes = [SIZES[name] for name in SIZES if not quick or name in QUICK]
    else:
        sizes = list(CPU_QUICK_SIZES if quick else CPU_SIZES)
    for size in sizes:
        yield scan_case(*size, device, dtype)
        yield conv_case(*size, device, dtype)


def table() -> list[Row]:
    return []


if __name__ == "__main__":
    sys.exit(main(__doc__, cases, table()))
