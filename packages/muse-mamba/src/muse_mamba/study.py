"""Every way of mixing text in, trained under one budget, and what came out: rows, a table, a plot, a sheet of pictures.

A run is a process of `muse_mamba.train` in its own folder, several side by side on one device. A run that is done is
not repeated, one that was stopped is resumed, so the study can be given to a machine in pieces.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments_measure import StudyOptions
from .checks import nearest, refuse
from .config import METHODS

if TYPE_CHECKING:
    from .model import TokenModel
    from .tokenizer import VQTokenizer
    from .validation import Examples

ROW, TABLE, PLOT, SHEET, ALL = "row.json", "table.md", "study.png", "sheet.png", "study.json"
TOKENS = "tokens"  # folder of the pictures' tokens, the same for every method
POLL = 1.0  # seconds between looks at the running processes
SHEET_PROMPTS = 8
GUIDANCE = 3.0  # of every row, so that rows of different times compare
RESUMED_BADLY = 3  # times that a run may fail before it is left out


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the study: a method and a seed, in a folder."""

    method: str
    seed: int
    folder: Path

    @property
    def done(self) -> bool:
        """Whether its row is written."""
        return (self.folder / ROW).is_file()


def study_command(options: StudyOptions) -> int:
    """Run `muse-mamba study`."""
    jobs = plan_jobs(options)
    assert options.out is not None
    if not options.report_only:
        check_inputs(options)
        options.out.mkdir(parents=True, exist_ok=True)
        run_jobs(jobs, options)
    done = [job for job in jobs if job.done]
    print(f"{len(done)} of {len(jobs)} runs are done" + ("" if len(done) == len(jobs) else "; give the command again"))
    if not done:
        raise ValueError(f"--out: no finished run in {options.out}; train some first")
    rows = [json.loads((job.folder / ROW).read_text()) for job in done]
    real = align_rows(rows, done, options.data)
    for file in report(rows, options.out, done, real):
        print(f"  {file}")
    return 0


def plan_jobs(options: StudyOptions) -> list[Job]:
    """Return the runs of a study, all methods of a seed before the next seed.

    Raises:
        ValueError: A method or seed is none.
    """
    methods = list(METHODS) if options.methods == "all" else [m.strip() for m in options.methods.split(",")]
    for method in methods:
        if method not in METHODS:
            refuse("study", "methods", f"some of {', '.join(METHODS)}", repr(method), nearest(method, METHODS))
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds: must be whole numbers separated by commas, got {options.seeds}") from error
    if min(seeds) < 0:
        raise ValueError(f"--seeds: must be at least 0, got {options.seeds}; change it")
    pairs = dict.fromkeys((seed, method) for seed in seeds for method in methods)  # two runs of one folder would clash
    assert options.out is not None
    return [Job(method=method, seed=seed, folder=options.out / f"{method}-{seed}") for seed, method in pairs]


def check_inputs(options: StudyOptions) -> None:
    """Refuse a study without data or tokenizer before the first process starts.

    Raises:
        ValueError: Something is missing.
    """
    from .packed import TOKENIZER, is_packed
    from .weights import find_tokenizer

    if not is_packed(options.data):
        raise ValueError(f"--data: must be a folder written by muse-mamba encode, got {options.data}")
    assert options.data is not None
    own = Path(options.data) / TOKENIZER
    find_tokenizer(options.tokenizer or (own if own.is_dir() else None))


