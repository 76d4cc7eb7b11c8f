"""Sessions in forked processes, and what is left of a run, for tools/soak.py."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docs_given

STEPS = 8
RUN = f"--steps {STEPS} --warmup 1 --save_every 1 --log_every 1 --sample_every 100 --keep 3 --ema 0.9"


@dataclass(frozen=True)
class Ended:
    """How a session ended: exit code (the signal's negative number), what it said, its largest resident memory."""

    code: int
    text: str
    peak_bytes: int

    def one_line(self, code: int, *said: str) -> bool:
        """Whether it ended with this code and one line that says this, without a traceback."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return self.code == code and "Traceback" not in self.text and bool(lines) and all(s in lines[-1] for s in said)


class Session:
    """A function that runs in a process forked from this one.

    Args:
        function: Called with `argv`; its result or SystemExit is the exit code.
        argv: Arguments.
        log: Receives what it says.
    """

    def __init__(self, function: Callable[[list[str]], Any], argv: Sequence[str], log: Path) -> None:
        self.log, self.started = log, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(function, list(argv))

    def _work(self, function: Callable[[list[str]], Any], argv: list[str]) -> None:
        code = 70
        target = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        try:
            result = function(argv)
            code = result if isinstance(result, int) else 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def kill_after(self, seconds: float, number: signal.Signals = signal.SIGKILL) -> Ended:
        """Send a signal when this long has passed since the start, if it still runs then; wait for the end."""
        deadline = self.started + seconds
        while time.monotonic() < deadline:
            ended = self._look(os.WNOHANG)
            if ended is not None:
                return ended
            time.sleep(0.005)
        os.kill(self.pid, number)
        return self.wait()

    def wait(self, limit: float = 300.0) -> Ended:
        """Wait for the end; a process that takes longer than `limit` seconds is killed."""
        deadline = time.monotonic() + limit
        while (ended := self._look(os.WNOHANG)) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        return ended

    def _look(self, flags: int) -> Ended | None:
        pid, status, usage = os.wait4(self.pid, flags)
        if pid == 0:
            return None
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return Ended(os.waitstatus_to_exitcode(status), text, usage.ru_maxrss * 1024)


@dataclass(frozen=True)
class Trainer:
    """One of the trainers, and a short run of it."""

    package: str
    verb: str

    @property
    def name(self) -> str:
        """The trainer's name in the report."""
        return self.package if self.verb == "train" else "muse-mamba tokenizer"

    @property
    def _module(self) -> str:
        return self.package.replace("-", "_")

    def main(self, argv: list[str]) -> int:
        """Train."""
        part = "train" if self.verb == "train" else "tokenizer.train"
        return importlib.import_module(f"{self._module}.{part}").main(argv)

    def arguments(self, out: Path, *more: str) -> list[str]:
        """Return the arguments of the short run."""
        return [*docs_given.TRAIN[self.package, self.verb].split(), *RUN.split(), "--out", str(out), *more]

    def checkpoints(self, out: Path) -> list[Path]:
        """Return the checkpoints that carry a final name, newest first."""
        return importlib.import_module(f"{self._module}.checkpoint")._checkpoints(out)

    def damage(self, folder: Path) -> str | None:
        """Return what is wrong with a checkpoint, in the trainer's own words."""
        return importlib.import_module(f"{self._module}.checkpoint")._damage(folder)


def trainers() -> list[Trainer]:
    """Return all of them."""
    return [Trainer(package, verb) for package, verb in docs_given.TRAIN]


def state_of(out: Path) -> dict[str, bytes]:
    """Return the bytes of the exported weights and of the last checkpoint's weights and moments."""
    import torch

    folder = out / "checkpoints" / f"step-{STEPS:08d}"
    state = {"model": (out / "model" / "model.safetensors").read_bytes()}
    state["weights"] = (folder / "model.safetensors").read_bytes()
    for number, moments in torch.load(folder / "optimizer.bin", weights_only=True)["state"].items():
        for name, tensor in moments.items():
            state[f"{name} {number}"] = tensor.numpy().tobytes()
    return state
