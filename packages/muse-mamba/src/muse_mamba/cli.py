"""The command `muse-mamba`. Nothing heavy is imported before a verb has read its arguments."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import arguments, arguments_measure
from .parsing import parse_options

USAGE = """usage: muse-mamba VERB ...

  generate         draw pictures of a sentence
  inpaint          draw a part of a picture anew
  outpaint         draw what could be around a picture
  variation        draw a picture partly anew
  report           one HTML page: pictures of a sentence and how they came about, step by step
  train            train a token model
  train-tokenizer  train a VQ-VAE
  train-judge      train the network that finds the caption of a picture
  encode           pack pictures and encoded captions into one folder
  evaluate         measure pictures or reconstructions
  study            train every way of mixing text in under one budget, and compare
  export           ONNX, torch.export or half-precision weights
  info             parameters and operations of a model
  benchmark        time of decoding and training against the number of tokens

  muse-mamba VERB --help   options of a verb
  muse-mamba --version     version

First try:  muse-mamba generate "a red apple"
Exit codes: 0 done; 2 nothing done, the message says why.
"""

PROMPTS = ("prompts", "*", "What shall be drawn, one text each, in quotes.")


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


def _dispatch(argv: list[str]) -> int:
    verb = argv[0] if argv else ""
    verbs: dict[str, Callable[[list[str]], int]] = {
        "generate": lambda rest: _drawing("generate", rest, arguments.GenerateOptions),
        "inpaint": lambda rest: _drawing("inpaint", rest, arguments.InpaintOptions),
        "outpaint": lambda rest: _drawing("outpaint", rest, arguments.OutpaintOptions),
        "variation": lambda rest: _drawing("variation", rest, arguments.VariationOptions),
        "report": lambda rest: _drawing("report", rest, arguments.ReportOptions),
        "train": _train,
        "train-tokenizer": _train_tokenizer,
        "train-judge": _train_judge,
        "encode": _encode,
        "evaluate": _evaluate,
        "study": _study,
        "export": _export,
        "info": _info,
        "benchmark": _benchmark,
    }
    if verb in verbs:
        return _guarded(verb, verbs[verb], argv[1:])
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"muse-mamba {version('muse-mamba')}")
        return 0
    found = f"unknown verb {verb!r}" if verb else "no verb given"
    print(f"muse-mamba: {found}; choose {', '.join(verbs)} (see muse-mamba --help)", file=sys.stderr)
    return 2


def _guarded(verb: str, command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; what a user can cause ends in one line instead of a traceback."""
    try:
        return command(arguments)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except ValueError as error:
        message, code = str(error), 2
    except (MemoryError, RuntimeError) as error:  # PyTorch has types of its own for a full memory, and none on a CPU
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        message, code = "out of memory; take fewer pictures at a time, or smaller ones", 2
    except OSError as trouble:  # a full disk, a folder that may not be written to
        message, code = str(trouble), 1
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"muse-mamba {verb}: {' '.join(message.split())}", file=sys.stderr)
    return code


def run() -> NoReturn:
    """Run as a process of its own (`python -m muse_mamba`)."""
    sys.exit(main())


def _drawing(verb: str, argv: list[str], kind: type[Any]) -> int:
    # read when torch is loaded; threads that spin for long while they wait make busy cores several times slower, and
    # threads that do not spin at all make idle ones twice as slow
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    described = {
        "generate": "Draw pictures of a sentence.",
        "inpaint": "Draw anew what a mask marks in a picture.",
        "outpaint": "Make a picture smaller and draw what could be around it.",
        "variation": "Draw a share of a picture anew.",
        "report": "Write one HTML page with pictures of sentences and the steps of their decoding.",
    }[verb]
    options, prompts = parse_options(verb, argv, kind, description=described, positional=PROMPTS)
    if verb == "report":
        from .report import report_command

        return report_command(prompts, options)
    from . import generating

    return getattr(generating, f"{verb}_command")(prompts, options)


def _train(argv: list[str]) -> int:
    from .train import main as train

    return train(argv)


def _train_tokenizer(argv: list[str]) -> int:
    from .tokenizer.train import main as train

    return train(argv)


def _train_judge(argv: list[str]) -> int:
    description = "Train the network that finds the caption of a picture, on other pictures with titles."
    options, _ = parse_options("train-judge", argv, arguments_measure.JudgeOptions, description=description)
    from .judgetrain import judge_command

    return judge_command(options)


def _encode(argv: list[str]) -> int:
    description = "Pack pictures and encoded captions into one folder, for machines without the packages."
    options, _ = parse_options("encode", argv, arguments.EncodeOptions, description=description)
    from .commands import encode_command

    return encode_command(options)


def _evaluate(argv: list[str]) -> int:
    description = "Measure generated pictures, or reconstructions, against real ones."
    options, _ = parse_options("evaluate", argv, arguments_measure.EvaluateOptions, description=description)
    from .evaluate import evaluate_command

    return evaluate_command(options)


def _study(argv: list[str]) -> int:
    description = "Train every method under one budget; goes on where it was stopped."
    options, _ = parse_options("study", argv, arguments_measure.StudyOptions, description=description)
    from .study import study_command

    return study_command(options)


def _export(argv: list[str]) -> int:
    description = "Write the token model, or the tokenizer's encoder or decoder, for other programs."
    options, _ = parse_options("export", argv, arguments.ExportOptions, description=description)
    from .export import export_command

    return export_command(options)


def _info(argv: list[str]) -> int:
    options, _ = parse_options(
        "info",
        argv,
        arguments.InfoOptions,
        description="Count a model's parameters and operations.",
        positional=("preset", "?", "A token model or tokenizer, ship, or a run's model/ folder; study if not given."),
    )
    from .commands import info_command

    return info_command(options)


def _benchmark(argv: list[str]) -> int:
    description = "Time decoding and training steps against the number of tokens, weights random."
    options, _ = parse_options("benchmark", argv, arguments_measure.BenchmarkOptions, description=description)
    from .benchmark import benchmark_command

    return benchmark_command(options)


if __name__ == "__main__":
    run()
