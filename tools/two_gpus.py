"""Samples a second of the four trainers with one process and with two.

    python3 tools/two_gpus.py --data DIR --tokenizer DIR --out FILE.json

Each runs its shipping recipe at the recipe's micro-batch through `accelerate launch`, on one GPU and on two; the rate
is what arrives in metrics.jsonl by the wall clock, the loader included, after warming up. GPUs are used in pairs: two
trainers at a time measure on one GPU each, then each on both. Two GPUs are enough; with eight all run side by side.
--curves N then trains each for N steps of one and the same global batch with one process and with two, side by side,
and keeps both curves of the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 185.0  # seconds for one part, start included
EVERY = 10  # steps between rows
NEVER = "1000000"


@dataclass(frozen=True)
class Trainer:
    """One of the four: module, recipe, its micro-batch, and where its data lie below --data."""

    module: str
    preset: str
    micro_batch: int
    data: str
    more: tuple[str, ...] = ()


@dataclass
class Session:
    """What all parts share: what to read, where to write, how long (seconds) to measure, and the rows so far."""

    data: Path
    out: Path
    warm: float
    span: float
    environment: dict[str, Any]
    graph: bool = False
    curves: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def trainers(tokenizer: Path) -> dict[str, Trainer]:
    """Return the four trainers by package; vim-compress' also with pictures that are changed on the GPU."""
    kept = Path(tempfile.mkdtemp(prefix="tokens-"))
    tokens = ("--tokenizer", str(tokenizer), "--token_cache", str(kept), "--variants", "4", "--validation", "none")
    few_shapes = ("--queries", "[1024]", "--sensors", "[0.2,0.2]")  # each is recorded for itself
    on_the_gpu = ("--resident", "true", "--crop", "padded", "--randaug", "")  # no loader processes, which take 32 cores
    return {
        "hybrid-sr": Trainer("hybrid_sr.train", "ship", 32, "sr", ("--validation", "none")),
        "muse-mamba": Trainer("muse_mamba.train", "ship", 128, "muse", tokens),
        "mamba-diffusion": Trainer("mamba_diffusion.train", "ship-rgb", 64, "diff", few_shapes),
        "vim-compress": Trainer("vim_compress.train", "emoji", 512, "vim/emoji.npz"),
        "vim-compress-resident": Trainer("vim_compress.train", "emoji", 512, "vim/emoji.npz", on_the_gpu),
    }


