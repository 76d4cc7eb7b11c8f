"""The parts of the trainer by themselves; what a whole run does is in the workspace's trainer contract."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import pytest
import torch
from mamba_diffusion.config import preset
from mamba_diffusion.model import SparseField
from mamba_diffusion.recipes import recipe
from mamba_diffusion.train import lr_at, main, train
from mamba_diffusion.weights import start_from


@pytest.fixture(autouse=True)
def fresh_accelerator():
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def quick(pictures, **changes):
    return dataclasses.replace(
        recipe("tiny"), data=str(pictures), validation="none", steps=4, warmup=1, log_every=1, save_every=2, **changes
    )


def test_ours_resumes_bit_equally_with_dropout(pictures, tmp_path):
    """The contract's cases run a network of the seed's kind without dropout."""
    from accelerate.state import AcceleratorState, GradientState

    model = dataclasses.replace(preset("tiny"), dropout=0.2)
    cfg = quick(pictures, model=model, queries=(32, 64), sensors=(0.1, 0.5))
    train(cfg, tmp_path / "whole")
    for out, stop, resume in ((tmp_path / "parts", 3, False), (tmp_path / "parts", None, True)):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        train(dataclasses.replace(cfg, stop_at=stop), out, resume_run=resume)
    files = [tmp_path / run / "model" / "model.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_scaling_and_unit_of_the_data_are_stored_with_the_weights(tmp_path):
    import numpy as np

    values = 280 + 5 * np.random.default_rng(0).random((2, 32, 32, 1))
    np.savez(tmp_path / "a.npz", values=values, unit="K")
    cfg = quick(tmp_path / "a.npz", model=dataclasses.replace(preset("tiny"), channels=1), stop_at=1)
    train(cfg, tmp_path / "run")
    model = SparseField.from_pretrained(tmp_path / "run" / "model")
    assert float(model.mean) == pytest.approx(values.mean(), rel=1e-5)
    assert float(model.std) == pytest.approx(values.std(), rel=1e-3)
    assert model.config.unit == "K"


def test_loss_falls_on_a_field_that_kriging_gets_wrong(tmp_path):
    """Stripes: after some steps the network knows them better than the covariance does."""
    import numpy as np

    stripes = np.tile((np.arange(32) // 2 % 2)[:, None, None], (1, 32, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", values=stripes[None])
    cfg = dataclasses.replace(
        quick(tmp_path / "a.npz"), steps=50, global_batch=8, micro_batch=8, lr=1e-2, sensors=(0.3, 0.4), save_every=50
    )
    train(cfg, tmp_path / "run")
    rows = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(rows[-10:]) < 0.9 * np.mean(rows[:10])


def test_v2_takes_from_v1_what_they_share(tmp_path):
    """Fourier features and time embedding at equal width, and the front end and decoder, which have equal shapes."""
    small = {"width": 32, "heads": 4, "fourier": 8}
    v1 = SparseField(dataclasses.replace(preset("v1"), layers=2, **small))
    v2 = SparseField(dataclasses.replace(preset("v2"), layers=2, **small))
    v1.save_pretrained(tmp_path / "v1")
    before = {k: x.clone() for k, x in v2.network.state_dict().items()}
    taken, anew = start_from(v2, tmp_path / "v1")
    assert set(taken) == {"fourier", "input_proj", "query_proj", "time_mlp", "decoder"}
    assert torch.equal(v2.network.state_dict()["fourier.B"], v1.network.state_dict()["fourier.B"])
    assert all(name.startswith(("bidirectional_mamba", "perceiver")) for name in anew)
    assert torch.equal(v2.network.state_dict()[anew[0]], before[anew[0]])
    narrow = SparseField(dataclasses.replace(preset("v2"), layers=2, width=16, heads=4, fourier=8))
    taken, _ = start_from(narrow, tmp_path / "v1")
    assert "fourier" in taken
    assert "time_mlp" not in taken
    with pytest.raises(ValueError, match="weights of a related network"):
        start_from(SparseField(dataclasses.replace(preset("tiny"), channels=7, fourier=5)), tmp_path / "v1")


def test_init_is_told_and_used(pictures, tmp_path, capsys):
    SparseField(preset("tiny")).save_pretrained(tmp_path / "first")
    arguments = ["tiny", "--data", str(pictures), "--validation", "none", "--init", str(tmp_path / "first")]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--stop_at", "1"]) == 0
    said = capsys.readouterr().err
    assert "init: took context_layers, context_norm, decoder_layers, fourier, " in said
    assert "0 parameters start anew: none" in said


def test_validation_gives_a_score_and_a_picture(tmp_path):
    import numpy as np
    from mamba_diffusion.fieldset import make_part
    from mamba_diffusion.sources import Field
    from mamba_diffusion.validation import draw, score

    values = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
    part = make_part(Field(name="a", values=values), values, np.zeros(2, np.int64), 16, 16, 0.2, 0, ())
    model, device = SparseField(preset("tiny")).eval(), torch.device("cpu")
    assert 0 < score(model, [part], device) < 40
    draw(model, [part], device, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_learning_rate_rises_then_falls():
    cfg = dataclasses.replace(recipe("tiny"), steps=110, warmup=10, lr=1.0, min_lr=0.2)
    assert [lr_at(step, cfg) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert lr_at(110, cfg) == pytest.approx(0.2)


def test_packed_folder_holds_what_was_packed(tmp_path):
    import numpy as np
    from mamba_diffusion.pack import pack
    from mamba_diffusion.sources import Field, packed

    rng = np.random.default_rng(0)
    common = {"package": "p", "licence": "l"}
    image = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    warm = (280 + rng.random((3, 9, 8, 1))).astype(np.float32)
    warm[:, 0] = np.nan
    fields = [Field(name="photo", values=image, split="held-out", subject="rgb", **common)]
    fields += [Field(name=f"t[{n}]", values=x, subject="sst", unit="K", **common) for n, x in enumerate(warm)]
    pack(fields, tmp_path / "packed", 10**6)
    (photo,) = packed(tmp_path / "packed", "rgb")
    np.testing.assert_array_equal(photo.values, image)  # held-out photos lose nothing
    series = packed(tmp_path / "packed", "temperature")
    assert [(f.unit, f.split, f.licence) for f in series] == [("K", "train", "l")] * 3
    np.testing.assert_allclose(np.stack([f.values for f in series]), warm, atol=2e-5)
    with pytest.raises(ValueError, match="nothing of subject topography"):
        packed(tmp_path / "packed", "topography")
    with pytest.raises(ValueError, match="has files in it"):
        pack(fields, tmp_path / "packed", 10**6)
    with pytest.raises(ValueError, match="above the limit"):
        pack(fields, tmp_path / "other", 10)
    (tmp_path / "packed" / "photo.webp").unlink()
    with pytest.raises(ValueError, match=r"photo\.webp, which is missing; pack again"):
        packed(tmp_path / "packed", "rgb")


def test_a_study_that_is_stopped_stops_its_runs(tmp_path, monkeypatch):
    from mamba_diffusion.arguments import StudyOptions
    from mamba_diffusion.study import Job, Study

    said = tmp_path / "said"
    child = f"""
