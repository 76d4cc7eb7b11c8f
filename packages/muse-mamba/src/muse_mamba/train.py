"""The training loop of the token model, top to bottom. `python -m muse_mamba.train PRESET --out DIR [--method M] ...`.

torch is imported when training starts, so that --help and mistakes on the command line answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .config import ModelConfig
from .options import Trainer, fail, parse
from .recipes import RECIPES, TrainConfig, recipe
from .runconfig import ema_at, lr_at

if TYPE_CHECKING:
    from torch import Tensor

    from .checkpoint import Progress
    from .data import Batch
    from .model import TokenModel
    from .pace import Pace
    from .run import Run

TRAINER = Trainer(
    prog="muse-mamba train",
    config=TrainConfig,
    part=("model", ModelConfig),
    recipes=tuple(RECIPES),
    recipe=recipe,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return 0.

    A mistake ends in one line on stderr and exit code 2; numbers that are not finite, a disk that fills up,
    or a GPU whose memory is full, in one line and exit code 1.
    """
    order = parse(TRAINER, argv)
    import torch

    from .guard import NonFiniteError
    from .outofmemory import fitting_batch

    try:
        with suppress(torch.OutOfMemoryError):  # its traceback, which holds the tensors, must go before others fit
            train(order.config, order.out, resume_run=order.resume)
            return 0
        plain = replace(order.config, graph=False)
        fail(TRAINER.prog, fitting_batch(plain, train, recorded=order.config.graph), code=1)
    except ValueError as mistake:
        fail(TRAINER.prog, mistake)
    except (NonFiniteError, OSError) as trouble:
        fail(TRAINER.prog, trouble, code=1)


def train(cfg: TrainConfig, out: Path, *, resume_run: bool = False) -> Progress:
    """Train a token model.

    Args:
        cfg: The run.
        out: Its folder: config.json, metrics.jsonl, validation.jsonl, samples/, checkpoints/, model/.
        resume_run: Go on from the newest whole checkpoint in `out`; without it `out` must be new or empty.

    Returns:
        How far it got, which is before `cfg.steps` if a signal, `stop_at` or `max_minutes` ended it.

    Raises:
        ValueError: The data, the folder or the number of processes does not fit.
        NonFiniteError: A loss or gradient was not finite.
        OSError: A checkpoint could not be written.
    """
    import torch

    from .graphs import RecordedStep
    from .guard import Stop
    from .pace import Pace
    from .run import prepare
    from .running import follow

    run = prepare(cfg, out, resume_run=resume_run)
    accelerator, progress = run.accelerator, run.progress
    batches = forever(run)
    recorded = RecordedStep(run) if cfg.graph else None
    last = min(cfg.steps, cfg.stop_at or cfg.steps)
    mean_loss = torch.full((), progress.loss, device=accelerator.device)
    pace = Pace(progress.step, cfg.steps, shown=accelerator.is_main_process)

    with Stop(cfg.max_minutes) as stop:
        while progress.step < last:
            if not run.network.training:
                run.network.train()
            if recorded is None:
                for group in run.optimizer.param_groups:
                    group["lr"] = lr_at(progress.step, cfg)
                loss, norm = take_step(run, batches)
                follow(cfg, progress.step, run.average, run.averaged, run.followed)
            else:
                loss, norm = recorded(next(batches), lr_at(progress.step, cfg), ema_at(progress.step, cfg))
            mean_loss += loss / cfg.log_every
            progress.step += 1
            pace.advance()

            log = progress.step % cfg.log_every == 0
            if log:
                report(run, mean_loss, norm, pace)  # the host waits for the device only here; raises if not finite
                mean_loss.zero_()
            if stop.wanted(accelerator, agree=log):
                last = progress.step
            with pace.paused():
                if progress.step == last or progress.step % cfg.sample_every == 0:
                    sample(run)
                if progress.step == last or progress.step % cfg.save_every == 0:
                    progress.loss = mean_loss.item()
                    keep(run, pace)
    if progress.step < cfg.steps:
        pace.say(f"stopped at step {progress.step} of {cfg.steps} by {stop.reason or 'stop_at'}; --resume goes on")
    pace.close()
    accelerator.end_training()
    return progress


