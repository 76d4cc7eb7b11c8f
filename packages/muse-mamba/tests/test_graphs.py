"""The step that is recorded as a CUDA graph is the loop's step, whatever the method and the losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from muse_mamba import train as trainer
from muse_mamba.config import METHODS, model_preset
from muse_mamba.graphs import EAGER_STEPS, DeviceStep, RecordedStep
from muse_mamba.loss import token_loss
from muse_mamba.model import TokenModel
from muse_mamba.recipes import recipe
from muse_mamba.run import prepare
from muse_mamba.runconfig import ema_at, lr_at
from muse_mamba.running import follow
from muse_mamba.train import forever, take_step, train

STEPS = 6
LOSSES = {
    "plain": {},
    "layer-critic": {"method": "layer-critic"},
    "self-conditioning": {"self_conditioning": True},
    "critic": {"critic": "mamba", "critic_depth": 1},  # draws on the device
    "super-resolution": {"cond_vocab": 32, "cond_grid": (2, 2)},
}


@pytest.fixture(autouse=True)
def new_process():
    """accelerate keeps the precision of the first run of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def config(packed, **fields):
    base = recipe("tiny")
    return replace(
        base,
        model=replace(base.model, **fields),
        data=str(packed),
        global_batch=2,
        micro_batch=2,
        label_smoothing=0.1,
        rectangle=0.3,
        text_drop=0.3,
        weight_decay=0.1,
        validation="none",
    )


def steps(cfg, out, make):
    """Run some steps, each made by what `make` returns for the run; return weights, their average and losses."""
    run = prepare(cfg, out, resume_run=False)
    batches, losses = forever(run), []
    once = make(run)
    for _ in range(STEPS):
        loss, norm = once(run, batches)
        run.progress.step += 1
        losses.append((float(loss), float(norm)))
    return [p.detach().clone() for p in (*run.plain.parameters(), *run.average.module.parameters())], losses


def eager(run):
    def once(run, batches):
        for group in run.optimizer.param_groups:
            group["lr"] = lr_at(run.progress.step, run.cfg)
        found = take_step(run, batches)
        follow(run.cfg, run.progress.step, run.average, run.averaged, run.followed)
        return found

    return once


def on_device(run):
    step = DeviceStep(run)

    def once(run, batches):
        step.set(next(batches), lr_at(run.progress.step, run.cfg), ema_at(run.progress.step, run.cfg))
        return step.make()

    return once


def recorded(run):
    step = RecordedStep(run)

    def once(run, batches):
        at = run.progress.step
        return step(next(batches), lr_at(at, run.cfg), ema_at(at, run.cfg))

    return once


