"""The bad days of tools/soak.py: each case yields rows of the report, and says beside its name what should happen."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soak_hostile
from soak_process import Ended, Session, Trainer, state_of, trainers

Row = dict[str, Any]
LISTING_SOURCES = 50  # files that the large folder's names are links to; a file system limits the links of one
ALL = {trainer.name: trainer for trainer in trainers()}


@dataclass
class Bench:
    """The folder in which everything happens, the dice, the options, and the runs that others are compared with."""

    folder: Path
    dice: random.Random
    options: argparse.Namespace
    whole: dict[str, tuple[dict[str, bytes], float]] = field(default_factory=dict)

    def truth(self, trainer: Trainer) -> tuple[dict[str, bytes], float]:
        """Return the state at the end of an uninterrupted run, and how long it takes."""
        if trainer.name not in self.whole:
            seconds, out = [], self.new("whole")
            for _ in range(2):  # the first one also warms the caches
                shutil.rmtree(out, ignore_errors=True)
                start = time.monotonic()
                ended = Session(trainer.main, trainer.arguments(out), self.folder / "log").wait()
                seconds.append(time.monotonic() - start)
                if ended.code != 0:
                    raise RuntimeError(f"{trainer.name} does not run at all: {ended.text[-2000:]}")
            self.whole[trainer.name] = state_of(out), seconds[-1]
        return self.whole[trainer.name]

    def new(self, name: str) -> Path:
        """Return a path that is free."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def train(self, trainer: Trainer, out: Path, *more: str) -> Ended:
        """Run a session to its end."""
        return Session(trainer.main, trainer.arguments(out, *more), self.folder / "log").wait()

    def ends_equal(self, trainer: Trainer, out: Path) -> str:
        """Resume a run to its end; return what differs from the uninterrupted one, or an empty text."""
        ended = self.train(trainer, out, *(["--resume"] if out.exists() else []))
        if ended.code != 0:
            return f"resume ended with {ended.code}: {ended.text.strip().splitlines()[-1][:200]}"
        truth, state = self.truth(trainer)[0], state_of(out)
        wrong = [name for name in truth if state.get(name) != truth[name]]
        return f"differs in {', '.join(wrong[:3])}" if wrong else ""


def row(kind: str, case: str, subject: str, problems: list[str], detail: str = "") -> Row:
    """Return a row; `problems` holds an empty text for every time that it went as it should."""
    found = [problem for problem in problems if problem]
    said = "; ".join(sorted(set(found))[:3])
    passed = len(problems) - len(found)
    return {"kind": kind, "case": case, "subject": subject, "times": len(problems), "passed": passed,
            "detail": said or detail}  # fmt: skip


def kill(bench: Bench) -> Iterator[Row]:
    """No final name on a damaged checkpoint, none lost that was reported, and the run ends with the same bits."""
    for trainer in ALL.values():
        _, seconds = bench.truth(trainer)
        problems: list[str] = []
        runs, written, mid_save = 0, 0, 0
        while len(problems) < bench.options.kills:
            out, promised = bench.new("killed"), 0
            while len(problems) < bench.options.kills:
                more = ["--resume"] if out.exists() and any(out.iterdir()) else []
                session = Session(trainer.main, trainer.arguments(out, *more), bench.folder / "log")
                ended = session.kill_after(bench.dice.uniform(0.0, 1.1 * seconds))
                if ended.code != -signal.SIGKILL:
                    break  # it was done before
                promised = max(promised, saved(ended.text))
                mid_save += any((out / "checkpoints").glob("*.tmp"))
                problems.append(after_kill(trainer, out, promised))
                written += 1
            problem = bench.ends_equal(trainer, out)
            runs += 1
            if problem and problems:
                problems[-1] = problems[-1] or problem
        detail = f"over {runs} runs, all bit-equal at their ends; {mid_save} kills within a save"
        yield row("kill", "kill -9 at a random time", trainer.name, problems, detail)


