"""Measure the two rates that docs/scaling.md needs, for each trainer: samples a second of one GPU, and of one CPU core.

    python3 tools/measure_scaling.py --data DIR --out docs/results/scaling.json [--seconds 25] [--device cpu]

    python3 tools/measure_scaling.py --from-results --out docs/results/scaling.json

DIR holds packed data (sr/, muse/, diff/, vim/emoji.npz). The GPU's rate is the median of samples_per_s in metrics.jsonl
over the second half of a run of the shipping recipe, loader included; a core's is what the trainer's loader delivers
in one process without workers. Bytes per sample are those of the data divided by its pictures. Price, epochs and GPU
counts are assumptions, written into the file to be changed there.

`--from-results` takes the GPU's rates from the packages' committed training curves instead, and a core's where a
package has measured it; some of those runs shared their GPU, so a GPU alone is not slower than that.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEVER = "1000000"
TRAINERS = {
    "hybrid-sr": ("ship", "sr"),
    "muse-mamba": ("ship", "muse"),
    "mamba-diffusion": ("ship-rgb", "diff"),
    "vim-compress": ("emoji", "vim/emoji.npz"),
}
RESULTS = {
    "hybrid-sr": ("ship x4", "ship-x4/metrics-2.jsonl"),
    "muse-mamba": ("tokenizer emoji-64", "tokenizer/metrics.jsonl"),
    "mamba-diffusion": ("ship-rgb", "ship-rgb/metrics.jsonl"),
    "vim-compress": ("emoji", "emoji/metrics.jsonl"),
}
ASSUMED = {"price_per_gpu_hour": 3.0, "currency": "USD", "gpus": {"million": 1, "billion": 64}}
EPOCHS = 10


def arguments(package: str, data: Path, out: Path, tokenizer: Path) -> list[str]:
    """Return the arguments of a run that saves nothing on the way."""
    preset, place = TRAINERS[package]
    words = [preset, "--data", str(data / place), "--out", str(out), "--validation", "none", "--steps", NEVER]
    words += ["--save_every", NEVER, "--sample_every", NEVER, "--log_every", "5"]
    return words + (["--tokenizer", str(tokenizer)] if package == "muse-mamba" else [])


def environment(device: str) -> dict[str, str]:
    """Return what a child process needs to use this checkout."""
    sources = [str(path) for path in sorted((ROOT / "packages").glob("*/src"))]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])}
    return found | ({"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def gpu_rate(package: str, words: list[str], out: Path, seconds: float, device: str) -> tuple[float, int]:
    """Return samples a second of a run of this many seconds after its first row, and the pictures it says it has."""
    module = f"{package.replace('-', '_')}.train"
    log = out.with_suffix(".log")
    with log.open("w") as said:
        run = subprocess.Popen([sys.executable, "-m", module, *words], env=environment(device), stderr=said)
        first = None
        while run.poll() is None and (first is None or time.monotonic() - first < seconds):
            time.sleep(0.2)
            if first is None and (out / "metrics.jsonl").exists():
                first = time.monotonic()
        run.terminate()
        run.wait()
    if first is None:
        raise RuntimeError(f"{package}: {log.read_text()[-2000:]}")
    rows = [json.loads(row)["samples_per_s"] for row in (out / "metrics.jsonl").read_text().splitlines()]
    count = re.search(r"([\d,]+) (?:photos|pictures|images|fields)", log.read_text())
    return statistics.median(rows[len(rows) // 2 :]), int(count[1].replace(",", "")) if count else 0


def loader_rate(package: str, words: list[str], seconds: float) -> float:
    """Return samples a second of the trainer's loader in this process; torch may use one thread."""
    import torch

    torch.set_num_threads(1)
    module = package.replace("-", "_")
    trainer = importlib.import_module(f"{module}.train")
    known = [trainer.TRAINER] if hasattr(trainer, "TRAINER") else []
    order = trainer.parse(*known, [*words, "--workers", "0", "--compile", "false", "--precision", "no"])
    run = importlib.import_module(f"{module}.run").prepare(order.config, order.out, resume_run=False)
    batches = iter(importlib.import_module(f"{module}.data").loader(run.cfg, run.source, 0, 0, pin=False))
    next(batches)
    start, samples = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        samples += run.cfg.micro_batch
    return samples / (time.perf_counter() - start)


def from_results() -> list[dict[str, Any]]:
    """Return the rows that the committed curves give; loader and bytes are None where nobody measured them."""
    rows = []
    for package, (preset, file) in RESULTS.items():
        folder = ROOT / "packages" / package / "docs" / "results"
        curve = [json.loads(row)["samples_per_s"] for row in (folder / file).read_text().splitlines()]
        core = None
        if package == "hybrid-sr":
            measured = json.loads((folder / "loader-processor.json").read_text())["rows"]
            core = 1000 / next(row["processor_ms_per_crop"] for row in measured if row["data"] == "shards-jpeg")
        rate = statistics.median(curve[len(curve) // 2 :])
        rows.append({"package": package, "preset": preset, "epochs": EPOCHS, "samples_per_s": rate,
                     "loader_samples_per_s_per_core": core, "sample_bytes": None, "source": file})  # fmt: skip
    return rows


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all files below a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def measure(package: str, data: Path, work: Path, seconds: float, device: str) -> dict[str, Any]:
    """Return the row of one trainer."""
    out = work / package
    rate, count = gpu_rate(package, arguments(package, data, out, work / "tokenizer"), out, seconds, device)
    words = arguments(package, data, work / f"{package}-loader", work / "tokenizer")
    command = [sys.executable, __file__, "--loader", package, "--seconds", str(seconds / 3), "--", *words]
    done = subprocess.run(command, env=environment(device), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{package}'s loader: {done.stderr[-2000:]}")
    preset, place = TRAINERS[package]
    return {
        "package": package, "preset": preset, "epochs": EPOCHS, "samples_per_s": rate,
        "loader_samples_per_s_per_core": float(done.stdout.split()[-1]),
        "sample_bytes": size_of(data / place) / max(1, count),
    }  # fmt: skip


def main() -> None:
    """Measure the trainers one by one and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=25.0, help="of each run after its first row")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--package", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--from-results", action="store_true")
    parser.add_argument("--loader", choices=list(TRAINERS), help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loader:
        print(loader_rate(options.loader, options.words, options.seconds))
        return
    if options.from_results:
        about = "H100 80GB, from the packages' committed curves; price, epochs and GPU counts are assumptions"
        report = {**ASSUMED, "rows": from_results(), "environment": about}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        return
    from muse_mamba.tokenizer import VQTokenizer, tokenizer_preset

    rows = []
    with tempfile.TemporaryDirectory(prefix="measure-scaling-") as work:
        VQTokenizer(tokenizer_preset("emoji-64")).save_pretrained(Path(work) / "tokenizer")  # random: the same work
        for package in options.package:
            try:
                rows.append(measure(package, options.data, Path(work), options.seconds, options.device))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                continue
            print(json.dumps(rows[-1]), flush=True)
            about = f"{device_name(options.device)}, one process each; price, epochs and GPU counts are assumptions"
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({**ASSUMED, "rows": rows, "environment": about}, indent=1) + "\n")


def device_name(device: str) -> str:
    """Say what ran."""
    import torch

    return f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
