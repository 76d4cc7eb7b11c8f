"""Timings: what they report, and that comparisons run the path that they name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hybrid_sr import speed
from hybrid_sr.config import ModelConfig, preset
from hybrid_sr.recipes import recipe
from hybrid_sr.speedreport import tables
from hybrid_sr.timing import Setup, inference_speed, milliseconds, training_speed

TINY = ModelConfig(scale=2, dim=12, depths=(1,), heads=2, window=8)
CPU = torch.device("cpu")


def test_training_and_inference_report_rates_of_what_was_timed():
    setup = Setup(config=TINY, device=CPU, precision="no", repeats=1)
    step = training_speed(setup, replace(recipe("tiny", 2), model=TINY, patch=8, global_batch=2, micro_batch=2))
    assert step["samples_per_s"] == pytest.approx(2e3 / step["ms"], rel=0.01)
    picture = inference_speed(setup, 8, 16)
    assert picture["megapixels_per_s"] == pytest.approx(8 * 16 * 4 / picture["ms"] / 1e3, abs=1e-3)


def test_plain_attention_is_what_is_built(monkeypatch):
    calls = []
    monkeypatch.setattr("hybrid_sr.attention.eager_window_attention", lambda q, k, v, **kw: calls.append(kw) or q)
    setup = Setup(config=replace(preset("hat-light", 2), dim=12, depths=(2,), heads=2, squeeze_factor=6), device=CPU)
    setup.build()(torch.rand(1, 3, 16, 16))
    assert not calls
    replace(setup, plain="attention").build()(torch.rand(1, 3, 16, 16))
    assert [kw["shift"] for kw in calls] == [0, 8, 0]


def test_plain_norms_are_what_is_built(monkeypatch):
    """The reference of the speed table: PyTorch's norm after a sum of its own, with the results of the fused one."""
    setup = Setup(config=replace(preset("hat-light", 2), dim=12, depths=(2,), heads=2, squeeze_factor=6), device=CPU)
    x = torch.rand(1, 3, 16, 16)
    wanted = setup.build()(x)
    plain = replace(setup, plain="attention and norms").build()
    monkeypatch.setattr("ssm_kernels.nn.layer_norm.layer_norm", None)
    torch.testing.assert_close(plain(x), wanted)


def test_warm_up_is_not_timed():
    calls = []
    milliseconds(lambda: calls.append(1), CPU, 2)
    assert len(calls) == 5


def test_speed_without_a_gpu_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speed.main(["--out", str(tmp_path / "a.json")]) == 2
    assert "must have a CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_everything_is_measured_once():
    names = [name for name, _ in speed.measurements(CPU, Path("photos"), None)]
    assert len(names) == len(set(names)) == 3 + 10 + 12 + 1 + 3


def test_tables_hold_what_was_measured_and_compare_with_the_eager_reference():
    part = {"ms": 10.0, "samples_per_s": 300.0, "megapixels_per_s": 60.0, "peak_bytes": 2e9}
    slow = {"ms": 20.0, "samples_per_s": 100.0, "megapixels_per_s": 30.0, "peak_bytes": 4e9}
    results = {
        "environment": {"GPU": "x"},
        "eager: hybrid": {"training": part, "inference": part},
        "eager: HAT-light eager": {"training": slow, "inference": slow},
        "graph: hybrid": {"error": "no"},
        "4K bf16 tile 256": {"ms": 99.6, "megapixels_per_s": 83.0, "peak_bytes": 1e9},
    }
    found = tables(results)
    assert "| eager | hybrid | 10.0 | 300.0 | x 3.00 | 2.00 | 10.0 | 60.0 | x 2.00 | 2.00 |" in found["networks"]
    assert "graph" not in found["networks"]
    assert "| bf16 | 256 | 100 | 83.0 | 1.00 |" in found["4K"]
