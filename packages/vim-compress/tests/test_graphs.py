"""The step that is recorded as a CUDA graph is the loop's step, with and without pruning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from vim_compress.graphs import EAGER_STEPS, DeviceStep, RecordedStep
from vim_compress.outofmemory import fitting_batch
from vim_compress.recipes import recipe, tiny
from vim_compress.run import prepare
from vim_compress.sparsity import SparsityConfig
from vim_compress.train import ema_at, follow, forever, lr_at, prune, take_step, train

PRUNED = SparsityConfig(score="taylor", final=0.5, end=6, update_every=2, regrow="grad")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "data" / f"class{label}").mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 128, (16, 16, 3)).astype(np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(tmp_path / "data" / f"class{label}" / f"{i}.png")
    return tmp_path / "data"


def steps(cfg, out, make):
    """Run six steps, each made by what `make` returns for the run; return the weights, their average and the losses."""
    run = prepare(cfg, out, resume_run=False)
    run.network.train()
    batches, losses = forever(run), []
    once = make(run)
    for _ in range(6):
        loss, norm = once(run, batches)
        run.progress.step += 1
        prune(run)
        losses.append((float(loss), float(norm)))
    return [p.detach().clone() for p in (*run.network.parameters(), *run.average.module.parameters())], losses


def plain(run):
    def once(run, batches):
        for group in run.optimizer.param_groups:
            group["lr"] = lr_at(run.progress.step, run.cfg)
        found = take_step(run, batches)
        follow(run)
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


@pytest.mark.parametrize("sparsity", [SparsityConfig(), PRUNED])
def test_step_with_everything_in_tensors_is_the_step(data, tmp_path, sparsity):
    cfg = replace(tiny(), data=str(data), sparsity=sparsity, weight_decay=0.1)
    one, losses = steps(cfg, tmp_path / "a", plain)
    other, same = steps(cfg, tmp_path / "b", on_device)
    assert np.allclose(losses, same, rtol=1e-5)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "tiny-mambavision"])
@pytest.mark.parametrize("sparsity", [SparsityConfig(), PRUNED])
def test_recorded_step_is_the_step(data, tmp_path, name, sparsity):
    assert EAGER_STEPS < 6
    cfg = replace(recipe(name), data=str(data), sparsity=sparsity, weight_decay=0.1)
    one, losses = steps(cfg, tmp_path / "a", plain)
    other, same = steps(cfg, tmp_path / "b", recorded)
    assert np.allclose(losses, same, rtol=1e-3)
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() <= 5e-3 * a.norm() + 1e-6


def test_recording_without_a_gpu_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cpu")))
    with pytest.raises(ValueError, match="train: --graph must have a CUDA GPU, got cpu; leave it out here"):
        train(replace(tiny(), graph=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch": 4}, "accumulation"),
        ({"compile": True, "precision": "fp16"}, "fp16 and compile"),
        ({"checkpoint_activations": True}, "checkpoint_activations"),
        ({"optimizer": "lamb", "mesa": 0.5}, "lamb and mesa"),
    ],
)
def test_recording_is_refused_beside_what_it_cannot_record(change, said):
    with pytest.raises(ValueError, match=f"graph must be off with .*, got it with {said}; leave out one of them"):
        replace(tiny(), graph=True, **change)


def test_full_memory_names_what_fits_without_recording():
    cfg = replace(tiny(), graph=True)

    def fits(trial, out):
        if trial.graph or trial.micro_batch > most:
            raise torch.OutOfMemoryError

    for most in (cfg.micro_batch, 2):
        assert f"--micro_batch {most} fits without --graph" in fitting_batch(cfg, fits)
    most = 0
    assert "no smaller one fits without --graph; add --checkpoint_activations" in fitting_batch(cfg, fits)
