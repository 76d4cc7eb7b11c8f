"""`ssm-kernels bench`: measure, print and save as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .case import Case
from .cliffs import verdict
from .harness import environment, installed
from .options import BenchOptions
from .peers import Peers, find_peers
from .plots import draw_results, draw_sweep
from .report import PLOT, RESULTS, SWEEP, SWEEP_PLOT, best_of_ours
from .roofline import Rates, rates_of
from .rows import Environment, Row, as_table, read_report, write_report
from .runner import impls_of, run_case
from .suite import cases, table_rows
from .sweep import grid, run_point
from .targets import as_text, compare, summary

STABLE = ("GPU", "driver", "torch", "triton", "git", "mamba_ssm", "causal_conv1d")  # what rows of one file share


@dataclass
class Log:
    """The rows so far, saved after each, and when to stop."""

    path: Path
    environment: Environment
    rows: list[Row]
    deadline: float
    left: int = 0  # sizes that the budget did not allow

    def add(self, row: Row) -> None:
        """Keep a row, in memory and on disk."""
        self.rows.append(row)
        write_report(self.path, self.rows, self.environment)

    def over(self) -> bool:
        """Say whether the time is up."""
        return time.monotonic() > self.deadline

    def missing(self, op: str, shape: tuple[int, ...], dtype: str, impls: Sequence[str]) -> list[str]:
        """Return the implementations that were not measured yet."""
        known = {row.impl for row in self.rows if (row.op, row.shape, row.dtype) == (op, shape, dtype)}
        return [impl for impl in impls if impl not in known]


def run_bench(options: BenchOptions) -> int:
    """Run the command.

    Returns:
        Exit code: 0, or 1 if an implementation of ours was not accurate.

    Raises:
        ValueError: The device is not there, what is asked for does not run on it, or `out` already has results.
    """
    device = pick_device(options.device)
    _check(options, device)
    peers = find_peers(device)
    path = options.out / (SWEEP if options.sweep else RESULTS)
    log, rates = _open_log(path, options, device)
    print(", ".join(f"{key} {value}" for key, value in log.environment.items() if value is not None))
    for name, reason in peers.missing.items():
        print(f"{name} is left out: {reason}")
    runner = _run_sweep if options.sweep else _run_cases
    dtypes = options.dtype or (("bfloat16",) if device.type == "cuda" else ("float32",))
    runner(options, dtypes, device, rates, peers, log)
    if log.left:
        print(
            f"stopped after {options.budget_s:g} s with {log.left} sizes left; the same command with --resume goes on"
        )
    print(f"results: {path}")
    draw, name = (draw_sweep, SWEEP_PLOT) if options.sweep else (draw_results, PLOT)
    print(draw(log.rows, log.environment, options.out / name))
    return 1 if any(_is_ours(row) and row.fwd_ms is None for row in log.rows) else 0


def _is_ours(row: Row) -> bool:
    return row.impl in ("triton", "torch", "reference")


def pick_device(name: str) -> torch.device:
    """Return the device that was asked for, a GPU if there is one and the name is empty.

    Raises:
        ValueError: There is no such device here.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: must be cpu, cuda, cuda:1, ..., got {name}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: must be cpu or cuda, got {name}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"--device: {name} is not here, torch sees {count} CUDA devices; use --device cpu")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def _check(options: BenchOptions, device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    if options.sweep and not on_gpu and not options.quick:
        raise ValueError("--sweep: goes up to 2^31 elements and needs a GPU; --quick makes it tiny")
    if "triton" in options.impl and not on_gpu:
        raise ValueError("--impl: triton needs a GPU; times of its interpreter say nothing")


def _open_log(path: Path, options: BenchOptions, device: torch.device) -> tuple[Log, Rates | None]:
    """Start a file, or go on with one that was measured under the same conditions."""
    extra = {name: installed(name.replace("_", "-")) for name in ("mamba_ssm", "causal_conv1d")}
    fresh: dict[str, str | float | None] = {**environment(device), **extra}
    deadline = time.monotonic() + options.budget_s if options.budget_s is not None else float("inf")
    if path.exists() and options.resume:
        rows, before = read_report(path)
        if changed := [key for key in STABLE if before.get(key) != fresh.get(key)]:
            was = ", ".join(f"{key} {before.get(key)}, now {fresh.get(key)}" for key in changed)
            raise ValueError(f"--resume: {path} was measured with {was}; give another --out, or --overwrite")
        copy, exp2 = before.get("copy_bytes_per_s"), before.get("exp2_per_s")
        rates = Rates(copy, exp2) if isinstance(copy, float) and isinstance(exp2, float) else None
        return Log(path, before, rows, deadline), rates
    if path.exists() and not options.overwrite:
        raise ValueError(f"--out: {path} is there already; --resume goes on with it, --overwrite replaces it")
    rates = rates_of(device)
    if rates is not None:
        fresh |= {"copy_bytes_per_s": rates.copy_bytes_per_s, "exp2_per_s": rates.exp2_per_s}
    write_report(path, [], fresh)  # so that a folder that cannot be written to is found out first
    return Log(path, fresh, [], deadline), rates


def _run_cases(
    options: BenchOptions,
    dtypes: Sequence[str],
    device: torch.device,
    rates: Rates | None,
    peers: Peers,
    log: Log,
) -> None:
    on_h100 = "H100" in str(log.environment.get("GPU"))  # the table's figures are of that GPU and no other
    for op, sizes, dtype, make in cases(options.op, dtypes, device, rates, peers, quick=options.quick):
        if log.over():
            log.left += 1
            continue
        for row in _guarded(f"{op} {sizes} {dtype}", lambda make=make: _case_rows(make(), options, device, log)):
            log.add(row)
            _complain(row)
        here = [row for row in log.rows if (row.op, row.shape, row.dtype) == (op, sizes, dtype)]
        if on_h100:
            for row in table_rows(op, sizes, dtype, {row.impl for row in here}, rates):
                log.add(row)
                here.append(row)
        if here:
            print(as_table(here), flush=True)
    comparisons = list(compare(log.rows))
    print("", as_text(comparisons), "", summary(comparisons), sep="\n")


def _case_rows(case: Case, options: BenchOptions, device: torch.device, log: Log) -> Iterator[Row]:
    suitable = impls_of(case, device)
    ours = [impl for impl in options.impl if impl != "triton" or impl in suitable] if options.impl else suitable
    wanted = log.missing(case.op, case.shape, case.dtype, [*ours, *case.peers])
    return run_case(case, wanted, 5 if options.quick else 20, done=log.over)


def _run_sweep(
    options: BenchOptions,
    dtypes: Sequence[str],
    device: torch.device,
    rates: Rates | None,
    peers: Peers,
    log: Log,
) -> None:
    ours = options.impl or (("triton",) if device.type == "cuda" else ("torch",))
    for dtype in dtypes:
        for sizes in grid(options.quick):
            impls = (*ours, *(("mamba_ssm",) if peers.scan is not None else ()))
            wanted = log.missing("selective_scan", sizes, dtype, impls)
            if not wanted:
                continue
            if log.over():
                log.left += 1
                continue

            def rows(
                sizes: tuple[int, ...] = sizes, dtype: str = dtype, wanted: Sequence[str] = wanted
            ) -> Iterator[Row]:
                return run_point(sizes, dtype, device, rates, peers, wanted)

            for row in _guarded(f"selective_scan {sizes} {dtype}", rows):
                log.add(row)
                _complain(row)
                if row.fwd_ms is not None:
                    print(
                        f"{'x'.join(map(str, sizes))} {dtype} {row.impl}: {row.fwd_ms:.3f} {row.bwd_ms:.3f}", flush=True
                    )
    print(verdict(log.rows, best_of_ours(log.rows)))


def _guarded(what: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Yield rows until the memory runs out, and say so."""
    try:
        yield from rows()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        print(f"{what}: the GPU's memory is not enough; left out", flush=True)


def _complain(row: Row) -> None:
    if row.fwd_ms is None:
        what = f"{row.op} {row.shape} {row.dtype} {row.impl}"
        print(f"{what}: error ratio {row.error_ratio:.1e} is over its limit; not timed")
