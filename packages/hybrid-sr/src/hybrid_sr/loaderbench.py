"""Does the GPU wait for the loader? `python -m hybrid_sr.loaderbench --data PATH --out FILE.json` measures it.

The trainer's own step runs with the loader and then on one batch that stays on the GPU; the difference is waiting. With
--loader-only nothing is trained: the loader's rate and what a crop costs it in processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipes import TrainConfig, recipe

if TYPE_CHECKING:
    from .data import Batch, Source
    from .run import Run

WARM = 30  # steps, or batches of the loader alone


class Waited:
    """Batches of an iterator, and the seconds that the host spent in asking for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        before = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - before
        return batch


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the JSON; return 0."""
    parser = argparse.ArgumentParser(prog="python -m hybrid_sr.loaderbench", description=__doc__)
    parser.add_argument("--data", required=True, help="as of `hybrid-sr train`")
    parser.add_argument("--preset", default="ship", help="a recipe; ship if not given")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help="timed steps")
    parser.add_argument("--graph", action="store_true", help="replay the training pass as a CUDA graph")
    parser.add_argument("--loader-only", action="store_true", help="measure no training")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; rows are added")
    asked = parser.parse_args(argv)
    cfg = replace(
        recipe(asked.preset, asked.scale),
        data=asked.data,
        workers=asked.workers,
        global_batch=asked.batch,
        micro_batch=asked.batch,
        steps=100 * (asked.steps + WARM),
        validation="none",
        graph=asked.graph,
    )
    row = {"preset": asked.preset, **measure(cfg, asked.steps, train=not asked.loader_only)}
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    asked.out.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")
    print(json.dumps(row, indent=1))
    return 0


def measure(cfg: TrainConfig, steps: int, *, train: bool) -> dict[str, Any]:
    """Return the rates of the loader alone, of training with it, and of training on one batch.

    Args:
        cfg: The run.
        steps: Timed steps of each.
        train: Also measure training.
    """
    import torch

    from .data import open_source
    from .run import prepare
    from .train import forever

    batch = cfg.global_batch
    found: dict[str, Any] = {
        "data": Path(cfg.data or "").name,
        "scale": cfg.scale,
        "batch": batch,
        "workers": cfg.workers,
        "steps": steps,
        "cpus": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }
    if not train:
        source, _ = open_source(cfg, rank=0, verbose=False)
        return found | _loader_alone(cfg, source, steps)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(cfg, Path(folder) / "run", resume_run=False)
        found |= _loader_alone(cfg, run.source, steps)
        batches = Waited(forever(run))
        with_loader = _train(run, batches, steps)
        waited = batches.seconds
        kept = next(batches)
        resident = _train(run, iter(lambda: kept, None), steps)
        device = run.accelerator.device
    return found | {
        "precision": cfg.precision,
        "graph": cfg.graph,
        "train_samples_per_s": batch * steps / with_loader,
        "resident_samples_per_s": batch * steps / resident,
        "share_of_time_waited": max(0.0, 1 - resident / with_loader),
        "host_seconds_in_next": waited,
        "train_seconds": with_loader,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _loader_alone(cfg: TrainConfig, source: Source, steps: int) -> dict[str, float]:
    """Return rate and cost of `steps` batches that nobody uses."""
    from .data import loader

    batches = iter(loader(cfg, source, 0, 0, pin=False))
    for _ in range(WARM):
        next(batches)
    before, spent = time.perf_counter(), _processor_seconds()
    for _ in range(steps):
        next(batches)
    seconds, spent = time.perf_counter() - before, _processor_seconds() - spent
    crops = cfg.global_batch * steps
    return {"loader_samples_per_s": crops / seconds, "processor_ms_per_crop": 1e3 * spent / crops}


def _processor_seconds() -> float:
    """Return what this process and its loader processes have used so far."""
    import psutil

    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def _train(run: Run, batches: Iterator[Batch], steps: int) -> float:
    """Return the seconds of `steps` steps of the trainer, the device waited for at both ends."""
    from .train import follow, take_step

    before = 0.0
    run.network.train()
    for step in range(WARM + steps):
        if step == WARM:
            if isinstance(batches, Waited):
                batches.seconds = 0.0
            _wait(run)
            before = time.perf_counter()
        take_step(run, batches)
        follow(run)
        run.progress.step += 1
    _wait(run)
    return time.perf_counter() - before


def _wait(run: Run) -> None:
    if run.accelerator.device.type == "cuda":
        import torch

        torch.cuda.synchronize(run.accelerator.device)


if __name__ == "__main__":
    raise SystemExit(main())
