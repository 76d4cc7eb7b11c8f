"""`ssm-kernels selftest`: is every operator right on this machine?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .case import error_of, truth_of
from .command import pick_device
from .options import DTYPE_NAMES, OPS
from .peers import Peers
from .runner import impls_of
from .shapes import CPU_QUICK_SHAPES
from .suite import make_case, rows_of

# beside the tiny sizes: widths that fill whole blocks, and rows long enough to be cut into spans
LARGER = {
    "selective_scan": ((2, 64, 700, 16), (1, 40, 700, 1)),
    "selective_scan_bidirectional": ((2, 64, 300, 16),),
    "selective_scan_2d": ((1, 64, 20, 17, 4), (1, 60, 20, 17, 1)),
    "depthwise_conv1d": ((2, 96, 300, 4),),
}


@dataclass(frozen=True)
class Check:
    """One operator at one size and dtype: its largest error ratio of output and gradients, and what it may be."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    impl: str
    error_ratio: float
    limit: float

    @property
    def right(self) -> bool:
        """Whether the result is usable; NaN is not."""
        return self.error_ratio <= self.limit


def run_selftest(device_name: str = "", dtypes: Sequence[str] = DTYPE_NAMES) -> int:
    """Compare every operator, forward and backward, with float64 on this machine, and print a table.

    Args:
        device_name: cpu, cuda, cuda:1; a GPU if there is one and this is empty.
        dtypes: Of the sequences.

    Returns:
        0 if everything is right, 1 if not.

    Raises:
        ValueError: There is no such device here.
    """
    device, start = pick_device(device_name), time.perf_counter()
    print(f"{'operator':30} {'shape':22} {'dtype':9} {'impl':7} {'error':>8} {'limit':>8}")
    wrong = total = 0
    for op in rows_of(OPS):
        for shape in (*(shape.sizes for shape in CPU_QUICK_SHAPES.get(op, ())), *LARGER.get(op, ())):
            for dtype in dtypes:
                case = make_case(op, shape, dtype, device, None, Peers())
                impl = impls_of(case, device)[0]
                check = Check(op, shape, dtype, impl, error_of(case, impl, truth_of(case)), case.limit(impl))
                print(line(check), flush=True)
                wrong, total = wrong + (not check.right), total + 1
    verdict = f"{wrong} of {total} are WRONG" if wrong else f"all {total} are right"
    print(
        f"{verdict}, on {device}, in {time.perf_counter() - start:.0f} s; error is RMS over the RMS of float64's result"
    )
    return int(wrong > 0)


def line(check: Check) -> str:
    """Return one line of the table."""
    shape = "x".join(map(str, check.shape))
    mark = "" if check.right else "  WRONG"
    numbers = f"{check.error_ratio:8.1e} {check.limit:8.1e}"
    return f"{check.op:30} {shape:22} {check.dtype:9} {check.impl:7} {numbers}{mark}"
