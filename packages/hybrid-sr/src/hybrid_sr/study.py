"""The light networks trained under one budget: rows, a table, plots. Importing this imports no torch.

A run is a process of its own in DIR/runs/ROW-SEED, several side by side on one device. One that is done leaves
DIR/rows/ROW-SEED.json and is not repeated, one that was stopped goes on: a study can be given to a machine in pieces.
Speeds are measured one network at a time, after the runs: DIR/speed/ROW.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .studyrows import Row, find_rows

SETTINGS, ALL = "study-config.json", "study.json"
POLL = 0.5  # seconds between looks at the running processes
FAMILIES = ("light",)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of `hybrid-sr study`.

    Attributes:
        out: Folder of the study; what is done there is not done again.
        data: As for training: a packed folder, a folder of pictures, debian-photos; the Earth mosaics if not given.
        test: Comma-separated sets that the result is measured on: held-out (of a packed folder), scikit-image,
            scikit-learn, foolbox, or folders of originals; "auto" takes what is there of held-out, scikit-image and
            scikit-learn.
        curve: Photos of the PSNR curve: auto (the data's validation photos, or packaged ones) or a folder; at most 8.
        rows: Comma-separated rows, or all.
        seeds: Comma-separated; all rows of a seed come before the next seed.
        scale: Upscaling factor.
        steps: Of every run.
        batch: Crops of a step.
        patch: Side of a crop in low-resolution pixels.
        points: Of the PSNR curve.
        lr: Peak learning rate.
        graph: Replay training as CUDA graphs.
        workers: Loader processes of every run.
        jobs: Runs side by side.
        max_minutes: Stop after this time; runs that are under way are saved and go on next time.
        phase: Train, time the networks one by one (leave the machine alone meanwhile), report; or all three.
    """

    out: Path | None = None
    data: str | None = None
    test: str = "auto"
    curve: str = "auto"
    rows: str = "all"
    seeds: str = "10,11"
    scale: Literal[2, 3, 4] = 4
    steps: int = 2000
    batch: int = 8
    patch: int = 64
    points: int = 10
    lr: float = 1e-3
    graph: bool = False
    workers: int = 2
    jobs: int = 4
    max_minutes: float | None = None
    phase: Literal["all", "train", "time", "report"] = "all"

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        if self.out is None:
            raise ValueError("--out is missing; give the folder of the study, as in --out runs/study")
        for name in ("steps", "batch", "patch", "points", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")
        if self.points > self.steps:
            raise ValueError(f"--points: must be at most --steps {self.steps}, got {self.points}")

    def settings(self) -> dict[str, Any]:
        """Return what all runs of a study share; another value is another study."""
        names = ("data", "test", "curve", "scale", "steps", "batch", "patch", "points", "lr", "graph")
        return {name: value for name, value in asdict(self).items() if name in names}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a row and a seed."""

    row: Row
    seed: int
    study: Path

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.row.name}-{self.seed}"

    @property
    def result(self) -> Path:
        """Its row, which is there when it is done."""
        return self.study / "rows" / f"{self.name}.json"


def study_command(family: str | None, options: StudyOptions) -> int:
    """Run `hybrid-sr study`."""
    if family not in FAMILIES:
        raise ValueError(f"the family must be one of {', '.join(FAMILIES)}, got {family}; try: hybrid-sr study light")
    assert options.out is not None
    jobs = plan_jobs(options)
    failed: list[str] = []
    if options.phase in ("all", "train"):
        keep_settings(options.out, options.settings())
        failed = run_jobs(jobs, options)
    done = [job for job in jobs if job.result.is_file()]
    print(f"{len(done)} of {len(jobs)} runs are done" + ("" if len(done) == len(jobs) else "; give the command again"))
    if options.phase in ("all", "time") and (options.phase == "time" or len(done) == len(jobs)):
        keep_settings(options.out, options.settings())
        time_rows(options)
    if options.phase in ("all", "report"):
        from .studyreport import report

        for file in report(options.out):
            print(f"  {file}")
    return 1 if failed else 0


def plan_jobs(options: StudyOptions) -> list[Job]:
    """Return the runs, all rows of a seed before the next seed.

    Raises:
        ValueError: A row or seed is none.
    """
    rows = find_rows(options.rows)
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds: must be whole numbers separated by commas, got {options.seeds}") from error
    assert options.out is not None
    return [Job(row=row, seed=seed, study=options.out) for seed in seeds for row in rows]


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what the study is about, or see that it is the same.

    Raises:
        ValueError: The folder is of another study, or cannot be written.
    """
    file = folder / SETTINGS
    if file.is_file():
        before = json.loads(file.read_text())
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            name = changed[0]
            found = f"{name} {before.get(name)} in {folder}, {settings[name]} now"
            raise ValueError(f"--out: must be of a study with these settings, got {found}; give those, or a new folder")
        return
    try:
        for name in ("rows", "runs", "logs", "speed"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write(file, settings)
    except OSError as error:
        raise ValueError(f"--out: {folder} cannot be written: {error}; choose another folder") from error


def write(file: Path, value: Any) -> None:
    """Write JSON that is whole or not there."""
    from .checkpoint import replace_text

    replace_text(file, json.dumps(value, indent=1) + "\n")


def run_jobs(jobs: list[Job], options: StudyOptions) -> list[str]:
    """Train what is not done, `jobs` runs at a time; return the names of those that failed."""
    begun = time.monotonic()
    waiting = [job for job in jobs if not job.result.is_file()]
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    failed: list[str] = []
    total, ended, stopped = len(waiting), 0, False
    try:
        while waiting or running:
            if not stopped and options.max_minutes is not None and time.monotonic() - begun > 60 * options.max_minutes:
                waiting, stopped = [], True
                for _, process, _ in running.values():
                    process.terminate()  # the trainer finishes its step and saves
            while waiting and len(running) < options.jobs:
                job = waiting.pop(0)
                running[job.name] = (job, start_job(job, options), time.monotonic())
            time.sleep(POLL)
            for name, (job, process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                ended += 1
                word = "done" if job.result.is_file() else "stopped"
                if process.returncode > 0:
                    failed.append(name)
                    word = f"FAILED, see {job.study / 'logs' / name}.log"
                print(f"{ended}/{total} {name}: {word} after {time.monotonic() - since:.0f} s", flush=True)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    return failed


def start_job(job: Job, options: StudyOptions) -> subprocess.Popen[bytes]:
    """Start the process of a run: training, then its row."""
    order = {"row": job.row.name, "seed": job.seed, "study": str(job.study), "workers": options.workers}
    command = [sys.executable, "-m", "hybrid_sr.studyrun", json.dumps(order | options.settings())]
    with (job.study / "logs" / f"{job.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def time_rows(options: StudyOptions) -> None:
    """Measure the speed of every row that has none on this kind of device, one at a time."""
    from .studyrun import time_row

    assert options.out is not None
    for row in find_rows(options.rows):
        file = options.out / "speed" / f"{row.name}.json"
        if not file.is_file():
            write(file, time_row(row, options.settings()))
            print(f"timed {row.name}", flush=True)