def take_step(run: Run, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
    """Make one optimizer step; return its mean loss and the norm of its gradient before clipping, on the device."""
    import torch

    from .loss import token_loss
    from .running import summed, without_sync

    cfg, accelerator = run.cfg, run.accelerator
    mean = torch.zeros((), device=accelerator.device)
    for micro in range(cfg.micro_steps):
        batch = next(batches)
        with without_sync(accelerator, micro + 1 < cfg.micro_steps, run.network):
            with accelerator.autocast():
                loss = token_loss(run.network, run.plain, batch, cfg)
            accelerator.backward(loss / cfg.micro_steps)
        mean += loss.detach() / cfg.micro_steps
    mean = summed(accelerator, mean, "mean")
    norm = cast("Tensor", accelerator.clip_grad_norm_(run.network.parameters(), cfg.clip or math.inf))
    run.guard.check(run.progress.step, mean, norm)  # before the step, so that a bad one changes nothing
    run.optimizer.step()
    run.optimizer.zero_grad()
    return mean, norm


def report(run: Run, mean_loss: Tensor, norm: Tensor, pace: Pace) -> None:
    """Write one row of metrics.jsonl and show it, with the loss as a share of ln V.

    Raises:
        NonFiniteError: A step since the last report was not finite.
    """
    from .loss import relative
    from .running import add_row, peak_bytes

    run.guard.refuse(run.cfg, run.out, run.source.names)
    cfg, step = run.cfg, run.progress.step
    row = {
        "step": step,
        "loss": mean_loss.item(),
        "lr": lr_at(step - 1, cfg),
        "grad_norm": norm.item(),
        "samples_per_s": cfg.global_batch * pace.lap(step),
        "peak_bytes": peak_bytes(run.accelerator.device),
    }
    if run.accelerator.is_main_process:
        add_row(run.out / "metrics.jsonl", row)
        shown = {k: row[k] for k in ("loss", "lr", "grad_norm", "samples_per_s")}
        pace.row(step, shown | {"loss/lnV": relative(row["loss"], cfg.model.vocab)})


def sample(run: Run) -> None:
    """Save a picture: originals of captions, and what the model makes of the captions."""
    import torch

    from .validation import draw

    if not run.accelerator.is_main_process:
        return
    model = cast("TokenModel", run.average.module)
    file = run.out / "samples" / f"step-{run.progress.step:08d}.png"
    if run.shown is not None:
        shown = run.shown
        draw(model, run.tokenizer, shown.text, shown.mask, shown.ids, file, shown.cond)
        return
    batch = run.source.__getitems__(range(min(8, run.cfg.global_batch)))
    device = run.accelerator.device
    cond = batch["cond"].long().to(device) if "cond" in batch else None
    text, mask, ids = batch["text"].float().to(device), batch["mask"].to(device), batch["ids"].long().to(device)
    with torch.no_grad():
        draw(model, run.tokenizer, text, mask, ids, file, cond)


def keep(run: Run, pace: Pace) -> None:
    """Validate and save.

    Raises:
        NonFiniteError: A step since the last report was not finite; nothing is saved then.
        OSError: The checkpoint could not be written.
    """
    from .checkpoint import save
    from .running import add_row
    from .validation import measure

    run.guard.refuse(run.cfg, run.out, run.source.names)
    progress = run.progress
    model = cast("TokenModel", run.average.module)
    said = ""
    if run.shown is not None:
        row = measure(model, run.shown)
        add_row(run.out / "validation.jsonl", {"step": progress.step, **row})
        progress.score = -row["loss"]
        said = f", validation {row['loss']:.3f} of ln V, right captions are worth {row.get('caption_gap', 0):.3f} nats"
    folder = save(run.accelerator, run.cfg, run.out, model, progress)
    pace.say(f"saved {folder}{said}")


def forever(run: Run) -> Iterator[Batch]:
    """Yield this process's micro-batches from the next step to the last, on the device."""
    from .data import loader

    device = run.accelerator.device
    rank, pin = run.accelerator.process_index, device.type == "cuda"
    for batch in loader(run.cfg, run.source, run.progress.step, rank, pin=pin):
        moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        for name in ("ids", "cond"):
            if name in moved:
                moved[name] = moved[name].long()
        yield moved | {"text": moved["text"].float()}


if __name__ == "__main__":
    raise SystemExit(main())
