"""The cases of a run, made one at a time, and what was measured elsewhere at the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from .case import Case
from .linear import linear_case, shared_case
from .mixers import mixer_case
from .norm import add_rms_norm_case, layer_norm_case
from .operators import attention_case, bidirectional_case, bound, conv_case, picture_case, scan_case
from .options import MIXERS, NORMS, STEPS
from .peers import Peers
from .roofline import Rates
from .rows import Row
from .shapes import GPU_SHAPES, shapes
from .sliding import sliding_case
from .ssd import ssd_case, ssd_step_case
from .steps import conv_step_case, scan_step_case


def make_case(
    op: str, sizes: tuple[int, ...], dtype: str, device: torch.device, rates: Rates | None, peers: Peers
) -> Case:
    """Make the inputs of one case on the device."""
    if op in MIXERS:
        return mixer_case(op, sizes, dtype, device, peers)
    if op.startswith("window_attention"):
        return attention_case(sizes, dtype, device, rates, bias=op == "window_attention")
    makers = {
        "selective_scan": scan_case,
        "selective_scan_bidirectional": bidirectional_case,
        "selective_scan_2d": picture_case,
        "ssd": ssd_case,
        "depthwise_conv1d": conv_case,
        "layer_norm": layer_norm_case,
        "add_rms_norm": add_rms_norm_case,
        "linear_scan": linear_case,
        "linear_scan_shared": shared_case,
        "sliding_window_attention": sliding_case,
        "selective_scan_step": scan_step_case,
        "ssd_step": ssd_step_case,
        "depthwise_conv1d_step": conv_step_case,
    }
    return makers[op](sizes, dtype, device, rates, peers)


def rows_of(ops: Iterable[str]) -> Iterator[str]:
    """Give the names of rows: some stand for several; attention comes with and without a bias."""
    several = {"mixers": MIXERS, "norms": NORMS, "steps": STEPS}
    for op in ops:
        if op in several:
            yield from several[op]
        else:
            yield op
            if op == "linear_scan":
                yield "linear_scan_shared"
            if op == "window_attention":
                yield "window_attention_nobias"


def cases(
    ops: Iterable[str],
    dtypes: Iterable[str],
    device: torch.device,
    rates: Rates | None,
    peers: Peers,
    *,
    quick: bool,
) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Case]]]:
    """Yield operator, sizes, dtype, and what makes the case, in the order in which they run."""
    names = list(rows_of(ops))
    for dtype in dtypes:
        for op in names:
            for shape in shapes(op, device.type == "cuda", quick):

                def make(op: str = op, sizes: tuple[int, ...] = shape.sizes, dtype: str = dtype) -> Case:
                    return make_case(op, sizes, dtype, device, rates, peers)

                yield op, shape.sizes, dtype, make


def table_rows(op: str, sizes: tuple[int, ...], dtype: str, measured: Iterable[str], rates: Rates | None) -> list[Row]:
    """Return what was measured earlier on an H100, in bfloat16, of implementations that were not measured now."""
    if dtype != "bfloat16":
        return []
    known = next((shape.table for shape in GPU_SHAPES[op] if shape.sizes == sizes), {})
    floor = bound(op, sizes, dtype, rates)
    return [
        Row(
            op=op, shape=sizes, dtype=dtype, impl=impl, source="table", fwd_ms=times[0], bwd_ms=times[1], floor_ms=floor
        )
        for impl, times in known.items()
        if impl not in measured
    ]
