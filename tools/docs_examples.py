"""Run the examples of the documentation: every fenced `bash` and `python` block of every README and docs page.

    python tools/docs_examples.py [PAGE or FOLDER ...]

Each page gets an empty folder, in which `tools/docs_given.py` puts what the page takes for granted ("your photo.jpg").
Its blocks run there from top to bottom, and its Python blocks share their names. A fence says how its block is run:

    ```bash         as it stands
    ```bash long    would take minutes to hours, or another machine: each command is read by its own program, which
                    refuses wrong names and values; a training then runs for one step with the preset `tiny`, and the
                    commands in docs_given's SMALL with the options there. The rest is only read.
    ```python       as it stands

Commands of other programs are not run: `pip install` is compared with the packages' extras, `accelerate launch`
and `torchrun` are read by these programs and their training runs in one process. The last line says how many commands
and blocks were run, run small, or only read; the exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
import docs_given

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hybrid-sr", "mamba-diffusion", "muse-mamba", "ssm-kernels", "vim-compress")
FENCE = re.compile(r"^```(bash|python)( long)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAUNCHERS = ("accelerate", "torchrun")
NOT_OURS = ("apt-get", "uv", "git", "cd")  # read by nobody here


class Failed(Exception):
    """An example does not do what the page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line of its first line, its language, whether it is long, its text."""

    page: Path
    line: int
    language: str
    long: bool
    text: str


@dataclass(frozen=True)
class Call:
    """One of our programs: a console script's verb, or a module run with `python -m`."""

    package: str
    verb: str
    argv: tuple[str, ...]

    @property
    def module(self) -> str:
        """The package's module."""
        return self.package.replace("-", "_")


def pages() -> list[Path]:
    """Return every README and page of the workspace."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    for package in PACKAGES:
        found += [*ROOT.glob(f"packages/{package}/*.md"), *ROOT.glob(f"packages/{package}/docs/**/*.md")]
    return sorted(found)


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        Failed: A fence carries a tag that this tool does not know, so that its block would be passed over.
    """
    text = page.read_text(encoding="utf-8")
    known = {match.start() for match in FENCE.finditer(text)}
    for match in re.finditer(r"^```(bash|sh|shell|console|python|py)\b.*\n", text, re.MULTILINE):
        if match.start() not in known:
            line = text.count("\n", 0, match.start()) + 1
            raise Failed(
                f"{page.name}:{line}: {match.group().strip()} must be bash, bash long or python, and be closed"
            )
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[1], match[2] is not None, match[3])
        for match in FENCE.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the words of every command; a backslash at the end of a line joins lines."""
    line = block.line
    for command in re.split(r"(?<!\\)\n", block.text):
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        if words:
            yield line, words
        line += command.count("\n") + 1


class Page:
    """The examples of one page, run in the current folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, Any] = {"__name__": "example"}
        self.seen = Counter[str]()

    def run(self) -> None:
        """Run every block.

        Raises:
            Failed: With the page, the line and the reason.
        """
        blocks = blocks_of(self.path)
        name = str(self.path.relative_to(ROOT))
        if blocks:
            docs_given.prepare(name, self.names)
        if name in docs_given.FIRST:
            self.run_command(shlex.split(docs_given.FIRST[name]), long=True)
        for block in blocks:
            if block.language == "python":
                self.run_python(block)
                continue
            for line, words in commands_of(block):
                with self.reasons(line):
                    self.seen[self.run_command(words, long=block.long)] += 1

    def run_python(self, block: Block) -> None:
        """Run a Python block with the names that those above it left."""
        source = "\n" * (block.line - 1) + block.text  # so that a traceback shows the page's line
        with self.reasons(block.line), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, str(self.path), "exec"), self.names)
        self.seen["run"] += 1

    @contextlib.contextmanager
    def reasons(self, line: int) -> Iterator[None]:
        """Put page and line before whatever goes wrong."""
        try:
            yield
        except Exception as error:
            detail = str(error) if isinstance(error, Failed) else traceback.format_exc()
            raise Failed(f"{self.path.relative_to(ROOT)}:{line}: {detail}") from error

    def run_command(self, words: list[str], *, long: bool) -> str:
        """Run one command line; return "run", "small" or "read"."""
        if words[:2] == ["python3", "tools/run.py"]:
            words = words[2:]
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words[0] in NOT_OURS or words[:2] in (["pytest", "-n"], ["python3", "tools/gpu_check.py"]):
            return "read"
        if words[:2] == ["pip", "install"]:
            check_install(words[2:])
            return "read"
        if words[0] == "python" and words[1].startswith("tools/"):
            run_tool(words[1:], read_only=long)
            return "read" if long else "run"
        launched = words[0] in LAUNCHERS
        if launched and (script := next((word for word in words if word.endswith(".py")), None)):
            read_launcher(words, script=script)
            return "read"
        call, target = understand(words)
        shortened = (launched or long) and "--print_config" not in call.argv
        if shortened:
            check(call)
            small = docs_given.small(call.package, call.verb, call.argv)
            if small is None:
                return "read"
            call = Call(call.package, call.verb, tuple(small))
        text = execute(call)
        if target is not None:
            target.write_text(text)
        return "small" if shortened else "run"


