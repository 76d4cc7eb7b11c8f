"""The training loop of the tokenizer, top to bottom. `python -m muse_mamba.tokenizer.train PRESET --out DIR ...`.

torch is imported when training starts, so that --help and mistakes on the command line answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from ..options import Trainer, fail, parse
from ..runconfig import lr_at
from .config import TokenizerConfig
from .recipes import RECIPES, Stage, TokenizerTrainConfig, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint import Progress
    from ..pace import Pace
    from ..packed import Pictured
    from .network import VQTokenizer
    from .run import Run

MEASURED = 64  # training pictures, where there are none for validation

TRAINER = Trainer(
    prog="muse-mamba train-tokenizer",
    config=TokenizerTrainConfig,
    part=("network", TokenizerConfig),
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

    from ..guard import NonFiniteError
    from ..outofmemory import fitting_batch

    try:
        with suppress(torch.OutOfMemoryError):  # its traceback, which holds the tensors, must go before others fit
            train(order.config, order.out, resume_run=order.resume)
            return 0
        fail(TRAINER.prog, fitting_batch(order.config, train), code=1)
    except ValueError as mistake:
        fail(TRAINER.prog, mistake)
    except (NonFiniteError, OSError) as trouble:
        fail(TRAINER.prog, trouble, code=1)


def train(cfg: TokenizerTrainConfig, out: Path, *, resume_run: bool = False) -> Progress:
    """Train a tokenizer.

    Args:
        cfg: The run.
        out: Its folder: config.json, metrics.jsonl, samples/, checkpoints/, model/, and model-raw/, stages/.
        resume_run: Go on from the newest whole checkpoint in `out`; without it `out` must be new or empty.

    Returns:
        How far it got, which is before `cfg.steps` if a signal, `stop_at` or `max_minutes` ended it.

    Raises:
        ValueError: The data, the folder or the number of processes does not fit.
        NonFiniteError: A loss or gradient was not finite.
        OSError: A checkpoint could not be written.
    """
    import torch

    from ..guard import Stop
    from ..pace import Pace
    from ..running import follow
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
            stage = cfg.stage_at(progress.step)
            begin(run, stage)
            loss, norm = take_step(run, stage, batches)
            follow(cfg, progress.step, run.average, run.averaged, run.followed)
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
                ends = progress.step == stage.first + stage.steps
                if ends or progress.step == last or progress.step % cfg.save_every == 0:
                    progress.loss = mean_loss.item()
                    keep(run, pace, stage if ends else None)
    if progress.step < cfg.steps:
        pace.say(f"stopped at step {progress.step} of {cfg.steps} by {stop.reason or 'stop_at'}; --resume goes on")
    pace.close()
    accelerator.end_training()
    return progress


def begin(run: Run, stage: Stage) -> None:
    """Set the learning rate of a step, and forget the moments where a stage begins if the run asks for it."""
    cfg, step = run.cfg, run.progress.step
    for optimizer in (run.optimizer, run.judge_optimizer):
        if optimizer is None:
            continue
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, cfg)
        if cfg.reset_optimizer and step == stage.first and step > 0:
            optimizer.state.clear()


class Totals(NamedTuple):
    """What a step sums up over micro-batches: loss, assignments, sums of vectors, two gradients of the last layer."""

    loss: Tensor
    counts: Tensor
    sums: Tensor
    gradients: Tensor  # (2, ...): of the reconstruction, of the adversarial loss


def take_step(run: Run, stage: Stage, batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Make one step of tokenizer and discriminator; return its mean loss and the norm of the tokenizer's gradient."""
    import torch

    from ..running import summed, without_sync
    from .loss import adversarial_factor

    accelerator, step = run.accelerator, run.progress.step
    quantizer, layer = run.plain.quantizer, run.plain.last.weight
    factor = adversarial_factor(run.cfg, step)
    device, shape = accelerator.device, tuple(quantizer.codebook.shape)
    totals = Totals(
        torch.zeros((), device=device),
        torch.zeros(shape[0], device=device),
        torch.zeros(shape, device=device),
        torch.zeros((2, *layer.shape), device=device),
    )
    candidates = totals.sums[:1]
    networks = [run.network] + ([run.judge] if run.judge is not None and factor else [])
    for micro in range(stage.accumulation):
        pictures = next(batches)
        with without_sync(accelerator, micro + 1 < stage.accumulation, *networks):
            candidates = learn(run, stage, pictures, factor, totals)
    counts, sums = summed(accelerator, totals.counts), summed(accelerator, totals.sums)
    mean = summed(accelerator, totals.loss, "mean")
    limit = run.cfg.clip or math.inf
    norm = cast("Tensor", accelerator.clip_grad_norm_(run.network.parameters(), limit))
    both = norm
    if len(networks) > 1:
        both = both + cast("Tensor", accelerator.clip_grad_norm_(networks[1].parameters(), limit))
    run.guard.check(step, mean, both)  # before the step, so that a bad one changes nothing
    run.optimizer.step()
    run.optimizer.zero_grad()
    if len(networks) > 1 and run.judge_optimizer is not None and run.plain_judge is not None:
        run.judge_optimizer.step()
        run.judge_optimizer.zero_grad()
        gradients = summed(accelerator, totals.gradients)
        run.plain_judge.rebalance(gradients[0], gradients[1], run.guard.good)
    quantizer.update(counts, sums, run.guard.good)
    if (step + 1) % run.cfg.revive_every == 0:
        revive(run, candidates)
    return mean, norm