def main() -> int:
    """Measure and print one line a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sr/, muse/, diff/ and vim/emoji.npz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="model/ of a tokenizer run, for muse-mamba")
    parser.add_argument("--out", type=Path, required=True, help="JSON, written after every part")
    parser.add_argument("--only", default="", help="names, separated by commas; all if not given")
    parser.add_argument("--gpus", type=int, default=8, help="an even number; 8 if not given")
    parser.add_argument("--first", type=int, default=0, help="number of the first GPU")
    parser.add_argument("--graph", action="store_true", help="with recorded steps")
    parser.add_argument("--curves", type=int, default=0, help="steps of the loss curves; 0 leaves them out")
    parser.add_argument("--no-rates", action="store_true", help="the curves alone")
    parser.add_argument("--warm", type=float, default=15.0, help="seconds after the first row that do not count")
    parser.add_argument("--span", type=float, default=60.0, help="seconds measured")
    asked = parser.parse_args()
    known = list(trainers(asked.tokenizer).items())
    if asked.only:
        known = [(name, trainer) for name, trainer in known if name in asked.only.split(",")]
    session = Session(asked.data, asked.out, asked.warm, asked.span, environment(), asked.graph)
    signal.signal(signal.SIGTERM, lambda *_: stop(session))
    pairs = 0 if asked.no_rates else min(asked.gpus // 2, len(known))
    side_by_side([lambda i=i: one_pair(session, known[i::pairs], asked.first + 2 * i) for i in range(pairs)])
    if asked.curves:
        pair = (asked.first, asked.first + 1)
        side_by_side(
            [lambda i=i, k=k: curve(session, *k, pair, 29_700 + 10 * i, asked.curves) for i, k in enumerate(known)]
        )
    for row in session.curves:
        print(row["trainer"], "largest difference of the curves", row.get("largest_difference"), row.get("failed", ""))
    for row in session.rows:
        figures = (row.get("samples_per_s"), row.get("scaling"), row.get("failed", "")[-300:])
        print(row["trainer"], row["processes"], *figures)
    return int(any("failed" in row for row in [*session.rows, *session.curves]))


def side_by_side(parts: Sequence[Callable[[], None]]) -> None:
    """Run functions in threads and wait for all."""
    threads = [threading.Thread(target=part) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def one_pair(session: Session, known: Sequence[tuple[str, Trainer]], gpu: int) -> None:
    """Measure trainers on a pair of GPUs: two at a time on one each, then each on both."""
    for first in range(0, len(known), 2):
        two = known[first : first + 2]
        side_by_side([lambda n=n, t=t, i=i: add(session, n, t, (gpu + i,)) for i, (n, t) in enumerate(two)])
        for name, trainer in two:
            add(session, name, trainer, (gpu, gpu + 1))


def add(session: Session, name: str, trainer: Trainer, gpus: tuple[int, ...]) -> None:
    """Measure one part and write its row."""
    row: dict[str, Any] = {"trainer": name, "preset": trainer.preset, "processes": len(gpus)}
    try:
        row |= measure(session, name, trainer, gpus)
    except OSError as error:
        row["failed"] = str(error)
    with session.lock:
        session.rows.append(row)
        write(session)


def measure(session: Session, name: str, trainer: Trainer, gpus: tuple[int, ...]) -> dict[str, Any]:
    """Run one part and return its figures."""
    processes = len(gpus)
    run = Path(tempfile.mkdtemp(prefix=f"{name}-")) / "run"
    log = session.out.with_name(f"{name}-{processes}.log")
    begun = time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(
            command(session, trainer, processes, run, 29_600 + 10 * gpus[0] + processes, trainer.micro_batch),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))},
        )
        session.children.append(child)
        try:
            marks = watch(child, run / "metrics.jsonl", begun, session.warm + session.span)
        finally:
            end(child)
    kept = [mark for mark in marks if mark[0] - marks[0][0] >= session.warm]
    found: dict[str, Any] = {"micro_batch": trainer.micro_batch, "gpus": list(gpus)}
    found |= {"first_row_s": round(marks[0][0] - begun, 1) if marks else None}
    if len(kept) < 3:
        return {**found, "failed": log.read_text()[-1500:]}
    seconds, steps = kept[-1][0] - kept[0][0], kept[-1][1] - kept[0][1]
    rate = steps * trainer.micro_batch * processes / seconds
    return {**found, "seconds": round(seconds, 2), "steps": steps, "samples_per_s": rate, "peak_bytes": kept[-1][2]}


def curve(session: Session, name: str, trainer: Trainer, gpus: tuple[int, int], port: int, steps: int) -> None:
    """Train the same steps with one process and with two, at the same time, and keep the losses."""
    row: dict[str, Any] = {"trainer": name, "preset": trainer.preset, "global_batch": trainer.micro_batch}
    children, files = [], []
    for processes in (1, 2):
        run = Path(tempfile.mkdtemp(prefix=f"{name}-curve-")) / "run"
        words = command(session, trainer, processes, run, port + processes, trainer.micro_batch // processes)
        words[words.index("--log_every") + 1] = "1"
        seen = gpus if processes == 2 else gpus[len(name) % 2 :][:1]
        with session.out.with_name(f"{name}-curve-{processes}.log").open("w") as log:
            children.append(
                subprocess.Popen(
                    [*words, "--stop_at", str(steps), "--workers", "1"],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, seen))},
                )
            )
        session.children.append(children[-1])
        files.append(run / "metrics.jsonl")
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):  # what it wrote until then is looked at below
            child.wait(LIMIT)
        end(child)
    losses = [[json.loads(line)["loss"] for line in f.read_text().splitlines()] if f.is_file() else [] for f in files]
    row |= {"one": losses[0], "two": losses[1]}
    if min(map(len, losses)) < steps:
        row["failed"] = f"{len(losses[0])} and {len(losses[1])} of {steps} steps"
    else:
        row["largest_difference"] = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    with session.lock:
        session.curves.append(row)
        write(session)


def command(session: Session, trainer: Trainer, processes: int, run: Path, port: int, micro: int) -> list[str]:
    """Return the command line of one part; the global batch is the micro-batches of all processes together."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--dynamo_backend", "no"]
    launch += ["--num_processes", str(processes), "--mixed_precision", "no", "--main_process_port", str(port)]
    launch += ["--multi_gpu"] if processes > 1 else []
    batch = ["--micro_batch", str(micro), "--global_batch", str(micro * processes)]
    batch += ["--graph", "true"] if session.graph else []
    rows = ["--log_every", str(EVERY), "--save_every", NEVER, "--sample_every", NEVER]
    data = ["--data", str(session.data / trainer.data), "--out", str(run), "--processes", str(processes)]
    return [*launch, "-m", trainer.module, trainer.preset, *data, *batch, *rows, *trainer.more]