def understand(words: list[str]) -> tuple[Call, Path | None]:
    """Return which of our programs a command runs, and the file its output goes to.

    Raises:
        Failed: It is none of ours.
    """
    target = None
    if ">" in words:
        place = words.index(">")
        target, words = Path(words[place + 1]), words[:place]
    if words[0] in LAUNCHERS:
        words = ["python", *read_launcher(words)]
    if words[0] == "python" and words[1:2] == ["-m"]:
        module, _, part = words[2].partition(".")
        verb = {"tokenizer.train": "train-tokenizer", "": words[3] if len(words) > 3 else ""}.get(part, part)
        return Call(module.replace("_", "-"), verb, tuple(words[3 if part else 4 :])), target
    if words[0] in PACKAGES and len(words) > 1:
        return Call(words[0], words[1], tuple(words[2:])), target
    raise Failed(f"this tool knows no program called {words[0]!r}; teach it, or take the fence's tag away")


def read_launcher(words: list[str], script: str | None = None) -> list[str]:
    """Let accelerate or torchrun read its own options; return `-m MODULE ARGUMENTS`.

    Raises:
        Failed: It starts neither a module nor the file `script` of this repository.
    """
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        found = get_args_parser().parse_args(words[1:])
    else:
        from accelerate.commands.launch import launch_command_parser

        found = launch_command_parser().parse_args(words[2:])
        if found.config_file is not None:
            from accelerate.commands.config.config_args import load_config_from_file

            load_config_from_file(str(ROOT / found.config_file))
    if not (found.module or (script is not None and (ROOT / script).is_file())):
        raise Failed(f"{words[0]}: give the trainer as -m MODULE, or a file of this repository that exists")
    return ["-m", found.training_script, *found.training_script_args]


def run_tool(words: list[str], *, read_only: bool) -> None:
    """Run a file of tools/, or only let it read its options.

    Raises:
        Failed: It ends with another code than 0.
    """
    stopped = stopped_after_reading(Call("ssm-kernels", "", ())) if read_only else contextlib.nullcontext()
    with mock.patch.object(sys, "argv", words), stopped, contextlib.suppress(Understood):
        call_with(lambda _: runpy.run_path(str(ROOT / words[0]), run_name="__main__"), [])


class Understood(BaseException):
    """A command line was read without complaint."""


def check(call: Call) -> None:
    """Let the program read its command line, and stop it before it works.

    Raises:
        Failed: It refuses the command line.
    """
    if call.verb in ("train", "train-tokenizer"):
        module = importlib.import_module(trainer(call))
        call_with(lambda argv: module.parse(*filter(None, [getattr(module, "TRAINER", None)]), argv), list(call.argv))
        return
    with stopped_after_reading(call), contextlib.suppress(Understood):
        call_with(target_of(call), arguments_of(call))
        raise Failed(f"{call.package} {call.verb} ended before it had read its options")


@contextlib.contextmanager
def stopped_after_reading(call: Call) -> Iterator[None]:
    """Make the parsers of verbs raise Understood when they are done."""

    def after(parse: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*arguments: Any, **options: Any) -> Any:
            parse(*arguments, **options)
            raise Understood

        return stop

    with contextlib.ExitStack() as stack:
        if call.package == "ssm-kernels" or call.verb == "pack":
            stack.enter_context(
                mock.patch.object(argparse.ArgumentParser, "parse_args", after(argparse.ArgumentParser.parse_args))
            )
        else:
            for name in ("cli", "arguments"):
                module = importlib.import_module(f"{call.module}.{name}")
                if hasattr(module, "parse_options"):
                    stack.enter_context(mock.patch.object(module, "parse_options", after(module.parse_options)))
        yield


