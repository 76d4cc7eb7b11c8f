"""The rows of a study as processes: so many side by side, each once those that it needs are done.

Source of what a row does: `rows`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from .rows import Job


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row with one seed, and whether its steps must not be recorded."""

    job: Job
    seed: int
    eager: bool = False

    @property
    def name(self) -> str:
        """Of the row's file."""
        return f"{self.job.name}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A task's process, when it began, and the place it takes."""

    task: Task
    process: subprocess.Popen[bytes]
    begun: float
    slot: int


def row_file(folder: Path, name: str, seed: int) -> Path:
    """Return where a row writes what it found."""
    return folder / "rows" / f"{name}-{seed}.json"


def run_rows(folder: Path, waiting: list[tuple[Job, int]], parallel: int, minutes: float | None = None) -> list[str]:
    """Do rows, those first that come first.

    A row that fails runs again without a recorded step, and has failed if it fails once more.

    Args:
        folder: Of the study.
        waiting: Rows and seeds.
        parallel: Rows at a time; on a machine with several GPUs they are spread over them.
        minutes: After which rows that run are stopped and no others begin.

    Returns:
        Names of the rows that failed, or that wait for one that did.
    """
    (folder / "logs").mkdir(exist_ok=True)
    tasks = [Task(job=job, seed=seed) for job, seed in waiting]
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    running: list[Running] = []
    failed: list[str] = []
    done, total = 0, len(tasks)
    while tasks or running:
        if deadline is not None and time.monotonic() > deadline:
            _stop(running)
            _say(f"{len(running)} rows stopped, {len(tasks)} not begun: the time is over; the same command goes on")
            break
        _begin(folder, tasks, running, failed, parallel)
        for one in [r for r in running if r.process.poll() is not None]:
            running.remove(one)
            name, seconds = one.task.name, f"{time.monotonic() - one.begun:.0f} s"
            if one.process.returncode == 0:
                done += 1
                _say(f"{done}/{total} {name}: done in {seconds}")
            elif not one.task.eager:
                _say(f"{name}: failed after {seconds}, see {folder / 'logs' / name}.log; once more, step by step")
                tasks.insert(0, replace(one.task, eager=True))
            else:
                failed.append(name)
                _say(f"{name}: FAILED after {seconds}, see {folder / 'logs' / name}.log")
        time.sleep(0.2)
    return failed


def _begin(folder: Path, tasks: list[Task], running: list[Running], failed: list[str], parallel: int) -> None:
    """Start what can start; what waits for a failed row has failed."""
    for task in list(tasks):
        needs = [(need, task.seed) for need in task.job.needs]
        if any(f"{need}-{seed}" in failed for need, seed in needs):
            failed.append(task.name)
            tasks.remove(task)
        elif len(running) < parallel and all(row_file(folder, *need).is_file() for need in needs):
            slot = min(set(range(parallel)) - {r.slot for r in running})
            process = _start(folder, task, slot)
            running.append(Running(task=task, process=process, begun=time.monotonic(), slot=slot))
            tasks.remove(task)


def _start(folder: Path, task: Task, slot: int) -> subprocess.Popen[bytes]:
    import torch

    environment = dict(os.environ)
    count = torch.cuda.device_count()
    if count > 1:
        given = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = given[slot % count] if len(given) == count else str(slot % count)
    command = [sys.executable, "-m", "vim_compress.rows", str(folder), task.job.name, str(task.seed)]
    with (folder / "logs" / f"{task.name}.log").open("ab") as log:
        return subprocess.Popen([*command, *["eager"] * task.eager], stdout=log, stderr=log, env=environment)


def _stop(running: list[Running]) -> None:
    for one in running:
        one.process.kill()
    for one in running:
        one.process.wait()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
