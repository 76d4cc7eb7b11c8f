"""The command `ssm-kernels`. Nothing heavy is imported before the arguments were read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .bench.options import DTYPE_NAMES, IMPLS, OPS, BenchOptions

FIRST_OUT = Path("ssm-kernels-bench")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ssm-kernels", description="State-space and window-attention operators: measure them here.")
    parser.add_argument("--version", action="store_true", help="version of this package")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    _add_bench(verbs.add_parser("bench", help="time ours and every peer that can be imported, checked against float64"))
    selftest = verbs.add_parser("selftest", help="compare every operator with float64 on this machine")
    selftest.add_argument("--device", default="", help="cpu, cuda, cuda:1; a GPU if there is one")
    chosen = ", ".join(DTYPE_NAMES) + "; all if not given"
    selftest.add_argument("--dtype", nargs="+", choices=DTYPE_NAMES, default=DTYPE_NAMES, metavar="DTYPE", help=chosen)
    report = verbs.add_parser("report", help="print the tables of saved results, draw their plots, fill pages")
    report.description = (
        "Print the tables of FOLDER and draw its plots. With --page, FOLDER holds folders of results, and every page "
        "is rewritten between its comments <!-- ssm-kernels report: NAME --> and <!-- end of report -->."
    )
    report.add_argument("folder", type=Path, metavar="FOLDER", help="what bench --out wrote")
    report.add_argument("--page", type=Path, nargs="+", default=[], help="Markdown files that quote results")
    return parser


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.description = (
        "Time the operators at the sizes of vision models. A result that disagrees with float64 is not timed. Saves "
        "results.json (or sweep.json) and a plot; exit code 1 if one of ours was wrong."
    )
    what = (
        "operators; steps are those of one token, mixers the modules Mamba, BidirectionalMamba, SS2D. All if not given"
    )
    bench.add_argument("--op", nargs="+", choices=OPS, default=OPS, metavar="OP", help=f"{', '.join(OPS)}: {what}")
    impl = "ours: " + ", ".join(IMPLS) + "; what suits the device if not given"
    bench.add_argument("--impl", nargs="+", choices=IMPLS, default=(), metavar="IMPL", help=impl)
    dtype = ", ".join(DTYPE_NAMES) + "; bfloat16 on a GPU and float32 on a CPU if not given"
    bench.add_argument("--dtype", nargs="+", choices=DTYPE_NAMES, default=(), metavar="DTYPE", help=dtype)
    bench.add_argument("--device", default="", help="cpu, cuda, cuda:1; a GPU if there is one")
    bench.add_argument("--out", type=Path, default=FIRST_OUT, metavar="DIR", help=f"folder, {FIRST_OUT} if not given")
    bench.add_argument("--quick", action="store_true", help="a few sizes, few repetitions")
    sweep = "selective_scan over lengths 16 to 65536 and widths 256 to 262144 instead"
    bench.add_argument("--sweep", action="store_true", help=sweep)
    bench.add_argument("--budget", type=_seconds, metavar="S", help="start nothing new after S seconds")
    bench.add_argument("--resume", action="store_true", help="keep what DIR has and measure what is missing")
    bench.add_argument("--overwrite", action="store_true", help="replace what DIR has")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be seconds above 0, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 a kernel was wrong, 2 bad input.

    Args:
        argv: Arguments after the program's name; None takes the process's.
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # --help and mistakes; the line is printed
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _dispatch(options)
    except (ValueError, OSError) as error:
        print(f"ssm-kernels {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ssm-kernels {options.verb}: interrupted; what was measured is saved", file=sys.stderr)
        return 130


def _dispatch(options: argparse.Namespace) -> int:
    if options.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"ssm-kernels {version('ssm-kernels')}")
        except PackageNotFoundError:
            print("ssm-kernels from a checkout that is not installed")
        return 0
    if options.verb == "bench":
        return _bench(options)
    if options.verb == "report":
        return _report(options.folder, options.page)
    if options.verb == "selftest":
        from .bench.selftest import run_selftest

        return run_selftest(options.device, tuple(dict.fromkeys(options.dtype)))
    print("ssm-kernels: no verb given; choose bench, selftest or report (see ssm-kernels --help)", file=sys.stderr)
    return 2


def _bench(options: argparse.Namespace) -> int:
    if options.resume and options.overwrite:
        raise ValueError("--resume and --overwrite exclude each other; choose one")
    chosen = BenchOptions(
        op=tuple(dict.fromkeys(options.op)),
        impl=tuple(dict.fromkeys(options.impl)),
        dtype=tuple(dict.fromkeys(options.dtype)),
        device=options.device,
        out=options.out,
        quick=options.quick,
        sweep=options.sweep,
        budget_s=options.budget,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    from .bench.command import run_bench

    return run_bench(chosen)


def _report(folder: Path, pages: Sequence[Path]) -> int:
    from .bench.report import add_blocks, draw_missing, fill_page, has_results, print_report

    if not pages:
        print_report(folder)
        return 0
    if not folder.is_dir() or not any(has_results(path) for path in folder.iterdir()):
        raise ValueError(f"{folder}: holds no folder of results; --page wants the folder above them")
    draw_missing(folder)
    for page in pages:
        if page.resolve().parent == folder.resolve():
            add_blocks(page, folder)
        page.write_text(fill_page(page, folder))
        print(f"written: {page}")
    return 0
