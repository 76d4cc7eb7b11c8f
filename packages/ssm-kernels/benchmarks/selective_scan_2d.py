"""Four-direction scan of pictures (SS2D) at the shapes of super-resolution and classification models.

    PYTHONPATH=packages/ssm-kernels/src python packages/ssm-kernels/benchmarks/selective_scan_2d.py --out scan2d.json

Shapes are (batch, channels, height, width, state). Rows of source "table": VMamba's own pipeline, which is a Triton
cross-scan, the CUDA scan "oflex" and a Triton merge, on one H100 80GB (torch 2.11, bfloat16).
"""

import sys
from collections.abc import Iterator

import torch
from ssm_kernels import selective_scan_2d
from ssm_kernels.bench import Case, Row, floor_ms, main
from ssm_kernels.testing import scan_2d_inputs

SHAPES = {  # model: (batch, channels, height, width, state), forward and backward of VMamba's pipeline
    "Contrast light": ((8, 60, 64, 64, 1), (0.130, 0.309)),
    "Contrast-S": ((8, 180, 64, 64, 1), (0.274, 0.446)),
    "MambaIR": ((4, 360, 64, 64, 16), (0.575, 1.854)),
    "VMamba-T stage 1": ((128, 96, 56, 56, 1), (2.124, 3.492)),
}
QUICK = ("Contrast light", "MambaIR")
CPU_SHAPES = ((1, 60, 32, 32, 1), (1, 48, 16, 16, 16))
CPU_QUICK_SHAPES = ((1, 6, 5, 7, 2),)
DIRECTIONS = 4


def floor(batch: int, channels: int, height: int, width: int, state: int, item: int) -> float:
    """x and y once, dt once a direction, B and C once a direction; one exponential per direction, state and pixel."""
    pixels = batch * height * width
    moved = pixels * channels * (2 + DIRECTIONS) + 2 * DIRECTIONS * pixels * state
    return floor_ms(moved * item, DIRECTIONS * pixels * channels * state)


def cases(device: torch.device, dtype: str, quick: bool) -> Iterator[Case]:
    if device.type == "cuda":
        shapes = [SHAPES[name][0] for name in SHAPES if not quick or name in QUICK]
    else:
        shapes = list(CPU_QUICK_SHAPES if quick else CPU_SHAPES)
    kind = getattr(torch, dtype)
    for shape in shapes:
        batch, channels, height, width, state = shape
        inputs = scan_2d_inputs(batch, height, width, channels, state, dtype=kind, device=device).kwargs()

        def call(x: dict[str, torch.Tensor], impl: str) -> torch.Tensor:
            return selective_scan_2d(**x, dt_softplus=True, impl=impl)

        yield Case("selective_scan_2d", shape, dtype, inputs, call, floor(*shape, item=kind.itemsize))


def table() -> list[Row]:
    kept = {"op": "selective_scan_2d", "dtype": "bfloat16", "impl": "vmamba_oflex", "source": "table"}
    return [
        Row(**kept, shape=shape, fwd_ms=forward, bwd_ms=backward, floor_ms=floor(*shape, item=2))
        for shape, (forward, backward) in SHAPES.values()
    ]


if __name__ == "__main__":
    sys.exit(main(__doc__, cases, table()))
