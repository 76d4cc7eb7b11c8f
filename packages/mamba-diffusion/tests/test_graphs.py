"""The step that is recorded as a CUDA graph is the loop's step, whatever its numbers of sensors and queries."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from mamba_diffusion.config import preset
from mamba_diffusion.graphs import EAGER_STEPS, DeviceStep, RecordedStep
from mamba_diffusion.recipes import recipe, tiny
from mamba_diffusion.run import prepare
from mamba_diffusion.train import ema_at, follow, forever, lr_at, take_step, train

PERIODIC = replace(preset("tiny"), periodic=(True, False))


def forget_accelerator():
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerator():
    forget_accelerator()


def several_shapes(cfg, pictures, **changes):
    """Two numbers of sensors and two of queries: with the anchors, sixteen shapes, without them four."""
    return replace(
        cfg, data=str(pictures), validation="none", sensors=(0.1, 0.106), queries=(32, 48), weight_decay=0.1, **changes
    )


def steps(cfg, out, make, count):
    """Run steps, each made by what `make` returns for the run; return how weights and their average moved; losses."""
    forget_accelerator()
    run = prepare(cfg, out, resume_run=False)
    run.network.train()
    batches, losses, first = forever(run), [], weights(run)
    once = make(run)
    for _ in range(count):
        loss, norm = once(run, batches)
        run.progress.step += 1
        losses.append((float(loss), float(norm)))
    return weights(run) - first, losses


def weights(run):
    parameters = (*run.network.parameters(), *run.average.module.parameters())
    return torch.cat([p.detach().flatten() for p in parameters])


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


@pytest.mark.parametrize("name", ["tiny", "tiny-v2"])
def test_step_with_everything_in_tensors_is_the_step(pictures, tmp_path, name):
    cfg = several_shapes(recipe(name), pictures)
    one, losses = steps(cfg, tmp_path / "a", plain, 5)
    other, same = steps(cfg, tmp_path / "b", on_device, 5)
    assert np.allclose(losses, same, rtol=1e-5)
    assert len({loss for loss, _ in losses}) == 5  # every step has its own points, times and noise
    assert (one - other).norm() <= 1e-3 * one.norm()


def test_anchors_are_part_of_the_shape_only_where_there_are_any(pictures, tmp_path):
    batch = {"input_coords": torch.zeros(4, 9, 2), "query_coords": torch.zeros(4, 32, 2), "t": torch.zeros(4)}
    for name, shapes in (("tiny", {(4, 9, 32, 8), (4, 9, 32, 16)}), ("tiny-v2", {(4, 9, 32, 0)})):
        step = DeviceStep(prepare(several_shapes(recipe(name), pictures), tmp_path / name, resume_run=False))
        found = {step.set(batch | {"anchors": torch.tensor([anchors])}, 1e-3, 0.9) for anchors in (8, 16, 8)}
        assert found == set(step.batches) == shapes


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "tiny-v2", "periodic"])
def test_recorded_step_is_the_step(pictures, tmp_path, name):
    cfg = several_shapes(replace(tiny(), model=PERIODIC) if name == "periodic" else recipe(name), pictures, steps=60)
    recorders = []

    def recorded(run):
        recorders.append(RecordedStep(run))

        def once(run, batches):
            at = run.progress.step
            return recorders[0](next(batches), lr_at(at, run.cfg), ema_at(at, run.cfg))

        return once

    one, losses = steps(cfg, tmp_path / "a", plain, 40)
    other, same = steps(cfg, tmp_path / "b", recorded, 40)
    assert EAGER_STEPS <= recorders[0].eager < 25
    assert len(recorders[0].recordings) > 2
    assert np.allclose(losses, same, rtol=2e-2)
    assert (one - other).norm() <= 5e-2 * one.norm()


@pytest.mark.gpu
def test_dropout_is_drawn_anew_in_every_replay(pictures, tmp_path):
    cfg = several_shapes(tiny(), pictures, model=replace(preset("tiny"), dropout=0.5), lr=1e-12, min_lr=1e-12, ema=0.0)
    run = prepare(cfg, tmp_path / "run", resume_run=False)
    torch.nn.init.normal_(run.model.get_parameter("network.out.weight"))  # zero at first: nothing would be dropped
    step, batch = RecordedStep(run), next(forever(run))
    losses = [float(step(batch, 1e-12, 0.0)[0]) for _ in range(EAGER_STEPS + 4)]
    assert len(step.recordings) == 1
    assert len(set(losses)) == len(losses)


@pytest.mark.gpu
def test_recorded_run_resumes_also_without_recording(pictures, tmp_path):
    cfg = several_shapes(tiny(), pictures, steps=24, log_every=1, save_every=12)
    train(replace(cfg, graph=True, stop_at=12), tmp_path / "run")
    for graph, stop in ((False, 18), (True, 24)):
        forget_accelerator()
        assert train(replace(cfg, graph=graph, stop_at=stop), tmp_path / "run", resume_run=True).step == stop


def test_recording_without_a_gpu_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cpu")))
    with pytest.raises(ValueError, match="train: --graph must have a CUDA GPU, got cpu; leave it out here"):
        train(replace(tiny(), graph=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_full_memory_names_what_fits_without_recording():
    from mamba_diffusion.outofmemory import fitting_batch

    def fits(cfg, out):
        if cfg.graph or cfg.micro_batch > most:
            raise torch.OutOfMemoryError

    for most in (4, 2):  # of the trainer's four
        said = fitting_batch(replace(tiny(), graph=True), fits)
        assert f"--micro_batch {most} fits without --graph" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch": 2}, "accumulation"),
        ({"compile": True, "precision": "fp16"}, "fp16 and compile"),
        ({"checkpoint_activations": True}, "checkpoint_activations"),
    ],
)
def test_recording_is_refused_beside_what_it_cannot_record(change, said):
    with pytest.raises(ValueError, match=f"graph must be off with .*, got it with {said}; leave out one of them"):
        replace(tiny(), graph=True, **change)
