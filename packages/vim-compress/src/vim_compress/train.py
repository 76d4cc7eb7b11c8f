"""The training loop, top to bottom. `python -m vim_compress.train PRESET --out DIR [--field value ...]`.

torch is imported when training starts, so that --help and mistakes on the command line answer at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .options import fail, parse
from .recipes import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .checkpoint import Progress
    from .data import Batch, Numbered
    from .models import Network
    from .pace import Pace
    from .run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return 0.

    A mistake ends in one line on stderr and exit code 2; numbers that are not finite, a disk that fills up,
    or a GPU whose memory is full, in one line and exit code 1.
    """
    order = parse(argv)
    import torch

    from .guard import NonFiniteError
    from .outofmemory import fitting_batch

    try:
        with suppress(torch.OutOfMemoryError):  # its traceback, which holds the tensors, must go before others fit
            train(order.config, order.out, resume_run=order.resume)
            return 0
        fail(fitting_batch(order.config, train), code=1)
    except ValueError as mistake:
        fail(mistake)
    except (NonFiniteError, OSError) as trouble:
        fail(trouble, code=1)


def train(cfg: TrainConfig, out: Path, *, resume_run: bool = False) -> Progress:
    """Train a network.

    Args:
        cfg: The run.
        out: Its folder: config.json, metrics.jsonl, samples/, checkpoints/, model/.
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

    run = prepare(cfg, out, resume_run=resume_run)
    accelerator, progress = run.accelerator, run.progress
    keep_for_rewinding(run)
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
                follow(run)
            else:
                loss, norm = recorded(next(batches), lr_at(progress.step, cfg), ema_at(progress.step, cfg))
            mean_loss += loss / cfg.log_every
            progress.step += 1
            prune(run)
            pace.advance()

            log = progress.step % cfg.log_every == 0
            if log:
                report(run, mean_loss, norm, pace)  # the host waits for the device only here; raises if not finite
                mean_loss.zero_()
            if stop.wanted(accelerator, agree=log) or run.pruner.stops:
                last = progress.step
            with pace.paused():
                if progress.step == last or progress.step % cfg.sample_every == 0:
                    sample(run)
                if progress.step == last or progress.step % cfg.save_every == 0:
                    progress.loss = mean_loss.item()
                    keep(run, pace)
    if progress.step < cfg.steps:
        reason = "the early-bird ticket" if run.pruner.stops else stop.reason or "stop_at"
        pace.say(f"stopped at step {progress.step} of {cfg.steps} by {reason}; --resume goes on")
    pace.close()
    accelerator.end_training()
    return progress


def take_step(run: Run, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
    """Make one optimizer step; return its mean loss and the norm of its gradient before clipping, on the device."""
    import torch

    cfg, accelerator = run.cfg, run.accelerator
    mean, norm = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
    for _ in range(cfg.micro_steps):
        batch = next(batches)
        with accelerator.accumulate(run.network):
            loss = objective(run, batch)
            accelerator.backward(loss)
            mean += loss.detach() / cfg.micro_steps
            if accelerator.sync_gradients:
                accelerator.unscale_gradients(run.optimizer)
                run.pruner.gradients()
                norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), cfg.clip or math.inf)
                mean = cast("Tensor", accelerator.reduce(mean, "mean"))
                run.guard.check(run.progress.step, mean, norm)  # before the step, so that a bad one changes nothing
            if cfg.optimizer == "adamw" or not run.guard.bad():
                run.optimizer.step()
            run.optimizer.zero_grad()
    return mean, norm


def objective(run: Run, batch: Batch) -> Tensor:
    """Return the loss of a batch, a scalar."""
    from .loss import classification_loss, divergence

    cfg, logits = run.cfg, run.network(batch["image"])
    taught = None if run.teacher is None else taught_by(run, run.teacher, batch)
    loss = classification_loss(logits, batch["target"], taught, weight=cfg.teacher_weight, temperature=cfg.temperature)
    if cfg.mesa and run.progress.step >= cfg.mesa_start * cfg.steps:
        loss = loss + cfg.mesa * divergence(logits, taught_by(run, run.average, batch))
    return loss


def taught_by(run: Run, teacher: nn.Module, batch: Batch) -> Tensor:
    """Return what a network makes of a batch, without a gradient."""
    import torch

    with torch.no_grad(), run.accelerator.autocast():
        return teacher(batch["image"])


def lr_at(step: int, cfg: TrainConfig) -> float:
    """Return the learning rate of a step (counted from 0): a linear rise, then half a cosine down to `min_lr`."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def ema_at(step: int, cfg: TrainConfig) -> float:
    """Return the decay of the averaged weights at a step: short at first, so that the first weights are forgotten."""
    return min(cfg.ema, (1 + step) / (10 + step))


