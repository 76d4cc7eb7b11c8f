"""One run of the study, in its own process: train, measure on the test sets, write the row. And the speed of a row."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipes import TrainConfig, ship
from .studyrows import Row, find_rows

if TYPE_CHECKING:
    import torch

    from .evaluate import NamedImage
    from .model import HybridSR

HELD_OUT = "held-out"
INFERENCE_OUTPUT = 720, 1280  # rows and columns that speed is quoted for
CPU_INFERENCE_OUTPUT = 72, 128


def main(order: dict[str, Any]) -> int:
    """Train one run (or go on with it) and write its row, if it came to the end."""
    from .study import write
    from .train import train

    name, study = f"{order['row']}-{order['seed']}", Path(order["study"])
    row = find_rows(order["row"])[0]
    cfg = configure(row, order["seed"], order["workers"], order)
    run = study / "runs" / name
    clock = time.monotonic()
    progress = train(cfg, run, resume_run=(run / "config.json").is_file())
    spent = run / "seconds.txt"
    seconds = time.monotonic() - clock + (float(spent.read_text()) if spent.is_file() else 0.0)
    spent.write_text(f"{seconds:.1f}")
    if progress.step == cfg.steps:
        write(study / "rows" / f"{name}.json", judge(row, cfg, run, order["test"], seconds))
    return 0


def configure(row: Row, seed: int, workers: int, settings: dict[str, Any]) -> TrainConfig:
    """Return the training run of a row: the recipe of the shipped weights, shortened."""
    import torch

    steps, points = settings["steps"], settings["points"]
    return replace(
        ship(settings["scale"]),
        model=row.config(settings["scale"]),
        data=settings["data"],
        validation=settings["curve"],
        steps=steps,
        warmup=max(1, steps // 20),
        lr=settings["lr"],
        patch=settings["patch"],
        global_batch=settings["batch"],
        micro_batch=settings["batch"],
        precision="bf16" if torch.cuda.is_available() else "no",
        graph=settings["graph"],
        seed=seed,
        workers=workers,
        log_every=max(1, steps // 20),
        save_every=max(1, steps // points),
        sample_every=steps,
        keep=1,
    )


def judge(row: Row, cfg: TrainConfig, run: Path, test: str, seconds: float) -> dict[str, Any]:
    """Measure a trained network; PSNR and SSIM by the published protocol, whole pictures, float32."""
    import torch
    from ssm_kernels.bench import environment

    from .info import model_info
    from .model import HybridSR

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False
    model = HybridSR.from_pretrained(str(run / "model")).to(device)
    curve = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    info = model_info(cfg.model, cfg.scale)
    return {
        "method": row.name,
        "seed": cfg.seed,
        "scale": cfg.scale,
        "steps": cfg.steps,
        "global_batch": cfg.global_batch,
        "patch": cfg.patch,
        **{name: info[name] for name in ("parameters", "macs", "scan_ops")},
        **measure(model, device, cfg, test),
        "train_loss": metrics[-1]["loss"],
        "seconds": round(seconds, 1),
        "curve": {name: [round(point[name], 4) for point in curve] for name in ("step", "psnr_y")},
        "loss_curve": {name: [round(point[name], 6) for point in metrics] for name in ("step", "loss")},
        "environment": environment(device),
    }


def measure(model: HybridSR, device: torch.device, cfg: TrainConfig, test: str) -> dict[str, Any]:
    """Return `sets`: PSNR, SSIM and number of photos of every test set, and their means over all photos."""
    from .metrics import psnr_y, ssim_y
    from .resize import imresize, modcrop
    from .validation import upscale

    sets: dict[str, dict[str, Any]] = {}
    everything: list[tuple[float, float]] = []
    for name, images in photo_sets(test, cfg.data):
        figures = []
        for _, image in images:
            original = modcrop(image, cfg.scale)
            result = upscale(model, imresize(original, 1 / cfg.scale), device)
            figures.append((psnr_y(result, original, crop=cfg.scale), ssim_y(result, original, crop=cfg.scale)))
        sets[name] = _means(figures)
        everything += figures
    return {"sets": sets, **_means(everything)}


def _means(figures: list[tuple[float, float]]) -> dict[str, Any]:
    psnr, ssim = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    return {"psnr_y": round(psnr, 4), "ssim_y": round(ssim, 5), "photos": len(figures)}


def photo_sets(test: str, data: str | None) -> Iterator[tuple[str, Iterator[NamedImage]]]:
    """Yield name and photos of every set.

    Raises:
        ValueError: A set is not there, or "auto" finds none.
    """
    from .evaluate import folder_images, sample_images
    from .samples import sample_set

    if test == "auto":
        found = [HELD_OUT] if any(True for _ in _held_out(data)) else []
        for name in ("scikit-image", "scikit-learn"):
            try:
                sample_set(name)[0].path()
            except ValueError:  # this package is not installed; another may be
                continue
            found.append(name)
        if not found:
            raise ValueError(
                "--test: nothing to measure on; give a folder of originals, or pip install 'hybrid-sr[data]'"
            )
        test = ",".join(found)
    for name in (part.strip() for part in test.split(",")):
        if name == HELD_OUT:
            yield name, _held_out(data)
        elif Path(name).is_dir():
            yield Path(name).name, folder_images(name, max_megapixels=128)
        else:
            yield name, sample_images(name)


def _held_out(data: str | None) -> Iterator[NamedImage]:
    import numpy as np

    from .photos import read_image
    from .sources import find_photos

    for photo in find_photos(data):
        if photo.split == HELD_OUT:
            yield photo.name, np.asarray(read_image(photo.path, halve=photo.halve))


def time_row(row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the speed of a row's training step and of its upscaling to 1280 x 720, eager and (on a GPU) recorded."""
    import torch
    from ssm_kernels.bench import environment

    from .timing import Setup, inference_speed, training_speed

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    cfg = configure(row, 10, 0, settings | {"graph": False})
    rows, columns = INFERENCE_OUTPUT if cuda else CPU_INFERENCE_OUTPUT
    setup = Setup(config=cfg.model, device=device, precision=cfg.precision, repeats=5 if cuda else 3)
    result: dict[str, Any] = {"method": row.name, "batch": cfg.micro_batch, "patch": cfg.patch}
    result["output"] = [rows, columns]
    for mode in ("eager", "graph") if cuda else ("eager",):
        chosen = replace(setup, mode=mode)
        try:
            result[mode] = {
                "training": training_speed(chosen, cfg),
                "inference": inference_speed(chosen, rows // cfg.scale, columns // cfg.scale),
            }
        except RuntimeError as error:  # what cannot be recorded still has its eager speed
            if mode == "eager":
                raise
            print(f"{row.name}: no CUDA graph: {error}", file=sys.stderr)
    return result | {"precision": cfg.precision, "environment": environment(device)}


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1])))