import pathlib, signal, sys, time
said = pathlib.Path({str(said)!r})
signal.signal(signal.SIGTERM, lambda *_: (said.write_text("stopped"), sys.exit()))
said.write_text("started")
time.sleep(60)
"""
    monkeypatch.setattr(Job, "command", lambda *_: [sys.executable, "-c", child])

    def stop():
        while not (said.is_file() and said.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit, match="143"):
        Study(StudyOptions(out=tmp_path / "study")).train([Job("v1", "rgb", 1e-3, 0)])
    assert said.read_text() == "stopped"


@pytest.mark.slow
def test_study_trains_measures_and_goes_on(pictures, tmp_path, capsys, monkeypatch):
    """Six runs of the smoke plan; a second call finds everything done."""
    monkeypatch.setattr("mamba_diffusion.study.SAMPLES", 3)
    monkeypatch.setattr("mamba_diffusion.study.STEPS", 1)
    import numpy as np
    from mamba_diffusion.pack import pack
    from mamba_diffusion.sources import Field

    rng = np.random.default_rng(0)
    common = {"subject": "rgb", "package": "p", "licence": "l"}
    draws = [("a", "train"), ("b", "held-out")]
    fields = [
        Field(name=n, values=rng.integers(0, 255, (96, 96, 3)).astype(np.uint8), split=s, **common)  # pyright: ignore[reportArgumentType]
        for n, s in draws
    ]
    pack(fields, tmp_path / "packed", 10**7)
    from mamba_diffusion.cli import main as command

    asked = ["study", "--plan", "smoke", "--data", str(tmp_path / "packed"), "--out", str(tmp_path / "study")]
    asked += ["--rates", "1e-3,5e-3", "--seeds", "2", "--steps", "4", "--batch", "4", "--count", "2"]
    asked += ["--resolutions", "48", "--precision", "no"]
    assert command(asked) == 0
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    full = [row for row in record["rows"] if "full" in row]
    assert len([row for row in full if "seed" in row]) == 4
    assert {row["method"] for row in full} >= {"tiny", "tiny-v2", "nearest", "rbf"}
    assert {len(row["full"]) for row in full} == {5}  # classical methods on the finer grid as well
    capsys.readouterr()
    assert command(asked) == 0
    assert "started" not in capsys.readouterr().out