def saved(text: str) -> int:
    """Return the newest step that a session reported as saved."""
    steps = [int(line.rsplit("step-", 1)[1][:8]) for line in text.splitlines() if line.startswith("saved ")]
    return max(steps, default=0)


def after_kill(trainer: Trainer, out: Path, promised: int) -> str:
    """Return what is wrong with the checkpoints of a killed run."""
    found = trainer.checkpoints(out)
    damaged = [f"{folder.name}: {why}" for folder in found if (why := trainer.damage(folder)) is not None]
    if damaged:
        return f"damaged under its final name: {damaged[0]}"
    newest = int(found[0].name.removeprefix("step-")) if found else 0
    return f"step {promised} was reported as saved and is gone" if newest < promised else ""


def sigterm(bench: Bench) -> Iterator[Row]:
    """The step is finished and saved, the exit code is 0, and a resumed run ends with the same bits."""
    for trainer in ALL.values():
        problems = []
        for number in (signal.SIGTERM, signal.SIGINT):
            out = bench.new("stopped")
            session = Session(trainer.main, trainer.arguments(out, "--save_every", "1000"), bench.folder / "log")
            deadline = time.monotonic() + 120
            while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            ended = session.kill_after(0, number)
            done = len((out / "metrics.jsonl").read_text().splitlines())
            problem = "" if ended.code == 0 else f"exit code {ended.code}"
            if not problem and not (out / "checkpoints" / f"step-{done:08d}").is_dir():
                problem = f"no checkpoint of step {done}"
            problems.append(problem or bench.ends_equal(trainer, out))
        yield row("sigterm", "SIGTERM, SIGINT", trainer.name, problems, "saved, exit 0, bit-equal after --resume")


def spoil(bench: Bench) -> Iterator[Row]:
    """The damaged checkpoint is named and skipped for the one before, and the run ends with the same bits."""
    for trainer in ALL.values():
        whole = bench.new("spoil-source")
        bench.train(trainer, whole)
        problems = []
        for _ in range(bench.options.spoils):
            out = bench.new("spoiled")
            shutil.copytree(whole, out)
            newest = trainer.checkpoints(out)[0]
            how = spoil_one(bench.dice, newest)
            ended = bench.train(trainer, out, "--resume")
            named = newest.name in ended.text
            problem = "" if ended.code == 0 and named else f"{how}: exit code {ended.code}, named: {named}"
            problems.append(problem or bench.ends_equal(trainer, out))
        yield row("spoil", "a damaged or half-written checkpoint", trainer.name, problems, "named, skipped, bit-equal")


def spoil_one(dice: random.Random, folder: Path) -> str:
    """Flip a bit of a file, cut it, empty it, remove it, or leave the folder half-written; return which."""
    file = dice.choice([file for file in sorted(folder.iterdir()) if file.stat().st_size])
    how = dice.choice(["flipped", "cut", "emptied", "removed", "half-written"])
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(data[: dice.randrange(len(data))])
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "removed":
        file.unlink()
    else:
        file.unlink()
        folder.rename(folder.with_suffix(".tmp"))
    return f"{file.name} {how}"


def nan(bench: Bench) -> Iterator[Row]:
    """The run stops before the step is applied; one line names the step and the last good checkpoint; exit 1."""
    for trainer in ALL.values():
        ended = bench.train(trainer, bench.new("nan"), "--lr", "1e30", "--warmup", "0")
        good = ended.one_line(1, "not finite at step")
        last = ended.text.strip().splitlines()[-1][:150] if ended.text.strip() else "nothing was said"
        yield row("nan", "a rate that makes the loss overflow", trainer.name, ["" if good else last], last)