def follow(run: Run) -> None:
    """Let the averaged weights and buffers follow by one step.

    This is `AveragedModel.update_parameters` on lists that were sorted once: sorting 500 tensors takes the host 4 ms.
    """
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    get_ema_multi_avg_fn(ema_at(run.progress.step, run.cfg))(run.averaged, run.followed, run.average.n_averaged)


def prune(run: Run) -> None:
    """Update masks and look for tickets after a step, if it is time, and keep the weights to rewind to."""
    out = run.out if run.accelerator.is_main_process else None
    run.pruner.after(run.progress.step, run.optimizer, out)
    keep_for_rewinding(run)


def keep_for_rewinding(run: Run) -> None:
    """Write `rewind.safetensors`, the weights themselves and not their average, at the step that is asked for."""
    if run.cfg.rewind_step != run.progress.step or not run.accelerator.is_main_process:
        return
    from safetensors.torch import save_file

    state = {name: x.detach().cpu().contiguous() for name, x in run.pruner.model.state_dict().items()}
    half = run.out / "rewind.tmp"
    save_file(state, half, metadata={"step": str(run.progress.step)})
    half.replace(run.out / "rewind.safetensors")


def report(run: Run, mean_loss: Tensor, norm: Tensor, pace: Pace) -> None:
    """Write one row of metrics.jsonl and show it.

    Raises:
        NonFiniteError: A step since the last report was not finite.
    """
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
        with (run.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        pace.row(step, {k: row[k] for k in ("loss", "lr", "grad_norm", "samples_per_s")})


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU; elsewhere what the process holds now."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def sample(run: Run) -> None:
    """Save a sheet of held-out pictures with what was recognised."""
    from .validation import draw

    if run.held is not None:
        file = run.out / "samples" / f"step-{run.progress.step:08d}.png"
        draw(run.average, run.held, run.accelerator.device, file)


def keep(run: Run, pace: Pace) -> None:
    """Validate and save.

    Raises:
        NonFiniteError: A step since the last report was not finite; nothing is saved then.
        OSError: The checkpoint could not be written.
    """
    from .checkpoint import save
    from .validation import score

    run.guard.refuse(run.cfg, run.out, run.source.names)
    progress = run.progress
    progress.score = score(run.average, run.held, run.accelerator.device)
    network: Network = run.average.module  # pyright: ignore[reportAssignmentType]
    folder = save(run.accelerator, run.cfg, run.out, network, progress)
    if run.accelerator.is_main_process:
        run.pruner.save(run.out, progress.step)
    said = "" if math.isnan(progress.score) else f", accuracy {progress.score:.2f} %"
    said += f", sparsity {100 * run.pruner.sparsity():.1f} %" if run.pruner.masks else ""
    pace.say(f"saved {folder}{said}")


def forever(run: Run) -> Iterator[Batch]:
    """Yield this process's micro-batches from the next step to the last, normalised on the device."""
    from .data import loader
    from .preprocess import to_float

    device = run.accelerator.device
    rank, pin = run.accelerator.process_index, device.type == "cuda"
    if run.cfg.resident:
        from .resident import Resident

        yield from Resident(cast("Numbered", run.source), device).batches(run.progress.step, rank)
        return
    for batch in loader(run.cfg, run.source, run.progress.step, rank, pin=pin):
        target = batch["target"].to(device, non_blocking=True)
        yield {"image": to_float(batch["image"], run.model, device), "target": target}


if __name__ == "__main__":
    raise SystemExit(main())