@pytest.mark.parametrize("name", LOSSES)
def test_step_with_everything_in_tensors_is_the_step(packed, tmp_path, name):
    """Rate, average, masks, dropped texts and drawn tokens follow the loop's, step for step."""
    cfg = config(packed, **LOSSES[name])
    one, losses = steps(cfg, tmp_path / "a", eager)
    other, same = steps(cfg, tmp_path / "b", on_device)
    assert np.allclose(losses, same, rtol=1e-4)
    assert len({loss for loss, _ in losses}) == STEPS
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing(packed, tmp_path):
    """The guard's verdict reaches the optimizer through tensors alone."""
    run = prepare(config(packed), tmp_path, resume_run=False)
    step, batches = DeviceStep(run), forever(run)
    step.set(next(batches), 1e-2, 0.9)
    step.make()
    before = [p.detach().clone() for p in run.plain.parameters()]
    run.progress.step = 1
    batch = next(batches)
    step.set(batch | {"text": torch.full_like(batch["text"], torch.nan)}, 1e-2, 0.9)
    step.make()
    assert int(run.guard.first) == 1
    for a, b in zip(before, run.plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_batch_than_the_first_is_refused(packed, tmp_path):
    run = prepare(config(packed), tmp_path, resume_run=False)
    step, batch = DeviceStep(run), next(forever(run))
    step.set(batch, 1e-2, 0.9)
    with pytest.raises(ValueError, match=r"train: batch must be .*'text': .* with --graph.*leave out --graph"):
        step.set(batch | {"text": batch["text"][:, :3]}, 1e-2, 0.9)


@pytest.mark.parametrize("case", [*METHODS, "everything"])
def test_no_loss_waits_for_the_device(case):
    """A value read on the host would end the recording; tensors without values cannot be read."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    every = {"critic": "transformer", "critic_depth": 1, "self_conditioning": True, "text_mixer": "mamba1"}
    model = replace(model_preset("tiny"), depth=1, attention_every=1)
    size = replace(model, **every) if case == "everything" else replace(model, method=case)
    cfg = replace(recipe("tiny"), model=size, label_smoothing=0.1)
    with FakeTensorMode():
        model = TokenModel(size)
        flags = torch.ones(2, size.length, dtype=torch.bool)
        batch = {"ids": flags.long(), "masked": flags, "text": torch.zeros(2, size.text_length, size.text_dim)}
        batch |= {"mask": flags[:, : size.text_length], "drop": flags[:, 0], "again": flags[:, 0]}
        loss = token_loss(model, model, batch | {"total": torch.ones(())}, cfg)
        loss.backward()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch": 2}, "got it with accumulation"),
        ({"compile": True, "precision": "fp16"}, "got it with fp16 and compile"),
        ({"checkpoint_activations": True}, "got it with checkpoint_activations"),
    ],
)
def test_what_cannot_be_recorded_is_refused(change, said):
    with pytest.raises(ValueError, match=f"graph must be off with .*{said}; leave out one"):
        replace(recipe("tiny"), graph=True, **change)


def test_recording_without_a_gpu_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cpu")))
    with pytest.raises(ValueError, match="train: --graph must have a CUDA GPU, got cpu; leave it out here"):
        train(replace(recipe("tiny"), graph=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "critic"])
def test_recorded_step_is_the_step(packed, tmp_path, name, precision):
    assert EAGER_STEPS < STEPS
    cfg = replace(config(packed, **LOSSES[name]), precision=precision)
    one, losses = steps(cfg, tmp_path / "a", eager)
    other, same = steps(cfg, tmp_path / "b", recorded)
    limit = 1e-3 if precision == "no" else 3e-2
    assert np.allclose(losses, same, rtol=10 * limit)
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() <= 5 * limit * a.norm() + 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("fields", [*({"method": method} for method in METHODS), {"channel_mixer": "einfft"}], ids=str)
def test_every_method_is_recorded(packed, tmp_path, fields):
    cfg = replace(config(packed, **fields), precision="bf16", graph=True, log_every=1, steps=STEPS)
    assert train(cfg, tmp_path / "run").step == STEPS


@pytest.mark.gpu
def test_every_replay_draws_anew(packed, tmp_path):
    """The critic's tokens are drawn inside the recording: the same batch at a rate of zero gives other losses."""
    run = prepare(config(packed, **LOSSES["critic"]), tmp_path, resume_run=False)
    step, batch = RecordedStep(run), next(forever(run))
    losses = [float(step(batch, 0.0, 0.0)[0]) for _ in range(EAGER_STEPS + 4)]
    assert len(set(losses[EAGER_STEPS:])) == 4


def test_full_memory_names_what_fits_without_recording(monkeypatch, capsys, tmp_path):
    """The trainer's advice on a full GPU: recordings take memory of their own, and a smaller micro-batch has none."""

    def fits(cfg, out, **_):
        if cfg.graph or cfg.micro_batch > most:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "train", fits)
    for most, said in ((2, "--micro_batch 2 fits without --graph"), (0, "no smaller one fits without --graph")):
        run = [
            "tiny",
            "--graph",
            "true",
            "--micro_batch",
            "2",
            "--global_batch",
            "2",
            "--out",
            str(tmp_path / str(most)),
        ]
        with pytest.raises(SystemExit, match="1"):
            trainer.main(run)
        assert said in capsys.readouterr().err
