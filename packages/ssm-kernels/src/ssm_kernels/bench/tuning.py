"""What the choices in the scan's kernels are worth: one setting changed at a time, forward and backward timed.

    python3 -m ssm_kernels.bench.tuning --out DIR      # about three minutes on an H100, most of it compiling

writes DIR/tuning.json, which `ssm-kernels report` quotes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .rows import align
from .shapes import LM, MUSE, VIM_224, VIM_1248

TUNING = "tuning.json"
SHAPES = {"Vim-T 224": VIM_224, "Vim-T 1248": VIM_1248, "muse": MUSE, "LM": LM}
PLAN, LAUNCHERS = "kernels_plan", "kernels"  # modules of ops.selective_scan
SETTINGS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "as it is": (),
    "forward: 2 steps loaded ahead instead of 4": ((PLAN, "STEPS", 2),),
    "forward: 8 steps": ((PLAN, "STEPS", 8),),
    "rows are never cut into spans": ((PLAN, "ENOUGH_PROGRAMS", 0),),
    "rows are cut below 4,096 programs instead of 1,024": ((PLAN, "ENOUGH_PROGRAMS", 4096),),
    "cut into half as many programs": ((PLAN, "WANTED_PROGRAMS", 792), (PLAN, "WANTED_BACKWARD", 528)),
    "cut into twice as many programs": ((PLAN, "WANTED_PROGRAMS", 3168), (PLAN, "WANTED_BACKWARD", 2112)),
    "ahead of the walk: 4 steps loaded ahead instead of 8": ((LAUNCHERS, "LOCAL_STEPS", 4),),
    "ahead of the walk: spans are not cut finer": ((PLAN, "WANTED_LOCAL", 0),),
    "backward: 52 MiB of scratch instead of 33": ((LAUNCHERS, "SCRATCH_BYTES", 52 * 2**20),),
    "backward: a state kept per 2 steps instead of 4": ((LAUNCHERS, "BACKWARD_STEPS", 2),),
    "backward: 4 states at a time instead of 8": ((LAUNCHERS, "BACKWARD_STATES", 4),),
    "backward: 16 states at a time": ((LAUNCHERS, "BACKWARD_STATES", 16),),
    "backward: adjoints in memory, not in registers": ((LAUNCHERS, "RESIDENT_STATES", 0),),
    "backward: at most 168 registers, 12 warps a processor": (
        (LAUNCHERS, "BACKWARD_REGISTERS", 168),
        (PLAN, "WANTED_BACKWARD", 1584),
    ),
}


@dataclass(frozen=True)
class Tuned:
    """Milliseconds of selective_scan (bfloat16) with one setting changed."""

    setting: str
    model: str
    shape: tuple[int, ...]
    fwd_ms: float
    bwd_ms: float


@contextmanager
def changed(setting: str) -> Iterator[None]:
    """Change constants of the launchers for a while; launches that were kept are forgotten, before and after."""
    from importlib import import_module

    from ..ops.launch import forget

    home = "ssm_kernels.ops.selective_scan"
    before = []
    for name, constant, value in SETTINGS[setting]:
        module = import_module(f"{home}.{name}")
        before.append((module, constant, getattr(module, constant)))
        setattr(module, constant, value)
    forget()
    try:
        yield
    finally:
        for module, constant, value in before:
            setattr(module, constant, value)
        forget()


def measure_settings(shapes: dict[str, tuple[int, ...]]) -> Iterator[Tuned]:
    """Time every setting at every shape on the current GPU."""
    import torch

    from .case import cotangent
    from .operators import scan_case
    from .peers import Peers
    from .runner import time_passes

    device = torch.device("cuda", torch.cuda.current_device())
    for setting in SETTINGS:
        with changed(setting):
            for model, sizes in shapes.items():
                case = scan_case(sizes, "bfloat16", device, None, Peers())

                def call(x: dict[str, Any], case: Any = case) -> Any:
                    return case.call(x, "triton")

                forward, backward, _ = time_passes(call, case.inputs, cotangent, repeat=10)
                yield Tuned(setting, model, sizes, forward.median_ms, backward.median_ms)


def tuning_table(path: Path) -> str:
    """Return the table of a tuning.json: forward / backward in ms, a line per setting."""
    rows = [Tuned(**row | {"shape": tuple(row["shape"])}) for row in json.loads(path.read_text())["rows"]]
    models = list(dict.fromkeys(row.model for row in rows))
    times = {(row.setting, row.model): f"{row.fwd_ms:.3f} / {row.bwd_ms:.3f}" for row in rows}
    lines = [("selective_scan, fwd / bwd ms", *models)]
    lines += [
        (setting, *(times.get((setting, model), "-") for model in models))
        for setting in dict.fromkeys(row.setting for row in rows)
    ]
    return align(lines)


def main() -> int:
    """Measure, print and save after every row; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tuning.json")
    options = parser.parse_args()
    import torch

    from .harness import environment

    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; torch sees none here")
    options.out.mkdir(parents=True, exist_ok=True)
    path, rows = options.out / TUNING, []
    about = environment(torch.device("cuda", torch.cuda.current_device()))
    for row in measure_settings(SHAPES):
        rows.append(asdict(row))
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps({"rows": rows, "environment": about}, indent=2) + "\n")
        os.replace(fresh, path)
        print(f"{row.setting:60} {row.model:12} {row.fwd_ms:.3f} {row.bwd_ms:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
