"""What a benchmark script of its own does: parse the command line, check parity, time, print and write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .case import DTYPES, Case, Peer, cotangent
from .harness import environment
from .rows import Row, as_table, write_report
from .runner import impls_of, measured, run_case, time_passes


def main(
    description: str,
    cases: Callable[[torch.device, str, bool], Iterable[Case]],
    table: Sequence[Row],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a benchmark script.

    Args:
        description: Of the script, for `--help`.
        cases: Makes the cases for a device and a dtype, a few of them if the flag is set, one at a time.
        table: Earlier measurements that the results are shown next to.
        arguments: Of the command line; None takes those of the process.

    Returns:
        Exit code: 0, or 1 if an implementation was not accurate.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the sequences; bfloat16 on a GPU, else float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a few shapes, few repetitions")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    rows: list[Row] = []
    for case in cases(device, dtype, options.quick):
        repeat = 5 if options.quick else 20
        checked = [name for name, peer in case.peers.items() if isinstance(peer, Peer)]
        fresh = list(run_case(case, (*impls_of(case, device), *checked), repeat))
        for name in case.peers.keys() - set(checked):
            fresh.append(_unchecked(case, name, repeat))
        kept = [row for row in table if row.op == case.op and row.shape == case.shape]
        print(as_table([*fresh, *kept]), flush=True)
        rows += [*fresh, *kept]
    write_report(options.out, rows, environment(device))
    red = [row for row in rows if row.source == "run" and row.fwd_ms is None]
    for row in red:
        print(f"{row.op} {row.shape} {row.impl}: error ratio {row.error_ratio:.1e} is over its limit; not timed")
    return 1 if red else 0


def _unchecked(case: Case, name: str, repeat: int) -> Row:
    """Time a peer that is given as its own inputs and a function of them; nothing says that it computes the same."""
    inputs, function = case.peers[name]
    seen = measured(time_passes(function, inputs, cotangent, repeat=repeat))
    kept: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "impl": name, "source": "run"}
    return Row(**kept, **seen, floor_ms=case.floor_ms)