def watch(child: subprocess.Popen[bytes], metrics: Path, begun: float, wanted: float) -> list[tuple[float, int, int]]:
    """Return when which step and peak memory appeared in a run's rows, until enough are there or the run ends."""
    marks: list[tuple[float, int, int]] = []
    seen = 0
    while time.monotonic() - begun < LIMIT and child.poll() is None:
        rows = [line for line in metrics.read_text().splitlines() if line.endswith("}")] if metrics.is_file() else []
        if len(rows) > seen:
            seen = len(rows)
            row = json.loads(rows[-1])
            marks.append((time.monotonic(), row["step"], row["peak_bytes"]))
        if marks and marks[-1][0] - marks[0][0] > wanted:
            break
        time.sleep(0.02)
    return marks


def end(child: subprocess.Popen[bytes]) -> None:
    """Stop a run and whatever it started."""
    for number, seconds in ((signal.SIGTERM, 8), (signal.SIGKILL, 5)):
        try:
            os.killpg(child.pid, number)
            child.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):  # gone already, or deaf to the gentler signal
            continue


def stop(session: Session) -> NoReturn:
    """End at once, and whatever was started; the rows so far are written."""
    for child in session.children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    os._exit(1)  # the threads would go on


def write(session: Session) -> None:
    """Write the rows so far, each second part with its rate over the first's."""
    alone = {row["trainer"]: row for row in session.rows if row["processes"] == 1}
    for row in session.rows:
        base = alone.get(row["trainer"], {})
        if row["processes"] == 2 and "samples_per_s" in row and "samples_per_s" in base:
            row["scaling"] = row["samples_per_s"] / base["samples_per_s"]
    settings = {"graph": session.graph, "warm_up_s": session.warm, "measured_s": session.span, "log_every": EVERY}
    run = {"commit": commit(), "command": " ".join(sys.argv), **settings, "rows": session.rows}
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "environment": session.environment,
        "runs": [run] if session.rows else [],
        "curves": {"commit": run["commit"], "command": run["command"], "rows": session.curves},
    }
    text = json.dumps(found, indent=1)
    session.out.write_text(text + "\n")


def commit() -> str:
    """Return the commit of this folder, or nothing outside a repository."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def environment() -> dict[str, Any]:
    """Return what the figures depend on; torch is asked in a process of its own, which leaves no GPU in use."""
    code = (
        "import json, os, torch; print(json.dumps({'GPU': torch.cuda.get_device_name(0), "
        "'GPUs': torch.cuda.device_count(), 'torch': torch.__version__, 'cpus': os.cpu_count()}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    return json.loads(answer) if answer else {}


if __name__ == "__main__":
    sys.exit(main())