def trainer(call: Call) -> str:
    """Return the module that trains."""
    return f"{call.module}.tokenizer.train" if call.verb == "train-tokenizer" else f"{call.module}.train"


def target_of(call: Call) -> Callable[..., Any]:
    """Return the function behind a program."""
    return importlib.import_module(f"{call.module}.{'pack' if call.verb == 'pack' else 'cli'}").main


def arguments_of(call: Call) -> list[str]:
    """Return what the function of a program takes."""
    return list(call.argv) if call.verb == "pack" else [call.verb, *call.argv]


def call_with(function: Callable[..., Any], argv: list[str]) -> str:
    """Call a program's function and return what it prints.

    Raises:
        Failed: Its exit code is not 0; the reason is the last line it says.
    """
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        try:
            outcome = function(argv)
        except SystemExit as stop:
            outcome = stop.code
    if isinstance(outcome, int) and outcome != 0:
        raise Failed((said.getvalue().strip() or f"exit code {outcome}").splitlines()[-1])
    return printed.getvalue()


def execute(call: Call) -> str:
    """Run a program in this process, which saves importing torch each time; return what it prints.

    Raises:
        Failed: Its exit code is not 0.
    """
    if call.verb.startswith("train"):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return call_with(target_of(call), arguments_of(call))


def check_install(words: Sequence[str]) -> None:
    """Compare what `pip install` is given with the packages and extras there are.

    Raises:
        Failed: One of them does not exist.
    """
    for word in (word for word in words if not word.startswith("-")):
        name, _, extras = word.removeprefix("./packages/").rstrip("]").partition("[")
        file = ROOT / "packages" / name / "pyproject.toml"
        if not file.is_file():
            raise Failed(f"pip install {word}: there is no such package here")
        known = tomllib.loads(file.read_text())["project"].get("optional-dependencies", {})
        if lacking := sorted(set(filter(None, extras.split(","))) - set(known)):
            raise Failed(f"pip install {word}: {name} has no extra {', '.join(lacking)}")


def run_page(path: Path) -> tuple[Counter[str], str]:
    """Run a page in a folder of its own; return what was done, and the reason of a failure or an empty text."""
    page, home, modules = Page(path), Path.cwd(), set(sys.modules)
    with tempfile.TemporaryDirectory(prefix="docs-examples-") as folder:
        os.chdir(folder)
        try:
            page.run()
        except Failed as reason:
            return page.seen, str(reason)
        finally:
            os.chdir(home)
            for name in set(sys.modules) - modules:  # compat.install() lends these names
                if name.split(".")[0] in ("mamba_ssm", "causal_conv1d"):
                    del sys.modules[name]
    return page.seen, ""


def chosen(paths: Sequence[str]) -> list[Path]:
    """Return the pages that the arguments name, or that lie below the folders that they name."""
    wanted = [Path(path).resolve() for path in paths]
    found = [page for page in pages() if not wanted or any(page == path or path in page.parents for path in wanted)]
    if not found:
        raise SystemExit(f"docs_examples: no page below {', '.join(paths)}; give a README, a page or a folder of them")
    return found


def main() -> int:
    """Run the pages; 1 if an example failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PAGE", help="pages or folders of pages, by default all")
    warnings.simplefilter("ignore")
    done, failed = Counter[str](), 0
    for path in chosen(parser.parse_args().paths):
        start = time.perf_counter()
        seen, reason = run_page(path)
        done += seen
        failed += bool(reason)
        if seen or reason:
            counts = ", ".join(f"{number} {kind}" for kind, number in sorted(seen.items()))
            print(f"{path.relative_to(ROOT)}: {counts or 'none'}, {time.perf_counter() - start:.1f} s", flush=True)
        if reason:
            print(f"FAILED {reason}", flush=True)
    print(
        f"docs examples: {done['run']} run, {done['small']} run small, {done['read']} only read, {failed} pages failed"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
