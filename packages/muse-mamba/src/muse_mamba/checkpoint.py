"""The folder of a run: what may be written there, checkpoints that are whole or not there, and `model/`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runconfig import FREE_ON_RESUME, RunConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .pretrained import Pretrained


FILES, PROGRESS = "files.json", "progress.json"
SPARE_BYTES = 64 * 2**20  # for pictures and logs
COPIES = 4  # weights, their average, two moments: float32 each


@dataclass
class Progress:
    """How far a run is. A checkpoint holds it, so that rows of metrics.jsonl that straddle it come out the same.

    Attributes:
        step: Steps done.
        loss: Mean loss since the last row.
        score: Newest validation, higher is better; NaN without one.
        best: Highest score so far.
    """

    step: int = 0
    loss: float = 0.0
    score: float = math.nan
    best: float = -math.inf


def check_folder(cfg: RunConfig, out: Path, *, resume: bool) -> None:
    """Make the folder if it is missing and see that this run may go there; nothing stays in it yet.

    Raises:
        ValueError: It holds a run and `resume` is off, its run is another one, or it cannot be written.
    """
    try:
        if not resume and out.is_dir() and any(out.iterdir()):
            raise ValueError(f"--out {out} is not empty; add --resume to go on with its run, or choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        trial = out / "trial.tmp"
        trial.write_bytes(bytes(4096))
        trial.unlink()
        config = out / "config.json"
        if config.is_file():
            _same_run(json.loads(config.read_text()), cfg, out)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error}; choose another folder") from error


def open_folder(cfg: RunConfig, out: Path) -> None:
    """Put config.json and the folders of a run into `out`."""
    for folder in (out / "checkpoints", out / "samples"):
        folder.mkdir(exist_ok=True)
    replace_text(out / "config.json", json.dumps(cfg.to_dict(), indent=1) + "\n")


def _same_run(before: dict[str, Any], cfg: RunConfig, out: Path) -> None:
    now = cfg.to_dict()
    changed = [k for k in now if k not in FREE_ON_RESUME and before.get(k) != now[k]]
    if changed:
        first, old, new = changed[0], before.get(changed[0]), now[changed[0]]
        if isinstance(old, dict) and isinstance(new, dict):  # name the field of the network, as in model.method
            inner = next(k for k in new if old.get(k) != new[k])
            first, old, new = f"{first}.{inner}", old.get(inner), new[inner]
        raise ValueError(f"--resume: {first} was {old} in {out}, is {new} now; give the old value, or another --out")


def check_space(out: Path, parameters: int, keep: int) -> None:
    """Refuse to start where the checkpoints of a network will not fit.

    Args:
        out: Folder of the run.
        parameters: Of the network.
        keep: Checkpoints kept; one more is being written, one is the best.

    Raises:
        ValueError: Too little space is left.
    """
    wanted = parameters * 4 * COPIES * (keep + 2) + SPARE_BYTES
    free = shutil.disk_usage(out).free
    if free < wanted:
        raise ValueError(
            f"--out {out} has {free / 2**20:.0f} MiB left, the run needs about {wanted / 2**20:.0f}; "
            "free some, lower --keep, or choose another disk"
        )


def save(
    accelerator: Accelerator,
    cfg: RunConfig,
    out: Path,
    network: Pretrained,
    progress: Progress,
    *,
    raw: Pretrained | None = None,
) -> Path:
    """Write a checkpoint and `model/`, keep the newest and the best; every process calls it.

    Args:
        accelerator: Holds network, optimizer, average and random states.
        cfg: The run.
        out: Its folder.
        network: The averaged network, for `model/`.
        progress: Is stored; its `best` is brought up to date first.
        raw: The network as the optimizer left it, for `model-raw/`; None writes none.

    Returns:
        The checkpoint's folder. It appears under its name only when it is whole.

    Raises:
        OSError: It could not be written.
    """
    folder = out / "checkpoints" / f"step-{progress.step:08d}"
    half = folder.with_suffix(".tmp")
    best = progress.score > progress.best
    progress.best = max(progress.best, progress.score) if best else progress.best
    if accelerator.is_main_process:
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
    accelerator.wait_for_everyone()
    with disk_errors(half):
        accelerator.save_state(str(half))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (half / PROGRESS).write_text(json.dumps(asdict(progress)))
        (half / FILES).write_text(json.dumps({file.name: _digest(file) for file in sorted(half.iterdir())}, indent=1))
        replace_folder(folder, half)
        export(out / "model", network)
        if raw is not None:
            export(out / "model-raw", raw)
        if best:
            copy = out / "checkpoints" / "best.tmp"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            replace_folder(out / "checkpoints" / "best", copy)
        for old in _checkpoints(out)[cfg.keep :]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return folder


def export(folder: Path, network: Pretrained) -> None:
    """Save a network; the folder appears under its name when it is whole."""
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    with disk_errors(half):
        network.save_pretrained(half)
    replace_folder(folder, half)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise OSError where PyTorch and safetensors report a full disk in their own ways."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{folder}: {error}") from error


def replace_folder(folder: Path, new: Path) -> None:
    """Give `new` the name `folder`, whatever had it."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def replace_text(file: Path, text: str) -> None:
    """Write a file that is either the old or the new one, never half."""
    half = file.with_name(file.name + ".tmp")
    half.write_text(text)
    os.replace(half, file)


def latest(out: Path, *, verbose: bool = True) -> Path | None:
    """Return the newest whole checkpoint, or None; damaged and half-written ones are named on stderr.

    Args:
        out: Folder of the run.
        verbose: Say what was skipped.
    """
    half = sorted((out / "checkpoints").glob("step-*.tmp"))
    skipped = [f"skipped {folder}: half-written" for folder in half]
    found = None
    for folder in _checkpoints(out):
        damage = _damage(folder)
        if damage is None:
            found = folder
            break
        skipped.append(f"skipped {folder}: {damage}")
    if verbose and skipped:
        print("\n".join(skipped), file=sys.stderr)
    return found


def resume(accelerator: Accelerator, out: Path) -> Progress:
    """Load the newest whole checkpoint into what `accelerator` holds; a run without any starts from step 0.

    Rows of the curves that are newer than the checkpoint are dropped: they will be written again.
    """
    folder = latest(out, verbose=accelerator.is_main_process)
    progress = Progress()
    if folder is not None:
        accelerator.load_state(str(folder))
        progress = Progress(**json.loads((folder / PROGRESS).read_text()))
    if accelerator.is_main_process:
        print(f"resuming from {folder}" if folder else f"no checkpoint in {out}, starting at step 0", file=sys.stderr)
        for curve in (out / "metrics.jsonl", out / "validation.jsonl"):
            if curve.is_file():
                rows = [line for line in curve.read_text().splitlines() if _step_of(line) <= progress.step]
                replace_text(curve, "".join(f"{row}\n" for row in rows))
    return progress


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError, TypeError):  # a row cut off by a crash
        return math.inf


def _checkpoints(out: Path) -> list[Path]:
    """Return the step folders, newest first."""
    folders = (out / "checkpoints").glob("step-*")
    return sorted((f for f in folders if f.name.removeprefix("step-").isdigit()), reverse=True)


def _damage(folder: Path) -> str | None:
    try:
        files = json.loads((folder / FILES).read_text())
        wrong = [name for name, digest in files.items() if _digest(folder / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        return f"half-written or damaged ({error})"
    return f"{', '.join(wrong)} damaged" if wrong else None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