@contextlib.contextmanager
def small_disk(folder: Path, size: str, *, readonly: bool = False) -> Iterator[Path | None]:
    """Mount a file system in memory; None where this user may not."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}" + (",ro" if readonly else ""), "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def disk(bench: Bench) -> Iterator[Row]:
    """At the start: one line, exit 2. Later: one line, exit 1, checkpoints whole; with room again, the same bits."""
    for trainer in ALL.values():
        with small_disk(bench.folder / "tiny", "1m") as folder:
            if folder is None:
                yield row("disk", "a full disk", trainer.name, [], "not run: no right to mount")
                return
            ended = bench.train(trainer, folder / "run")
            refused = "" if ended.one_line(2, "left") else ended.text.strip()[-200:]
        yield row("disk", "a full disk at the start", trainer.name, [refused], "one line, exit 2")
        with small_disk(bench.folder / "filling", "200m") as folder:
            assert folder is not None
            yield row("disk", "a disk that fills up", trainer.name, [fill_up(bench, trainer, folder)],
                      "one line, exit 1, checkpoints whole; with room again bit-equal")  # fmt: skip
        with small_disk(bench.folder / "readonly", "1m", readonly=True) as folder:
            assert folder is not None
            ended = bench.train(trainer, folder / "run")
            refused = "" if ended.one_line(2, "cannot be written") else ended.text.strip()[-200:]
        yield row("disk", "a folder that cannot be written", trainer.name, [refused], "one line, exit 2")


def fill_up(bench: Bench, trainer: Trainer, folder: Path) -> str:
    """Take the room away when a run has its first checkpoint; return what went wrong."""
    out, filler = folder / "run", folder / "filler"
    session = Session(trainer.main, trainer.arguments(out), bench.folder / "log")
    while not list((out / "checkpoints").glob("step-????????")) and session.log.exists():
        time.sleep(0.002)
        if time.monotonic() - session.started > 120:
            break
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    ended = session.wait()
    if ended.code == 0:
        return "it was done before the disk was full"
    if not ended.one_line(1):
        return f"exit code {ended.code}: {ended.text.strip()[-200:]}"
    if problem := after_kill(trainer, out, saved(ended.text)):
        return problem
    filler.unlink(missing_ok=True)
    return bench.ends_equal(trainer, out)


def listing(bench: Bench) -> Iterator[Row]:
    """The one broken file among very many is named, and the run trains."""
    kinds = {"hybrid-sr": "", "muse-mamba tokenizer": "", "mamba-diffusion": "", "vim-compress": "train/class0/"}
    for name, inside in kinds.items():
        trainer, folder = ALL[name], bench.new("many")
        sources = bench.new("sources")
        soak_hostile.many_files(sources, folder / inside, bench.options.files, LISTING_SOURCES)
        broken = folder / inside
        if inside:  # a picture is opened when its turn comes; the held-out ones all have theirs after one step
            shutil.copytree(Path("given/classes/class1"), folder / "train" / "class1")
            shutil.copytree(Path("given/classes"), folder / "val")
            broken = folder / "val" / "class0"
        (broken / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
        start = time.monotonic()
        session = Session(
            trainer.main,
            trainer.arguments(bench.new("run"), "--data", str(folder), "--stop_at", "1"),
            bench.folder / "log",
        )
        ended = session.wait(limit=7200)
        problem = "" if ended.code == 0 and "broken.png" in ended.text else ended.text.strip()[-200:] or f"{ended.code}"
        seen = f"{bench.options.files:,} files: {time.monotonic() - start:.0f} s, {ended.peak_bytes / 2**30:.1f} GiB"
        yield row("listing", "a broken file in a large folder", name, [problem], seen)
        shutil.rmtree(folder)


def hostile(bench: Bench) -> Iterator[Row]:
    """One line that names the file and exit code 2, no traceback, little memory; code in a checkpoint does not run."""
    for case in soak_hostile.cases(bench.folder, bench.options.rows):
        ended = Session(case.program(), case.argv, bench.folder / "log").wait(limit=1200)
        yield row("hostile", case.name, case.package, [case.problem(ended)], case.seen(ended))


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "kill": kill,
    "sigterm": sigterm,
    "spoil": spoil,
    "nan": nan,
    "disk": disk,
    "listing": listing,
    "hostile": hostile,
}
