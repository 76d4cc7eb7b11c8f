"""Measure the two rates that docs/scaling.md needs, for each trainer: samples a second of one GPU, and of one CPU core.

    python3 tools/measure_scaling.py --data DIR --out docs/results/scaling.json [--seconds 25] [--device cpu]

    python3 tools/measure_scaling.py --from-results [--data DIR] --out docs/results/scaling.json

DIR holds packed data (sr/, muse/, diff/, vim/emoji.npz). The GPU's rate is the median of samples_per_s in metrics.jsonl
over the second half of a run of the shipping recipe, loader included; a core's is what the trainer's loader delivers
in one process without workers, by the processor time of that process, so that other work on the machine does not
count. Bytes per sample are those of the data divided by its pictures, all splits together. Price, epochs and GPU
counts are assumptions, written into the file to be changed there.

`--from-results` takes the GPU's rates from the packages' committed training curves instead; some of those runs
shared their GPU, so a GPU alone is not slower than that. Cores and bytes are then measured here, if there is DIR.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
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
    "muse-mamba": ("ship", "ship/metrics.jsonl"),
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


def gpu_rate(package: str, words: list[str], out: Path, seconds: float, device: str) -> float:
    """Return samples a second of a run of this many seconds after its first row."""
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
    return statistics.median(rows[len(rows) // 2 :])


def loader_rate(package: str, words: list[str], seconds: float) -> float:
    """Return samples per processor second of the trainer's loader in this process; torch may use one thread."""
    import torch

    torch.set_num_threads(1)
    module = package.replace("-", "_")
    trainer = importlib.import_module(f"{module}.train")
    known = [trainer.TRAINER] if hasattr(trainer, "TRAINER") else []
    order = trainer.parse(*known, [*words, "--workers", "0", "--compile", "false", "--precision", "no"])
    run = importlib.import_module(f"{module}.run").prepare(order.config, order.out, resume_run=False)
    batches = iter(importlib.import_module(f"{module}.data").loader(run.cfg, run.source, 0, 0, pin=False))
    next(batches)
    start, samples = time.process_time(), 0
    while time.process_time() - start < seconds:
        next(batches)
        samples += run.cfg.micro_batch
    return samples / (time.process_time() - start)


def loader(package: str, data: Path, work: Path, seconds: float, device: str) -> dict[str, float | None]:
    """Return what a core delivers of a trainer's samples, and how large the stored ones are."""
    words = arguments(package, data, work / f"{package}-loader", work / "tokenizer")
    words += ["--variants", "1"] if package == "muse-mamba" else []  # tokens are made before the first step
    command = [sys.executable, __file__, "--loader", package, "--seconds", str(seconds), "--", *words]
    done = subprocess.run(command, env=environment(device), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{package}'s loader: {done.stderr[-2000:]}")
    place = data / TRAINERS[package][1]
    return {"loader_samples_per_s_per_core": float(done.stdout.split()[-1]), "sample_bytes": sample_bytes(place)}


def from_results() -> list[dict[str, Any]]:
    """Return the rows that the committed curves give; loader and bytes are None as long as nobody measured them.

    hybrid-sr has measured what a core takes out of shards, which is what millions of photos come in.
    """
    rows = []
    for package, (preset, file) in RESULTS.items():
        folder = ROOT / "packages" / package / "docs" / "results"
        curve = [json.loads(row)["samples_per_s"] for row in (folder / file).read_text().splitlines()]
        rate, core = statistics.median(curve[len(curve) // 2 :]), None
        if package == "hybrid-sr":
            measured = json.loads((folder / "loader-processor.json").read_text())["rows"]
            core = 1000 / next(row["processor_ms_per_crop"] for row in measured if row["data"] == "shards-jpeg")
        rows.append({"package": package, "preset": preset, "epochs": EPOCHS, "samples_per_s": rate,
                     "loader_samples_per_s_per_core": core, "sample_bytes": None, "source": file})  # fmt: skip
    return rows


def sample_bytes(place: Path) -> float | None:
    """Return the bytes of a stored picture: of an .npz, a packed folder, a folder of photos; None for other folders."""
    import numpy as np

    if place.is_file():
        with np.load(place) as packed:
            return size_of(place) / len(packed["labels"])
    listed = [file for file in place.glob("*.json") if "summary" in json.loads(file.read_text())]
    if listed:
        return size_of(place) / json.loads(listed[0].read_text())["summary"]["pictures"]
    photos = [file for file in place.iterdir() if file.suffix in (".jpg", ".png", ".webp")]
    others = [file for file in place.iterdir() if file not in photos and file.suffix != ".json"]
    return None if others else size_of(place) / len(photos)


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all files below a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def measure(package: str, data: Path, work: Path, seconds: float, device: str) -> dict[str, Any]:
    """Return the row of one trainer."""
    out = work / package
    rate = gpu_rate(package, arguments(package, data, out, work / "tokenizer"), out, seconds, device)
    row = {"package": package, "preset": TRAINERS[package][0], "epochs": EPOCHS, "samples_per_s": rate}
    return row | loader(package, data, work, seconds / 3, device)


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
    rows = from_results() if options.from_results else []
    about = "H100 80GB, from the packages' committed curves"
    if options.data is not None:
        from muse_mamba.tokenizer import VQTokenizer, tokenizer_preset

        if not rows:
            about = f"{device_name(options.device)}, one process each"
        with tempfile.TemporaryDirectory(prefix="measure-scaling-") as work:
            VQTokenizer(tokenizer_preset("emoji-64")).save_pretrained(Path(work) / "tokenizer")  # random: same work
            fill(rows, options, Path(work))
    about += "; price, epochs and GPU counts are assumptions"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**ASSUMED, "rows": rows, "environment": about}, indent=1) + "\n")


def fill(rows: list[dict[str, Any]], options: argparse.Namespace, work: Path) -> None:
    """Measure the trainers one by one into the rows; one that cannot run here is told and left out."""
    known = {row["package"]: row for row in rows}
    for package in options.package:
        try:
            if package in known:
                kept = {name: value for name, value in known[package].items() if value is not None}
                known[package].update(loader(package, options.data, work, options.seconds / 3, "cpu") | kept)
            else:
                rows.append(measure(package, options.data, work, options.seconds, options.device))
        except RuntimeError as error:
            print(error, file=sys.stderr)
        else:
            print(json.dumps(known.get(package, rows[-1])), flush=True)


def device_name(device: str) -> str:
    """Say what ran."""
    import torch

    return f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
