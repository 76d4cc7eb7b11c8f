"""What the command line can ask for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OPS = (
    "selective_scan",
    "selective_scan_bidirectional",
    "selective_scan_2d",
    "ssd",
    "depthwise_conv1d",
    "norms",
    "linear_scan",
    "window_attention",
    "sliding_window_attention",
    "steps",
    "mixers",
)
STEPS = ("selective_scan_step", "ssd_step", "depthwise_conv1d_step")
NORMS = ("layer_norm", "add_rms_norm")
MIXERS = ("Mamba", "BidirectionalMamba", "SS2D")
DTYPE_NAMES = ("bfloat16", "float16", "float32")
IMPLS = ("triton", "torch", "reference")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `ssm-kernels bench`.

    Attributes:
        op: Operators; "steps" are those of one token, "norms" the layer norm and the
            root mean square norm with a residual, "mixers" are the modules Mamba, BidirectionalMamba and SS2D.
        impl: Of ours; what suits the device if empty. Other packages' are always timed where they can be imported.
        dtype: Of the sequences; bfloat16 on a GPU and float32 on a CPU if empty.
        device: cpu, cuda, cuda:1, ...; a GPU if there is one and this is empty.
        out: Folder of the results.
        quick: A few sizes, few repetitions.
        sweep: selective_scan over a grid of lengths and widths instead of the models' sizes.
        budget_s: Start nothing new after this many seconds; None for no limit.
        resume: Keep what `out` has and measure what is missing.
        overwrite: Replace what `out` has.
    """

    op: tuple[str, ...] = OPS
    impl: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    device: str = ""
    out: Path
    quick: bool = False
    sweep: bool = False
    budget_s: float | None = None
    resume: bool = False
    overwrite: bool = False
