"""The command `vim-compress`. Nothing heavy is imported before a verb has read its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .arguments import (
    BenchmarkOptions,
    ClassifyOptions,
    EvaluateOptions,
    ExportOptions,
    InfoOptions,
    PruneOptions,
    ReportOptions,
    StudyOptions,
    parse_options,
)

USAGE = """usage: vim-compress VERB ...

  classify   say what is in a picture
  train      train a network
  evaluate   accuracy on held-out pictures
  prune      cut a trained network down to a target of parameters, operations or latency
  study      the table of all experiments, dense and pruned, on real data
  info       parameters, multiplications and scan operations of a network
  benchmark  speed and memory of networks on this machine
  export     ONNX, torch.export or safetensors
  report     one HTML page about a run or a study

  vim-compress VERB --help   options of a verb
  vim-compress --version     version

Exit codes: 0 done; 1 stopped on the way; 2 nothing done, the message says why.
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
        "classify": _classify,
        "train": _train,
        "evaluate": _evaluate,
        "prune": _prune,
        "study": _study,
        "info": _info,
        "benchmark": _benchmark,
        "export": _export,
        "report": _report,
    }
    if verb in verbs:
        return _guarded(verb, verbs[verb], arguments[1:])
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"vim-compress {version('vim-compress')}")
        return 0
    found = f"unknown verb {verb!r}" if verb else "no verb given"
    print(f"vim-compress: {found}; choose {', '.join(verbs)} (see vim-compress --help)", file=sys.stderr)
    return 2


def _guarded(verb: str, command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; what a user can cause ends in one line instead of a traceback."""
    try:
        return command(arguments)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except (ValueError, MemoryError) as error:
        message, code = str(error) or "out of memory; lower --batch", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"vim-compress {verb}: {' '.join(message.split())}", file=sys.stderr)
    return code


def run() -> NoReturn:
    """Run as a process of its own (`python -m vim_compress`)."""
    sys.exit(main())


def _classify(argv: list[str]) -> int:
    options, pictures = parse_options(
        "classify",
        argv,
        ClassifyOptions,
        description="Say what is in pictures, and what the network was trained on.",
        positional=("pictures", "*", "Picture files."),
    )
    from .commands import classify_command

    return classify_command(pictures, options)


def _evaluate(argv: list[str]) -> int:
    options, _ = parse_options("evaluate", argv, EvaluateOptions, description="Measure accuracy on held-out pictures.")
    from .commands import evaluate_command

    return evaluate_command(options)


def _prune(argv: list[str]) -> int:
    description = "Cut a trained network down. The result is an ordinary network: config.json and model.safetensors."
    options, _ = parse_options("prune", argv, PruneOptions, description=description)
    from .commands import prune_command

    return prune_command(options)


def _study(argv: list[str]) -> int:
    options, _ = parse_options("study", argv, StudyOptions, description="Run the experiments and fill one table.")
    from .commands import study_command

    return study_command(options)


def _info(argv: list[str]) -> int:
    options, _ = parse_options(
        "info",
        argv,
        InfoOptions,
        description="Count a network's parameters and operations.",
        positional=("network", "?", "A preset or a saved folder, by default vim_tiny_patch16_224."),
    )
    from .commands import info_command

    return info_command(options)


def _benchmark(argv: list[str]) -> int:
    options, _ = parse_options(
        "benchmark",
        argv,
        BenchmarkOptions,
        description="Time networks on this machine.",
        positional=("network", "?", "Presets, saved folders or timm's names, separated by commas."),
    )
    from .commands import benchmark_command

    return benchmark_command(options)


def _export(argv: list[str]) -> int:
    options, _ = parse_options("export", argv, ExportOptions, description="Write a network for other programs.")
    from .commands import export_command

    return export_command(options)


def _report(argv: list[str]) -> int:
    options, _ = parse_options(
        "report",
        argv,
        ReportOptions,
        description="Write one self-contained HTML page about a run or a study.",
        positional=("run", "?", "Folder of a run or a study."),
    )
    from .commands import report_command

    return report_command(options)


def _train(argv: list[str]) -> int:
    from .train import main as train

    return train(argv)


if __name__ == "__main__":
    run()
