"""The command `mamba-diffusion`. Nothing heavy is imported before a verb has read its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import arguments as options
from .parsing import parse_options

USAGE = """usage: mamba-diffusion VERB ...

  reconstruct  a field with its uncertainty from measured points (CSV or NPZ)
  train        train a model
  evaluate     PSNR, SSIM, speckle, CRPS, coverage of a model and of classical methods
  compare      two models on the same parts, sensors and seeds, with intervals
  multiscale   one model at several resolutions and with several samplers
  sample       samples of a packaged field, on any grid
  report       an HTML page: from noise to field, sensors, resolutions
  study        many training runs and their figures, resumable
  info         parameters, multiplications and scan operations of the networks
  benchmark    speed and memory on this machine
  export       float16 weights, or a program of torch.export

  mamba-diffusion VERB --help   options of a verb
  mamba-diffusion --version     version

First try:  mamba-diffusion reconstruct
Exit codes: 0 done; 1 stopped on the way, the message says where; 2 nothing done, the message says why.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments after the program's name; None takes the process's.
    """
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left, as `head` does; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    return code


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    verbs: dict[str, Callable[[list[str]], int]] = {
        "reconstruct": _reconstruct,
        "train": _train,
        "evaluate": _evaluate,
        "compare": _compare,
        "multiscale": _multiscale,
        "sample": _sample,
        "report": _report,
        "study": _study,
        "info": _info,
        "benchmark": _benchmark,
        "export": _export,
    }
    if verb in verbs:
        return _guarded(verb, verbs[verb], arguments[1:])
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"mamba-diffusion {version('mamba-diffusion')}")
        return 0
    found = f"unknown verb {verb!r}" if verb else "no verb given"
    print(f"mamba-diffusion: {found}; choose {', '.join(verbs)} (see mamba-diffusion --help)", file=sys.stderr)
    return 2


def _guarded(verb: str, command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; what a user can cause ends in one line instead of a traceback."""
    try:
        return command(arguments)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except (ValueError, MemoryError) as error:
        message, code = str(error) or "out of memory; take fewer --samples or a coarser grid", 2
    except RuntimeError as error:
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        message, code = f"out of memory ({str(error).splitlines()[0]}); take fewer --samples or a smaller --chunk", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"mamba-diffusion {verb}: {' '.join(message.split())}", file=sys.stderr)
    return code


def run() -> NoReturn:
    """Run as a process of its own (`python -m mamba_diffusion`)."""
    sys.exit(main())


def _reconstruct(argv: list[str]) -> int:
    found, points = parse_options(
        "reconstruct",
        argv,
        options.ReconstructOptions,
        description="Reconstruct a field with its uncertainty. Without points: a packaged example, with its truth.",
        positional=(
            "points",
            "?",
            "CSV with a header x,y or lon,lat and a column a channel, or .npz (coords, values)",
        ),
    )
    from .commands import reconstruct_command

    return reconstruct_command(points, found)


def _evaluate(argv: list[str]) -> int:
    about = "Measure a model and classical methods on held-out fields."
    found, _ = parse_options("evaluate", argv, options.EvaluateOptions, description=about)
    from .commands import evaluate_command

    return evaluate_command(found)


def _compare(argv: list[str]) -> int:
    about = "Compare two models: same parts, sensors and seeds, paired bootstrap intervals."
    found, _ = parse_options("compare", argv, options.CompareOptions, description=about, without=("weights",))
    from .commands import compare_command

    return compare_command(found)


def _multiscale(argv: list[str]) -> int:
    about = "Measure a model on several grids over the same field and with several samplers."
    found, _ = parse_options("multiscale", argv, options.MultiscaleOptions, description=about, without=("sampler",))
    from .commands import multiscale_command

    return multiscale_command(found)


def _sample(argv: list[str]) -> int:
    about = "Draw samples of a packaged field from its sensors, on any grid."
    found, _ = parse_options("sample", argv, options.SampleOptions, description=about)
    from .commands import sample_command

    return sample_command(found)


def _report(argv: list[str]) -> int:
    about = "Write a page that shows the flow from noise to field, the sensors, and the field at several resolutions."
    found, _ = parse_options("report", argv, options.ReportOptions, description=about, without=("grid", "out"))
    from .report import report_command

    return report_command(found)


def _study(argv: list[str]) -> int:
    about = "Train methods x rates x seeds under one budget, measure them, keep JSON rows; goes on where it stopped."
    found, _ = parse_options("study", argv, options.StudyOptions, description=about)
    from .study import study_command

    return study_command(found)


def _info(argv: list[str]) -> int:
    found, _ = parse_options(
        "info",
        argv,
        options.InfoOptions,
        description="Count parameters and operations of the networks.",
        positional=("preset", "?", "One network; all of them if not given."),
    )
    from .commands import info_command

    return info_command(found)


def _benchmark(argv: list[str]) -> int:
    found, _ = parse_options(
        "benchmark",
        argv,
        options.BenchmarkOptions,
        description="Time a network on this machine.",
        positional=("preset", "?", "The network, by default ours."),
    )
    from .commands import benchmark_command

    return benchmark_command(found)


def _export(argv: list[str]) -> int:
    found, weights = parse_options(
        "export",
        argv,
        options.ExportOptions,
        description="Write a model for elsewhere.",
        positional=("weights", "?", "A run, its model/ folder, or shipped weights by name."),
    )
    from .commands import export_command

    return export_command(weights, found)


def _train(argv: list[str]) -> int:
    from .train import main as train

    return train(argv)


if __name__ == "__main__":
    run()
