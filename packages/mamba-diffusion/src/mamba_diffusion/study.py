"""Many runs under one budget, and their figures: methods x learning rates x seeds, resumable, several side by side.

A row is a run. The first seed tries every rate; the one with the best PSNR of the mean at 20 % sensors is the method's,
and the other seeds take only that one. Rows of the best rate are measured at all shares and resolutions. Parts, sensors
and seeds of the noise are the same for all rows, and for the classical methods.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import numpy as np

from .arguments import StudyOptions
from .checkpoint import replace_text

SHARE = 0.2
SHARES = (SHARE, 0.05, 0.1, 0.5)
SIDE = 32
SAMPLES, STEPS = 16, 5  # of Heun: ten evaluations
SCREENED = 12  # parts that rates are chosen by
FINER = 4  # parts that finer grids are measured on
SHORT = 4_000  # runs of fewer steps are saved at their end only
REFERENCE = "v1"  # that speckle reductions are against
WAIT = 0.5  # seconds between looks at the running jobs
PLANS: dict[str, tuple[tuple[str, str], ...]] = {
    "rgb": tuple((name, "rgb") for name in ("v1-legacy", "v1", "v2", "v4", "ours")),
    "fields": tuple((name, subject) for subject in ("sst", "topography") for name in ("v2", "ours-scalar")),
    "smoke": (("tiny-v2", "rgb"), ("tiny", "rgb")),
}


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        method: Its preset.
        subject: What it is trained on.
        lr: Peak learning rate.
        seed: Of the training.
    """

    method: str
    subject: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and row."""
        return f"{self.method}-{self.subject}-lr{self.lr:g}-seed{self.seed}"

    def command(self, options: StudyOptions, out: Path) -> list[str]:
        """Return how it is run, or gone on with."""
        command = [sys.executable, "-m", "mamba_diffusion.train", self.method, "--out", str(out)]
        values = {
            "subject": self.subject,
            "validation": "none",
            "steps": options.steps,
            "warmup": min(500, options.steps // 10),
            "global_batch": options.batch,
            "micro_batch": options.batch,
            "lr": self.lr,
            "min_lr": self.lr / 100,
            "seed": self.seed,
            "precision": options.precision,
            "graph": str(options.graph).lower(),
            "log_every": max(1, options.steps // 50),
            "save_every": max(1, options.steps // 4) if options.steps >= SHORT else options.steps,
            "sample_every": options.steps,
            "keep": 1,
            "workers": 2,
            "sensors": "[0.05,0.5]",
            "sides": f"[{SIDE}]",
            "queries": f"[{options.queries}]",
        }
        if options.data is not None:
            values["data"] = options.data
        if self.subject != "rgb":
            values |= {"model.channels": 1, "min_contrast": 0.02}
        command += [x for name, value in values.items() for x in (f"--{name}", str(value))]
        return [*command, "--resume"] if (out / "config.json").is_file() else command


def study_command(options: StudyOptions) -> int:
    """Run `mamba-diffusion study`: 0 when every row is there, 1 when time ran out or runs failed."""
    rates, baselines = _rates(options.rates), _baselines(options.baselines)
    methods = PLANS[options.plan]
    if options.methods is not None:
        chosen = options.methods.split(",")
        methods = tuple(m for m in methods if m[0] in chosen)
        if not methods:
            known = ", ".join(dict.fromkeys(name for name, _ in PLANS[options.plan]))
            raise ValueError(f"--methods: must be among {known}, got {options.methods}")
    study = Study(options)
    first = [Job(name, subject, lr, 0) for name, subject in methods for lr in rates]
    if len(rates) == 1:  # nothing to choose: all seeds train together
        first += [Job(name, subject, rates[0], n) for name, subject in methods for n in range(1, options.seeds)]
    failed = study.train(first)
    study.screen(first)
    best = [study.best(name, subject, rates) for name, subject in methods]
    more = [Job(j.method, j.subject, j.lr, seed) for j in best if j is not None for seed in range(1, options.seeds)]
    failed += study.train(more)
    study.measure([j for j in best if j is not None] + more)
    study.measure_baselines(baselines, {subject for _, subject in methods})
    if study.rows:
        study.write()
    study.say(study.text())
    complete = not failed and None not in best and all(study.done(j, "full") for j in [*best, *more] if j is not None)
    return 0 if complete else 1


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0:
        raise ValueError(f"--rates: must be numbers above 0 with commas between, got {text}")
    return rates


def _baselines(text: str) -> list[str]:
    from .baselines import BASELINES

    names = [name for name in text.split(",") if name not in ("", "none")]
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"--baselines: must be none or among {', '.join(BASELINES)}, got {name}")
    return names


class Study:
    """The folder of a study: study.json with its rows, and runs/.

    Args:
        options: What is asked for.
    """

    def __init__(self, options: StudyOptions) -> None:
        self.options, self.out = options, options.out
        self.deadline = time.monotonic() + 60 * options.max_minutes
        (self.out / "runs").mkdir(parents=True, exist_ok=True)
        self.file = self.out / "study.json"
        self.rows: dict[str, dict[str, Any]] = {}
        self._parts: dict[tuple[str, int], list[Any]] = {}
        others = [Path(name) / "study.json" for name in (options.merge or "").split(",") if name]
        for file in others:
            if not file.is_file():
                raise ValueError(f"--merge: {file} is not there; give the folders of other studies")
        for file in [*others, *([self.file] if self.file.is_file() else [])]:
            for row in json.loads(file.read_text())["rows"]:
                self.rows[row["name"]] = self.rows.get(row["name"], {}) | row

    def say(self, text: str) -> None:
        """Show a line."""
        print(text, flush=True)

    def done(self, job: Job, kind: str) -> bool:
        """Whether a row is there: "screen", or "full" with all its cases."""
        found = self.rows.get(job.name, {})
        return kind in found and (kind == "screen" or len(found[kind]) == len(self.cases()))

    def finished(self, job: Job) -> bool:
        """Whether a run reached its last step."""
        metrics = self.out / "runs" / job.name / "metrics.jsonl"
        if not metrics.is_file() or not (metrics.parent / "model" / "config.json").is_file():
            return False
        lines = metrics.read_text().splitlines()
        return bool(lines) and json.loads(lines[-1])["step"] >= self.options.steps - self.options.steps % self._every()

    def _every(self) -> int:
        return max(1, self.options.steps // 50)

    def train(self, jobs: list[Job]) -> list[Job]:
        """Run what is neither finished nor measured, `jobs` at a time; return what failed or found no time to start."""
        waiting = [
            job for job in jobs if not (self.finished(job) or self.done(job, "screen") or self.done(job, "full"))
        ]
        running: dict[Job, subprocess.Popen[bytes]] = {}
        failed: list[Job] = []

        def stop(*_: object) -> NoReturn:  # Ctrl-C reaches the runs by itself, a SIGTERM does not
            for process in running.values():
                process.terminate()
            for process in running.values():  # they save first; a second signal kills them
                process.wait()
            sys.exit(128 + signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            self._train(waiting, running, failed)
        finally:
            signal.signal(signal.SIGTERM, before)
        return failed

    def _train(self, waiting: list[Job], running: dict[Job, subprocess.Popen[bytes]], failed: list[Job]) -> None:
        while waiting or running:
            while waiting and len(running) < self.options.jobs:
                job = waiting.pop(0)
                if time.monotonic() > self.deadline or self.options.figures:
                    failed.append(job)
                    continue
                out = self.out / "runs" / job.name
                with (self.out / "runs" / f"{job.name}.log").open("ab") as log:
                    running[job] = subprocess.Popen(job.command(self.options, out), stdout=log, stderr=log)
                self.say(f"started {job.name}")
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    self.say(f"{'done' if process.returncode == 0 else 'failed'} {job.name}")
                    failed += [job] if process.returncode else []
            time.sleep(WAIT if running else 0)

    def screen(self, jobs: list[Job]) -> None:
        """Measure runs at 20 % sensors on the first grid."""
        for job in jobs:
            if self.finished(job) and not self.done(job, "screen"):
                self.keep(self._facts(job) | {"screen": next(self._figures(job, [(SHARE, SIDE)], SCREENED))})

    def measure(self, jobs: list[Job]) -> None:
        """Measure runs at every share on the first grid, and at 20 % on the finer ones."""
        for job in jobs:
            if self.finished(job) and not self.done(job, "full"):
                facts = self.rows.get(job.name) or self._facts(job)
                found: list[dict[str, Any]] = []
                for case in self._figures(job, self.cases()):
                    found.append(case)
                    self.keep(facts | {"full": found})

    def cases(self) -> list[tuple[float, int]]:
        """Return shares and resolutions."""
        finer = [int(r) for r in self.options.resolutions.split(",") if r]
        return [(share, SIDE) for share in SHARES] + [(SHARE, r) for r in finer]

    def best(self, method: str, subject: str, rates: list[float]) -> Job | None:
        """Return a method's run with the best PSNR of the mean; None if none was measured."""
        jobs = [Job(method, subject, lr, 0) for lr in rates]
        known = [job for job in jobs if self.done(job, "screen")]
        return max(known, key=lambda j: self.rows[j.name]["screen"]["psnr_mean"], default=None)

    def _facts(self, job: Job) -> dict[str, Any]:
        metrics = (self.out / "runs" / job.name / "metrics.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in metrics]
        rate = median(line["samples_per_s"] for line in lines)
        return {
            "name": job.name,
            "method": job.method,
            "subject": job.subject,
            "lr": job.lr,
            "seed": job.seed,
            "steps": self.options.steps,
            "batch": self.options.batch,
            "jobs_side_by_side": self.options.jobs,
            "step_ms": 1e3 * self.options.batch / rate,
            "peak_bytes": max(line["peak_bytes"] for line in lines),
            "last_loss": lines[-1]["loss"],
        }

    def _figures(self, job: Job, cases: list[tuple[float, int]], most: int | None = None) -> Iterator[dict[str, Any]]:
        from .device import pick_device
        from .evaluate import evaluate_model
        from .predict import Prediction
        from .samplers import SamplerConfig
        from .weights import load_model

        device = pick_device("auto")
        model = load_model(self.out / "runs" / job.name, device=device)
        self.rows.setdefault(job.name, {})["parameters"] = sum(p.numel() for p in model.parameters())
        asked = Prediction(samples=SAMPLES, sampler=SamplerConfig(steps=STEPS), bf16=self.options.precision == "bf16")
        for share, resolution in cases:
            parts = self.parts(job.subject, share, resolution)
            parts = parts[:: max(1, len(parts) // most)][:most] if most else parts
            result = evaluate_model(model, parts, device, asked, resolution=None if resolution == SIDE else resolution)
            found = _compact(result, share, resolution)
            self.say(f"{job.name} {share:.0%} {resolution}: PSNR of the mean {found['psnr_mean']:.2f} dB")
            yield found

    def parts(self, subject: str, share: float, resolution: int) -> list[Any]:
        """Return the held-out parts, with their truth at a finer resolution if that is asked for."""
        from .fieldset import find_parts

        if (subject, resolution) not in self._parts:
            finer = () if resolution == SIDE else (resolution,)
            self._parts[subject, resolution] = find_parts(
                self.options.data,
                subject,  # pyright: ignore[reportArgumentType]
                split="held-out",
                side=SIDE,
                share=SHARE,
                count=min(self.options.count, FINER) if finer else self.options.count,
                resolutions=finer,
            )
        return [part.with_share(share, n) for n, part in enumerate(self._parts[subject, resolution])]

    def measure_baselines(self, names: list[str], subjects: set[str]) -> None:
        """Measure classical methods as `measure` does the runs."""
        from .evaluate import evaluate_baseline

        for subject in sorted(subjects):
            for name in names:
                row = f"{name}-{subject}"
                if row in self.rows:
                    continue
                try:
                    cases = []
                    for share, side in self.cases():
                        finer = None if side == SIDE else side
                        result = evaluate_baseline(name, self.parts(subject, share, side), finer)
                        cases.append(_compact(result, share, side))
                except ValueError as missing:
                    self.say(f"{row}: left out, {missing}")
                    continue
                self.keep({"name": row, "method": name, "subject": subject, "full": cases})

    def keep(self, row: dict[str, Any]) -> None:
        """Put a row into study.json."""
        self.rows[row["name"]] = self.rows.get(row["name"], {}) | row
        self.write()

    def write(self) -> None:
        """Write study.json."""
        from ssm_kernels.bench import environment

        from .device import pick_device
        from .evaluate import finite

        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.options).items()}
        record = {"rows": list(self.rows.values()), "options": options, "environment": environment(pick_device("auto"))}
        record["against"] = self.against()
        replace_text(self.file, json.dumps(finite(record), indent=1) + "\n")

    def against(self) -> dict[str, Any]:
        """Return every row's speckle reduction against v1 of the first seed at its best rate, with its interval.

        Both are taken from the full measurement, or from the screening where one of them has no other.
        """
        from .metrics import ratio_reduction

        found = {}
        for row in self.rows.values():
            known = [r for r in self.rows.values() if _is_reference(r, row["subject"])]
            reference = max(known, key=lambda r: r["screen"]["psnr_mean"], default=None)
            if reference is None or "screen" not in row or row is reference:
                continue
            full = "full" in row and "full" in reference
            cases = [_at(r, SHARE, SIDE) if full else r["screen"] for r in (reference, row)]
            a, b = (np.array(case["xsi_parts"], np.float64) for case in cases)
            found[row["name"]] = list(ratio_reduction(a, b))
        return found

    def text(self) -> str:
        """Return the rows as a table, at 20 % sensors on the first grid."""
        names = ("psnr", "psnr_mean", "ssim_mean", "xsi", "crps", "coverage")
        lines = [f"{'row':<36}{'parameters':>12}{'step ms':>9}" + "".join(f"{n:>11}" for n in names)]
        for row in self.rows.values():
            case = _at(row, SHARE, SIDE) if "full" in row else row.get("screen")
            if case is None:
                continue
            cells = "".join(f"{case[n]:>11.4f}" if case[n] is not None else f"{'':>11}" for n in names)
            step = f"{row['step_ms']:.1f}" if "step_ms" in row else ""
            lines.append(f"{row['name']:<36}{row.get('parameters', 0):>12,}{step:>9}{cells}")
        return "\n".join(lines)


def _is_reference(row: dict[str, Any], subject: str) -> bool:
    return (row["method"], row["subject"], row.get("seed")) == (REFERENCE, subject, 0) and "screen" in row


def _at(row: dict[str, Any], share: float, resolution: int) -> dict[str, Any]:
    return next(case for case in row["full"] if (case["share"], case["resolution"]) == (share, resolution))


def _compact(result: dict[str, Any], share: float, resolution: int) -> dict[str, Any]:
    """Return the means of a result, its intervals, and the speckle index of every part."""
    from .evaluate import finite

    means = {name: interval[0] for name, interval in result["mean"].items()}
    intervals = {f"{name}_95": interval[1:] for name, interval in result["mean"].items() if name != "seconds"}
    case = {"share": share, "resolution": resolution, "parts": len(result["rows"])}
    return finite({**case, **means, **intervals, "xsi_parts": [row["xsi"] for row in result["rows"]]})