def learn(run: Run, stage: Stage, pictures: Tensor, factor: float, totals: Totals) -> Tensor:
    """Add the gradients of one micro-batch; return some of the encoder's vectors."""
    import torch
    from torch.func import functional_call

    from .discriminator import hinge_real_fake
    from .loss import last_layer_gradient, reconstruction_loss

    cfg, accelerator = run.cfg, run.accelerator
    shown, judged = pictures[: stage.micro_batch], pictures[-stage.micro_batch :]
    made, quantized = run.network(shown)
    rebuilt = reconstruction_loss(cfg, made, shown, run.perceptual)
    loss = rebuilt + quantized.loss
    if factor and run.judge is not None and run.plain_judge is not None:
        frozen = {name: x.detach() for name, x in run.plain_judge.named_parameters()}
        with accelerator.autocast():
            fooled = -functional_call(run.plain_judge, frozen, (made,)).float().mean()
        for place, part in enumerate((rebuilt, fooled)):
            totals.gradients[place] += last_layer_gradient(part, run.plain.last.weight)
        weight = cfg.adversarial * factor * run.plain_judge.balance.clone()  # changes in place before the next step
        loss = loss + weight * fooled
    accelerator.backward(loss / stage.accumulation)
    if factor and run.judge is not None:
        with torch.no_grad():
            fake = made if judged.data_ptr() == shown.data_ptr() else run.plain(judged).pictures
        logits = run.judge(torch.cat([judged, fake.detach()])).float()
        accelerator.backward(hinge_real_fake(*logits.chunk(2)) / stage.accumulation)
    totals.loss.add_(loss.detach() / stage.accumulation)
    counts, sums, candidates = quantized.statistics
    totals.counts.add_(counts)
    totals.sums.add_(sums)
    return candidates


def revive(run: Run, candidates: Tensor) -> None:
    """Give entries that nobody uses to vectors of the newest micro-batch, the same on every process."""
    import torch
    from accelerate.utils import broadcast

    generator = torch.Generator().manual_seed(run.cfg.seed + run.progress.step)
    shared = cast("Tensor", broadcast(candidates.contiguous()))
    run.plain.quantizer.revive(shared, generator, run.guard.good)


def report(run: Run, mean_loss: Tensor, norm: Tensor, pace: Pace) -> None:
    """Write one row of metrics.jsonl and show it.

    Raises:
        NonFiniteError: A step since the last report was not finite.
    """
    from ..running import add_row, peak_bytes

    run.guard.refuse(run.cfg, run.out, run.source.names)
    cfg, step = run.cfg, run.progress.step
    stage = cfg.stage_at(step - 1)
    row = {
        "step": step,
        "loss": mean_loss.item(),
        "lr": lr_at(step - 1, cfg),
        "grad_norm": norm.item(),
        "samples_per_s": stage.micro_batch * stage.accumulation * cfg.processes * pace.lap(step),
        "peak_bytes": peak_bytes(run.accelerator.device),
    }
    if run.accelerator.is_main_process:
        add_row(run.out / "metrics.jsonl", row)
        pace.row(step, {k: row[k] for k in ("loss", "lr", "grad_norm", "samples_per_s")})


def sample(run: Run) -> None:
    """Save a picture: originals above their reconstructions."""
    from .validation import draw

    if run.accelerator.is_main_process:
        stage = run.cfg.stage_at(run.progress.step - 1)
        network = cast("VQTokenizer", run.average.module)
        pictures = run.shown or run.source.pictures
        draw(network, pictures, stage.size, run.accelerator.device, run.out / "samples" / _name(run, ".png"))


def keep(run: Run, pace: Pace, ended: Stage | None) -> None:
    """Validate and save.

    Args:
        run: The run.
        pace: For a line about it.
        ended: The stage that has just ended, whose tokenizer is kept apart if there are several; else None.

    Raises:
        NonFiniteError: A step since the last report was not finite; nothing is saved then.
        OSError: The checkpoint could not be written.
    """
    from ..checkpoint import export, save
    from ..running import add_row
    from .validation import measure

    run.guard.refuse(run.cfg, run.out, run.source.names)
    cfg, progress = run.cfg, run.progress
    network = cast("VQTokenizer", run.average.module)
    said = ""
    pictures, split = looked_at(run)
    if pictures:
        row = measure(network, pictures, cfg.stage_at(progress.step - 1).size, run.accelerator.device)
        add_row(run.out / "validation.jsonl", {"step": progress.step, "split": split, **row})
        progress.score = row["psnr"]
        said = f", {split} {row['psnr']:.2f} dB, {row['usage']:.0%} of the codes, perplexity {row['perplexity']:.0f}"
    folder = save(run.accelerator, cfg, run.out, network, progress, raw=run.plain)
    if ended is not None and len(cfg.plan) > 1 and run.accelerator.is_main_process:
        (run.out / "stages").mkdir(exist_ok=True)
        export(run.out / "stages" / f"{cfg.plan.index(ended)}-{ended.size}px", network)
    pace.say(f"saved {folder}{said}")


def looked_at(run: Run) -> tuple[Sequence[Pictured], str]:
    """Return the pictures that the main process measures, and their split: without validation some of training's."""
    from ..data import PictureData

    if run.shown or run.cfg.validation == "none" or not run.accelerator.is_main_process:
        return run.shown, "validation"
    return (run.source.pictures[:MEASURED], "train") if isinstance(run.source, PictureData) else ((), "")


def _name(run: Run, suffix: str) -> str:
    return f"step-{run.progress.step:08d}{suffix}"


def forever(run: Run) -> Iterator[Tensor]:
    """Yield this process's micro-batches from the next step to the last, float32 on the device."""
    from ..data import loader, to_pictures

    device = run.accelerator.device
    rank, pin = run.accelerator.process_index, device.type == "cuda"
    for batch in loader(run.cfg, run.source, run.progress.step, rank, pin=pin):
        yield to_pictures(batch["pictures"], device)


if __name__ == "__main__":
    raise SystemExit(main())
