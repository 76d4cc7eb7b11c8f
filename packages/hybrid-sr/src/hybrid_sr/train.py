"""The training loop, top to bottom. `python -m hybrid_sr.train PRESET --out DIR [--field value ...]`.

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
    from torch import Tensor

    from .checkpoint import Progress
    from .data import Batch
    from .model import HybridSR
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

    from .guard import Stop
    from .pace import Pace
    from .run import prepare

    run = prepare(cfg, out, resume_run=resume_run)
    accelerator, progress = run.accelerator, run.progress
    batches = forever(run)
    last = min(cfg.steps, cfg.stop_at or cfg.steps)
    mean_loss = torch.full((), progress.loss, device=accelerator.device)
    pace = Pace(progress.step, cfg.steps, shown=accelerator.is_main_process)

    with Stop(cfg.max_minutes) as stop:
        while progress.step < last:
            run.network.train()
            for group in run.optimizer.param_groups:
                group["lr"] = lr_at(progress.step, cfg)
            loss, norm = take_step(run, batches)
            follow(run)
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

    from .loss import pixel_loss

    cfg, accelerator = run.cfg, run.accelerator
    mean, norm = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
    for _ in range(cfg.micro_steps):
        batch = next(batches)
        with accelerator.accumulate(run.network):
            loss = pixel_loss(cfg.loss, run.network(batch["lr"]), batch["hr"])
            accelerator.backward(loss)
            run.exchange.gather(loss)
            run.exchange.average()
            loss = run.exchange.spread()
            mean += loss.detach() / cfg.micro_steps
            if accelerator.sync_gradients:
                norm = cast("Tensor", accelerator.clip_grad_norm_(run.network.parameters(), cfg.clip or math.inf))
                if not cfg.graph:  # the exchange of a recorded step has made it the mean over the processes
                    mean = cast("Tensor", accelerator.reduce(mean, "mean"))
                run.guard.check(run.progress.step, mean, norm)  # before the step, so that a bad one changes nothing
            run.optimizer.step()
            run.optimizer.zero_grad()
    return mean, norm


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
    """Save a picture of the validation photos: low resolution, bicubic, the network, the original."""
    from .validation import draw

    if run.shown:
        file = run.out / "samples" / f"step-{run.progress.step:08d}.png"
        draw(run.average, run.shown, run.cfg.scale, run.accelerator.device, file)


def keep(run: Run, pace: Pace) -> None:
    """Validate and save.

    Raises:
        NonFiniteError: A step since the last report was not finite; nothing is saved then.
        OSError: The checkpoint could not be written.
    """
    from .checkpoint import VALIDATION, save
    from .validation import score

    run.guard.refuse(run.cfg, run.out, run.source.names)
    progress = run.progress
    progress.score = score(run.average, run.shown, run.cfg.scale, run.accelerator.device)
    network: HybridSR = run.average.module  # pyright: ignore[reportAssignmentType]
    if run.accelerator.is_main_process and not math.isnan(progress.score):
        with (run.out / VALIDATION).open("a") as file:
            file.write(json.dumps({"step": progress.step, "psnr_y": progress.score}) + "\n")
    folder = save(run.accelerator, run.cfg, run.out, network, progress)
    pace.say(f"saved {folder}" + ("" if math.isnan(progress.score) else f", validation {progress.score:.2f} dB"))


def forever(run: Run) -> Iterator[Batch]:
    """Yield this process's micro-batches from the next step to the last, float32 on the device."""
    from .data import loader, to_float

    device = run.accelerator.device
    rank, pin = run.accelerator.process_index, device.type == "cuda"
    for batch in loader(run.cfg, run.source, run.progress.step, rank, pin=pin):
        yield to_float(batch, device)


if __name__ == "__main__":
    raise SystemExit(main())
