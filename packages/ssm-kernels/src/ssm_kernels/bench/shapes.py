"""Which sizes are timed, what other people's kernels took there, and the least work of each. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

DIRECTIONS = 4  # of selective_scan_2d


@dataclass(frozen=True)
class Shape:
    """One size of an operator.

    Attributes:
        name: The model that has it.
        sizes: In the order that `LEGEND` gives for the operator.
        table: Milliseconds, forward and backward, of other implementations, measured once on one H100 80GB (torch
            2.11, bfloat16): mamba-ssm 2.3.2, VMamba's pipeline (cross-scan, scan "oflex" and merge), PyTorch.
        quick: Among the few that a quick run takes.
    """

    name: str
    sizes: tuple[int, ...]
    table: dict[str, tuple[float, float]] = field(default_factory=dict)
    quick: bool = False


@dataclass(frozen=True)
class Cost:
    """The least that a forward pass must do: move these bytes, evaluate so many exponentials."""

    moved_bytes: float
    exponentials: float


LEGEND = {
    "selective_scan": "batch, channels, length, state",
    "selective_scan_bidirectional": "batch, channels, length, state",
    "selective_scan_2d": "batch, channels, height, width, state",
    "ssd": "batch, length, heads, head dim, state",
    "depthwise_conv1d": "batch, channels, length, taps",
    "layer_norm": "batch, positions, channels",
    "add_rms_norm": "batch, positions, channels",
    "linear_scan": "batch, channels, length, modes",
    "linear_scan_shared": "batch, channels, length, modes",
    "selective_scan_step": "batch, channels, state",
    "ssd_step": "batch, heads, head dim, state",
    "depthwise_conv1d_step": "batch, channels, taps",
    "window_attention": "windows, heads, queries, keys, head dim",
    "window_attention_nobias": "windows, heads, queries, keys, head dim",
    "sliding_window_attention": "batch, heads, height (1 is a sequence), width, window, head dim",
    "Mamba": "batch, inner channels, length, state",
    "BidirectionalMamba": "batch, inner channels, length, state",
    "SS2D": "batch, inner channels, height, width, state",
}

VIM_224, VIM_1248 = (128, 384, 197, 16), (8, 384, 6085, 16)
MUSE, DIFFUSION, LM = (16, 2048, 333, 16), (64, 512, 410, 16), (8, 2048, 2048, 16)
LONG, SR = (1, 2048, 65536, 16), (8, 240, 4096, 1)
CONTRAST, CONTRAST_S = (8, 60, 64, 64, 1), (8, 180, 64, 64, 1)
SSD_LM, SSD_VISION = ((8, 2048, 64, 64, 128), (1, 16384, 64, 64, 128)), ((128, 197, 6, 64, 64), (32, 1024, 12, 64, 64))
MAMBA_IR, VMAMBA = (4, 360, 64, 64, 16), (128, 96, 56, 56, 1)

GPU_SHAPES: dict[str, tuple[Shape, ...]] = {
    "selective_scan": (
        Shape("Vim-T 224", VIM_224, {"mamba_ssm": (0.396, 1.213)}, quick=True),
        Shape("Vim-T 1248", VIM_1248, {"mamba_ssm": (0.579, 2.388)}),
        Shape("muse", MUSE, {"mamba_ssm": (0.481, 1.179)}),
        Shape("diffusion V2", DIFFUSION, {"mamba_ssm": (0.488, 1.260)}),
        Shape("LM", LM, {"mamba_ssm": (0.595, 2.439)}),
        Shape("long", LONG, {"mamba_ssm": (2.995, 11.451)}),
        Shape("SR", SR, {"mamba_ssm": (0.053, 0.154)}, quick=True),
    ),
    "selective_scan_bidirectional": (
        Shape("Vim-T 224", VIM_224, {"mamba_ssm_flip": (0.933, 2.610)}, quick=True),
        Shape("Vim-T 1248", VIM_1248, {"mamba_ssm_flip": (1.402, 5.129)}),
        Shape("muse", MUSE, {"mamba_ssm_flip": (1.114, 2.563)}),
        Shape("diffusion V2", DIFFUSION, {"mamba_ssm_flip": (1.161, 2.757)}),
        Shape("LM", LM, {"mamba_ssm_flip": (1.609, 5.407)}),
        Shape("SR", SR, {"mamba_ssm_flip": (0.216, 0.409)}, quick=True),
    ),
    "selective_scan_2d": (
        Shape("Contrast light", CONTRAST, {"vmamba_oflex": (0.130, 0.309)}, quick=True),
        Shape("Contrast-S", CONTRAST_S, {"vmamba_oflex": (0.274, 0.446)}),
        Shape("MambaIR", MAMBA_IR, {"vmamba_oflex": (0.575, 1.854)}, quick=True),
        Shape("VMamba-T stage 1", VMAMBA, {"vmamba_oflex": (2.124, 3.492)}),
    ),
    "ssd": (
        Shape("LM", SSD_LM[0], {"mamba_ssm": (0.608, 3.189)}),
        Shape("long", SSD_LM[1], {"mamba_ssm": (0.793, 3.046)}),
        Shape("vision 224", SSD_VISION[0], {"mamba_ssm": (0.479, 3.534)}, quick=True),
        Shape("vision 1024 tokens", SSD_VISION[1], {"mamba_ssm": (0.494, 3.745)}),
    ),
    "depthwise_conv1d": (
        Shape("Vim-T 224", (*VIM_224[:3], 4), quick=True),
        Shape("Vim-T 1248", (*VIM_1248[:3], 4)),
        Shape("muse", (*MUSE[:3], 4)),
        Shape("diffusion V2", (*DIFFUSION[:3], 4)),
        Shape("LM", (*LM[:3], 4)),
        Shape("long", (*LONG[:3], 4)),
        Shape("SR", (*SR[:3], 4)),
    ),
    "layer_norm": (
        Shape("Contrast light", (16, 4096, 48), quick=True),
        Shape("Contrast light, 180 x 320", (1, 57600, 48)),
        Shape("DeiT-S", (256, 197, 384)),
    ),
    "add_rms_norm": (Shape("Vim-T 224", (128, 197, 192), quick=True), Shape("Vim-T 1248", (8, 6085, 192))),
    "linear_scan": (
        Shape("Vim-T 224", (*VIM_224[:3], 32), quick=True),
        Shape("SR", (*SR[:3], 32)),
        Shape("LM", (*LM[:3], 32)),
        Shape("long", (1, 512, 65536, 32)),
    ),
    "linear_scan_shared": (
        Shape("Vim-T 224", (*VIM_224[:3], 192), quick=True),
        Shape("SR", (*SR[:3], 120)),
        Shape("long", (1, 512, 65536, 256)),
    ),
    "selective_scan_step": (
        Shape("one", (1, 2048, 16)),
        Shape("batch", (64, 2048, 16), quick=True),
        Shape("large batch", (256, 5120, 16)),
    ),
    "ssd_step": (
        Shape("one", (1, 64, 64, 128)),
        Shape("batch", (64, 64, 64, 128), quick=True),
    ),
    "depthwise_conv1d_step": (
        Shape("one", (1, 2048, 4)),
        Shape("batch", (64, 2048, 4), quick=True),
        Shape("large batch", (256, 5120, 4)),
    ),
    "window_attention": (
        Shape(
            "HAT-light",
            (128, 6, 256, 256, 10),
            {"torch_eager": (0.351, 0.489), "torch_sdpa": (1.067, 1.032)},
            quick=True,
        ),
        Shape("HAT", (128, 6, 256, 256, 30), {"torch_eager": (0.365, 0.508), "torch_sdpa": (1.181, 1.162)}),
        Shape(
            "OCAB", (128, 6, 256, 576, 30), {"torch_eager": (0.906, 1.217), "torch_sdpa": (2.465, 2.433)}, quick=True
        ),
        Shape("MambaVision w14", (512, 8, 196, 196, 40), {"torch_eager": (1.412, 1.909), "torch_sdpa": (1.167, 3.159)}),
    ),
    "window_attention_nobias": (
        Shape("HAT-light", (128, 6, 256, 256, 10), {"torch_sdpa_nobias": (0.093, 0.211)}, quick=True),
        Shape("HAT", (128, 6, 256, 256, 30), {"torch_sdpa_nobias": (0.120, 0.264)}),
        Shape("OCAB", (128, 6, 256, 576, 30), {"torch_sdpa_nobias": (0.235, 0.475)}, quick=True),
        Shape("MambaVision w14", (512, 8, 196, 196, 40), {"torch_sdpa_nobias": (0.226, 0.741)}),
    ),
    # the sweep shows that the cost follows tokens times window; heads and channels of a NAT stage
    "sliding_window_attention": (
        Shape("neighbourhood 7, 32 x 32", (2, 4, 32, 32, 7, 32)),
        Shape("neighbourhood 7, 64 x 64", (2, 4, 64, 64, 7, 32), quick=True),
        Shape("neighbourhood 7, 128 x 128", (2, 4, 128, 128, 7, 32)),
        Shape("neighbourhood 13, 128 x 128", (2, 4, 128, 128, 13, 32)),
        Shape("neighbourhood 25, 128 x 128", (2, 4, 128, 128, 25, 32)),
        Shape("band 128, 4k", (2, 4, 1, 4096, 128, 32), quick=True),
        Shape("band 128, 16k", (2, 4, 1, 16384, 128, 32)),
        Shape("band 512, 16k", (2, 4, 1, 16384, 512, 32)),
    ),
    "Mamba": (Shape("Vim-T 224", VIM_224, quick=True), Shape("Vim-T 1248", VIM_1248), Shape("muse", MUSE)),
    "BidirectionalMamba": (Shape("Vim-T 224", VIM_224, quick=True), Shape("Vim-T 1248", VIM_1248), Shape("muse", MUSE)),
    "SS2D": (
        Shape("Contrast light", CONTRAST, quick=True),
        Shape("MambaIR", MAMBA_IR),
        Shape("VMamba-T stage 1", VMAMBA),
    ),
}

CPU_SHAPES: dict[str, tuple[Shape, ...]] = {
    "selective_scan": (Shape("small", (2, 192, 1024, 16)), Shape("one state", (2, 96, 512, 1))),
    "selective_scan_bidirectional": (Shape("small", (2, 192, 1024, 16)), Shape("one state", (2, 96, 512, 1))),
    "selective_scan_2d": (Shape("Contrast light", (1, 60, 32, 32, 1)), Shape("16 states", (1, 48, 16, 16, 16))),
    "ssd": (Shape("small", (2, 1024, 6, 32, 32)),),
    "depthwise_conv1d": (Shape("small", (2, 192, 1024, 4)), Shape("SR", (8, 240, 4096, 4))),
    "layer_norm": (Shape("small", (2, 1024, 192)),),
    "add_rms_norm": (Shape("small", (2, 1024, 192)),),
    "linear_scan": (Shape("small", (2, 192, 1024, 16)),),
    "linear_scan_shared": (Shape("small", (2, 192, 1024, 96)),),
    "selective_scan_step": (Shape("batch", (8, 2048, 16)),),
    "ssd_step": (Shape("batch", (8, 32, 64, 64)),),
    "depthwise_conv1d_step": (Shape("batch", (8, 2048, 4)),),
    "window_attention": (Shape("HAT-light", (16, 6, 256, 256, 10)), Shape("OCAB", (16, 6, 256, 576, 9))),
    "window_attention_nobias": (Shape("HAT-light", (16, 6, 256, 256, 10)),),
    "sliding_window_attention": (
        Shape("neighbourhood 7", (1, 4, 32, 32, 7, 32)),
        Shape("band 64", (1, 4, 1, 2048, 64, 32)),
    ),
    "Mamba": (Shape("small", (2, 192, 256, 16)),),
    "BidirectionalMamba": (Shape("small", (2, 192, 256, 16)),),
    "SS2D": (Shape("Contrast light", (1, 60, 32, 32, 1)),),
}

CPU_QUICK_SHAPES: dict[str, tuple[Shape, ...]] = {
    "selective_scan": (Shape("tiny", (1, 8, 33, 4)),),
    "selective_scan_bidirectional": (Shape("tiny", (1, 8, 33, 4)),),
    "selective_scan_2d": (Shape("tiny", (1, 6, 5, 7, 2)),),
    "ssd": (Shape("tiny", (1, 33, 2, 4, 4)),),
    "depthwise_conv1d": (Shape("tiny", (2, 6, 33, 4)),),
    "layer_norm": (Shape("tiny", (2, 7, 6)),),
    "add_rms_norm": (Shape("tiny", (2, 7, 6)),),
    "linear_scan": (Shape("tiny", (2, 6, 33, 3)),),
    "linear_scan_shared": (Shape("tiny", (2, 6, 33, 3)),),
    "selective_scan_step": (Shape("tiny", (2, 6, 4)),),
    "ssd_step": (Shape("tiny", (2, 2, 3, 4)),),
    "depthwise_conv1d_step": (Shape("tiny", (2, 6, 4)),),
    "window_attention": (Shape("tiny", (4, 2, 16, 36, 5)),),
    "window_attention_nobias": (Shape("tiny", (4, 2, 16, 36, 5)),),
    "sliding_window_attention": (Shape("tiny", (1, 2, 5, 7, 3, 4)), Shape("tiny", (2, 2, 1, 17, 3, 4))),
    "Mamba": (Shape("tiny", (2, 8, 17, 4)),),
    "BidirectionalMamba": (Shape("tiny", (2, 8, 17, 4)),),
    "SS2D": (Shape("tiny", (1, 6, 5, 7, 2)),),
}


def shapes(op: str, on_gpu: bool, quick: bool) -> tuple[Shape, ...]:
    """Return the sizes of an operator that a run takes."""
    if on_gpu:
        return tuple(shape for shape in GPU_SHAPES[op] if shape.quick or not quick)
    return (CPU_QUICK_SHAPES if quick else CPU_SHAPES)[op]


def name_of(op: str, sizes: tuple[int, ...]) -> str:
    """Return the model that has these sizes; empty if they belong to none."""
    known = (shape for group in (GPU_SHAPES, CPU_SHAPES, CPU_QUICK_SHAPES) for shape in group.get(op, ()))
    return next((shape.name for shape in known if shape.sizes == sizes), "")


def _scan_cost(sizes: tuple[int, ...], item: int, directions: int) -> Cost:
    batch, channels, length, state = sizes
    steps = batch * length  # z and y once, x, dt, B and C once a direction
    moved = steps * channels * (2 + 2 * directions) + 2 * directions * steps * state
    return Cost(moved * item, directions * steps * channels * state)


def _picture_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, channels, height, width, state = sizes
    pixels = batch * height * width  # x and y once, dt, B and C once a direction
    moved = pixels * channels * (2 + DIRECTIONS) + 2 * DIRECTIONS * pixels * state
    return Cost(moved * item, DIRECTIONS * pixels * channels * state)


def _ssd_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, length, heads, width, state = sizes
    steps = batch * length  # x and y, dt, B and C once; one decay per step and head
    return Cost(steps * (2 * heads * width + heads + 2 * state) * item, steps * heads)


def _ssd_step_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, heads, width, state = sizes  # the float32 state twice; x and y, dt, B and C
    numbers = batch * (2 * heads * width + heads + 2 * state)
    return Cost(8 * batch * heads * width * state + numbers * item, batch * heads)


def _conv_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, channels, length, _ = sizes
    return Cost(2 * batch * channels * length * item, batch * channels * length)  # SiLU has one exponential


def _norm_cost(sizes: tuple[int, ...], item: int, residual: int) -> Cost:
    batch, positions, channels = sizes  # x and y; the residual and the sum
    return Cost(batch * positions * channels * 2 * (item + residual), 0)


def _linear_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, channels, length, _ = sizes
    return Cost(2 * batch * channels * length * item, 0)  # x and y; parameters do not grow with the row


def _scan_step_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, channels, state = sizes  # the float32 state twice; x, dt, z, y, B and C; A, which is not small here
    numbers = 4 * batch * channels + 2 * batch * state
    return Cost(8 * batch * channels * state + numbers * item + 4 * channels * state, batch * channels * state)


def _conv_step_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, channels, taps = sizes  # x, y and the state of taps - 1 twice, and the filters
    return Cost(2 * taps * batch * channels * item + 4 * (taps + 1) * channels, batch * channels)


def _attention_cost(sizes: tuple[int, ...], item: int) -> Cost:
    windows, heads, queries, keys, dim = sizes  # q, k, v and the result once, one exponential a pair
    return Cost(4 * windows * heads * queries * dim * item, windows * heads * queries * keys)


def _sliding_cost(sizes: tuple[int, ...], item: int) -> Cost:
    batch, heads, height, width, window, dim = sizes
    keys = min(2 * window + 1, width) if height == 1 else window**2
    tokens = batch * heads * height * width
    return Cost(4 * tokens * dim * item, tokens * keys)


COSTS: dict[str, Callable[[tuple[int, ...], int], Cost]] = {
    "selective_scan": partial(_scan_cost, directions=1),
    "selective_scan_bidirectional": partial(_scan_cost, directions=2),
    "selective_scan_2d": _picture_cost,
    "ssd": _ssd_cost,
    "depthwise_conv1d": _conv_cost,
    "linear_scan": _linear_cost,
    "linear_scan_shared": _linear_cost,
    "selective_scan_step": _scan_step_cost,
    "ssd_step": _ssd_step_cost,
    "depthwise_conv1d_step": _conv_step_cost,
    "window_attention": _attention_cost,
    "window_attention_nobias": _attention_cost,
    "sliding_window_attention": _sliding_cost,
    "layer_norm": partial(_norm_cost, residual=0),
    "add_rms_norm": partial(_norm_cost, residual=4),
}


def cost(op: str, sizes: tuple[int, ...], item: int) -> Cost | None:
    """Return the least work of a forward pass; None for a whole mixer, whose products no such bound covers.

    Args:
        op: Name of the operator.
        sizes: In the order of `LEGEND`.
        item: Bytes of one number of the sequences; parameters are left out where they are small.
    """
    return COSTS[op](sizes, item) if op in COSTS else None
