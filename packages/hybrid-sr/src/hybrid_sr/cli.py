"""The command `hybrid-sr`. Nothing heavy is imported before a verb has read its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .arguments import BenchmarkOptions, EvaluateOptions, InfoOptions, UpscaleOptions, parse_options
from .tool_arguments import ExportOptions, LamOptions, NormsOptions, ReportOptions

USAGE = """usage: hybrid-sr VERB ...

  upscale    make pictures 2, 3 or 4 times as large
  evaluate   PSNR and SSIM against bicubic, on packaged photos or a folder
  train      train a network
  info       parameters, multiplications and scan operations of a network
  benchmark  speed and memory of a network on this machine
  study      the light networks trained under one budget: table and plots
  lam        which input pixels a network used for one part of its result
  norms      how large the features of every group are
  report     one HTML page about a training run
  export     ONNX, torch.export, safetensors or .pth, for other programs

  hybrid-sr VERB --help   options of a verb
  hybrid-sr --version     version

First try:  hybrid-sr upscale --sample coffee
Exit codes: 0 done; 1 some pictures failed, the others are done; 2 nothing done, the message says why.
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
        "upscale": _upscale,
        "evaluate": _evaluate,
        "train": _train,
        "info": _info,
        "benchmark": _benchmark,
        "study": _study,
        "lam": _lam,
        "norms": _norms,
        "report": _report,
        "export": _export,
    }
    if verb in verbs:
        return _guarded(verb, verbs[verb], arguments[1:])
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"hybrid-sr {version('hybrid-sr')}")
        return 0
    found = f"unknown verb {verb!r}" if verb else "no verb given"
    print(f"hybrid-sr: {found}; choose {', '.join(verbs)} (see hybrid-sr --help)", file=sys.stderr)
    return 2


def _guarded(verb: str, command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; what a user can cause ends in one line instead of a traceback."""
    try:
        return command(arguments)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except (ValueError, MemoryError) as error:
        message, code = str(error) or "out of memory; use a smaller picture or --tile 128", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"hybrid-sr {verb}: {' '.join(message.split())}", file=sys.stderr)
    return code


def run() -> NoReturn:
    """Run as a process of its own (`python -m hybrid_sr`)."""
    sys.exit(main())


def _upscale(argv: list[str]) -> int:
    options, inputs = parse_options(
        "upscale",
        argv,
        UpscaleOptions,
        description="Make pictures larger: photo.jpg becomes photo_x4.png. Depth, alpha, profile, folders are kept.",
        positional=("inputs", "*", "Pictures, folders, or quoted patterns such as 'scans/**/*.tif'."),
    )
    from .commands import upscale_command

    return upscale_command(inputs, options)


def _evaluate(argv: list[str]) -> int:
    description = "Upscale reduced photos and compare with the originals: PSNR and SSIM on luma, gain over bicubic."
    options, _ = parse_options("evaluate", argv, EvaluateOptions, description=description)
    from .commands import evaluate_command

    return evaluate_command(options)


def _info(argv: list[str]) -> int:
    options, _ = parse_options(
        "info",
        argv,
        InfoOptions,
        description="Count a network's parameters and operations.",
        positional=("preset", "?", "The network, by default contrast-no-pe-no-cab."),
    )
    from .commands import info_command

    return info_command(options)


def _benchmark(argv: list[str]) -> int:
    options, _ = parse_options(
        "benchmark",
        argv,
        BenchmarkOptions,
        description="Time a network on this machine.",
        positional=("preset", "?", "The network, by default contrast-no-pe-no-cab."),
    )
    from .commands import benchmark_command

    return benchmark_command(options)


def _lam(argv: list[str]) -> int:
    options, image = parse_options(
        "lam",
        argv,
        LamOptions,
        description="Local attribution map: which input pixels a network used for one part of its result.",
        positional=("image", "?", "The picture."),
    )
    from .inspection import lam_command

    return lam_command(image, options)


def _norms(argv: list[str]) -> int:
    options, image = parse_options(
        "norms",
        argv,
        NormsOptions,
        description="L2 norm of the features after every group, per pixel.",
        positional=("image", "?", "The picture."),
    )
    from .inspection import norms_command

    return norms_command(image, options)


def _report(argv: list[str]) -> int:
    options, run = parse_options(
        "report",
        argv,
        ReportOptions,
        description="Write one HTML page about a training run: curves, pictures to compare, figures.",
        positional=("run", "?", "The --out folder of the run."),
    )
    from .report import report_command

    return report_command(run, options)


def _export(argv: list[str]) -> int:
    options, out = parse_options(
        "export",
        argv,
        ExportOptions,
        description="Write a network for other programs.",
        positional=("file", "?", "A file ending in .onnx, .pt2, .safetensors or .pth, or a folder (half precision)."),
    )
    from .export import export_command

    return export_command(out, options)


def _study(argv: list[str]) -> int:
    from .study import StudyOptions, study_command

    options, family = parse_options(
        "study",
        argv,
        StudyOptions,
        description="Train the light networks under one budget and compare them.",
        positional=("family", "?", "light"),
    )
    return study_command(family, options)


def _train(argv: list[str]) -> int:
    from .train import main as train

    return train(argv)


if __name__ == "__main__":
    run()