def run_jobs(jobs: list[Job], options: StudyOptions) -> None:
    """Train what is not done, `jobs` runs at a time; each is judged when it ends."""
    start = time.monotonic()
    waiting = [job for job in jobs if not job.done]
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    failures: dict[Path, int] = {}
    try:
        while waiting or running:
            spent = (time.monotonic() - start) / 60
            if options.max_minutes is not None and spent >= options.max_minutes:
                waiting = []
                for _, process in running.values():
                    process.terminate()  # the trainer finishes its step and saves
            while waiting and len(running) < options.jobs:
                job = waiting.pop(0)
                process = start_job(job, options)
                running[process.pid] = (job, process)
                print(f"{time.strftime('%H:%M:%S')} started {job.method} seed {job.seed}", flush=True)
            time.sleep(POLL)
            for pid, (job, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[pid]
                if process.returncode:
                    failures[job.folder] = failures.get(job.folder, 0) + 1
                    log = job.folder / "log.txt"
                    why = "".join(log.read_text(errors="replace").splitlines()[-1:])
                    print(f"{job.method} seed {job.seed} ended with {process.returncode} ({log}): {why}", flush=True)
                    mistaken = process.returncode == 2
                    if failures[job.folder] < RESUMED_BADLY and options.max_minutes is None and not mistaken:
                        waiting.append(job)
                elif job.done:
                    row = json.loads((job.folder / ROW).read_text())
                    print(f"{job.method} seed {job.seed}: loss {row['loss']:.3f} of ln V", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def start_job(job: Job, options: StudyOptions) -> subprocess.Popen[bytes]:
    """Start the process of a run: training, then its row."""
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "muse_mamba.study", json.dumps(_order(job, options))]
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _order(job: Job, options: StudyOptions) -> dict[str, Any]:
    argv = [options.recipe, "--method", job.method, "--data", str(options.data), "--seed", str(job.seed)]
    argv += ["--steps", str(options.steps), "--out", str(job.folder / "run")]
    assert options.out is not None
    argv += ["--token_cache", str(options.out / TOKENS)]
    argv += ["--log_every", str(max(1, min(100, options.steps // 2)))]
    if options.tokenizer is not None:
        argv += ["--tokenizer", str(options.tokenizer)]
    return {
        "argv": argv + shlex.split(options.extra),
        "folder": str(job.folder),
        "method": job.method,
        "seed": job.seed,
        "prompts": options.prompts,
    }


def run_job(order: dict[str, Any]) -> int:
    """Train one run (or go on with it) and write its row; called in its own process."""
    from .options import parse
    from .train import TRAINER, train

    folder = Path(order["folder"])
    asked = parse(TRAINER, order["argv"])
    started = (asked.out / "config.json").is_file()
    clock = time.monotonic()
    progress = train(asked.config, asked.out, resume_run=started)
    seconds = time.monotonic() - clock
    spent = folder / "seconds.txt"
    before = float(spent.read_text()) if spent.is_file() else 0.0
    spent.write_text(f"{before + seconds:.1f}")
    if progress.step < asked.config.steps:
        return 0
    row = judge(order, asked.out, before + seconds)
    half = folder / (ROW + ".tmp")
    half.write_text(json.dumps(row, indent=1) + "\n")
    half.rename(folder / ROW)
    return 0


def judge(order: dict[str, Any], run: Path, seconds: float) -> dict[str, Any]:
    """Measure a trained model on held-out concepts and draw its pictures of the study's prompts.

    The losses are means over the held-out pictures with their first captions; `loss` is the mean over the shares of
    hidden tokens, as a share of ln V. `caption_gap` is in nats: loss with the caption of another picture minus loss
    with the right one.
    """
    import torch
    from ssm_kernels.bench import environment

    from .packed import load_packed
    from .recipes import TrainConfig
    from .tokens import open_tokenizer, size_of
    from .validation import make_examples, measure

    config = json.loads((run / "config.json").read_text())
    cfg = _config(TrainConfig, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = open_tokenizer(cfg, device)
    model = _load_model(run / "model", device)
    assert cfg.data is not None
    pictures, cache = load_packed(Path(cfg.data))
    held = [p for p in pictures if p.split == "held-out" and p.captions]
    shown = make_examples(cfg, tokenizer, held, cache, size_of(cfg, tokenizer.config.factor))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(row["samples_per_s"] for row in metrics)
    row = {
        "method": order["method"],
        "seed": order["seed"],
        "steps": cfg.steps,
        "global_batch": cfg.global_batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "direction": cfg.model.direction,
        "train_loss": metrics[-1]["loss"],
        "seconds": round(seconds, 1),
        "samples_per_s": round(rates[len(rates) // 2], 1),
        "peak_bytes": max(row["peak_bytes"] for row in metrics),
        "held_out": len(shown.captions),
        **measure(model, shown),
    }
    row |= sample(model, tokenizer, shown, order["prompts"], Path(order["folder"]))
    return row | {"environment": environment(device)}


def sample(model: TokenModel, tokenizer: VQTokenizer, shown: Examples, count: int, folder: Path) -> dict[str, Any]:
    """Draw pictures of held-out captions with one seed, keep them, and measure what needs no other network."""
    import torch
    from PIL import Image

    from .decoding import DecodeOptions, decode
    from .metrics import code_statistics, flat_share
    from .validation import SEED, to_row

    count = min(count, len(shown.captions))
    text, mask = shown.text[:count], shown.mask[:count]
    cond = None if shown.cond is None else shown.cond[:count]
    generator = torch.Generator().manual_seed(SEED)
    clock = time.monotonic()
    ids = decode(model, text, mask, DecodeOptions(guidance=GUIDANCE), cond_ids=cond, generator=generator)
    if ids.is_cuda:
        torch.cuda.synchronize()
    seconds = time.monotonic() - clock
    pixels = to_row(tokenizer, ids, model.config.grid)
    Image.fromarray(pixels).save(folder / "pictures.png")
    Image.fromarray(to_row(tokenizer, shown.ids[:count], model.config.grid)).save(folder / "originals.png")
    (folder / "captions.json").write_text(json.dumps(shown.captions[:count]))
    side = pixels.shape[0]
    squares = pixels.reshape(side, count, side, 3).transpose(1, 0, 2, 3)
    return {
        "prompts": count,
        "sampling_seconds": round(seconds, 3),
        "flat_share": flat_share(squares),
        **code_statistics(ids.cpu().numpy(), model.config.vocab),
    }


def _config(kind: Any, values: dict[str, Any]) -> Any:
    from .config import ModelConfig

    return kind(**{**values, "model": ModelConfig.from_dict(values["model"])})


def _load_model(folder: Path, device: Any) -> TokenModel:
    from .model import TokenModel

    return TokenModel.from_pretrained(folder, device=device)


def align_rows(rows: list[dict[str, Any]], jobs: list[Job], data: str | None) -> dict[str, float]:
    """Add R@1 and R@5 to rows (and their files) that lack them, where a judge can be had; return the originals'."""
    from .studyjudge import CAPTIONS, judge_folders

    drawn = [job.folder for job in jobs if (job.folder / CAPTIONS).is_file()]
    if not drawn or all("R@5" in row for row in rows):
        return next(({k: v for k, v in row["real"].items()} for row in rows if "real" in row), {})
    found = judge_folders(drawn, data)
    if found is None:
        return {}
    for job, row in zip(jobs, rows, strict=True):
        if job.folder in drawn:
            row |= {**found[0][drawn.index(job.folder)], "real": found[1]}
            (job.folder / ROW).write_text(json.dumps(row, indent=1) + "\n")
    return found[1]


def report(rows: list[dict[str, Any]], out: Path, jobs: list[Job], real: dict[str, float]) -> list[Path]:
    """Write study.json, table.md, study.png (where matplotlib is installed) and sheet.png; return the files."""
    from .studyreport import plot, sheet, table

    environment = rows[0]["environment"]
    kept = [{k: v for k, v in row.items() if k not in ("environment", "real")} for row in rows]
    whole = {"rows": kept, "real": real, "environment": environment}
    (out / ALL).write_text(json.dumps(whole, indent=1) + "\n")
    (out / TABLE).write_text(table(kept))
    files = [out / ALL, out / TABLE]
    if sheet({job.method: job.folder for job in reversed(jobs)}, out / SHEET, SHEET_PROMPTS):
        files.append(out / SHEET)
    if plot(kept, out / PLOT):
        files.append(out / PLOT)
    return files


if __name__ == "__main__":
    raise SystemExit(run_job(json.loads(sys.argv[1])))
