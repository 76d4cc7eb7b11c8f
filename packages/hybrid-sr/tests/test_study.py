"""The study of the light networks: what its rows are, that it runs, goes on, and reports what the rows say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hybrid_sr import studyrows
from hybrid_sr.cli import main
from hybrid_sr.config import ModelConfig
from hybrid_sr.info import count, model_info
from hybrid_sr.model import HybridSR
from hybrid_sr.study import StudyOptions, plan_jobs, run_jobs
from hybrid_sr.studyreport import curve_differences, report, summary, table
from hybrid_sr.studyrows import BASE, ROWS, Row, find_rows
from PIL import Image

EQUAL = ("gcffn-matched", "no-final-norm", "residual-0.2", "ratio-3-1", "ratio-5-1", "ratio-8-1", "ssd", "registers")


def parameters(name: str) -> int:
    with torch.device("meta"):
        return count(HybridSR(find_rows(name)[0].config(4)))


@pytest.mark.parametrize("name", EQUAL)
def test_rows_that_claim_equal_size_have_it(name):
    assert abs(parameters(name) / parameters(BASE) - 1) < 0.01


def test_gated_ffn_is_compared_at_equal_size():
    assert abs(parameters("geglu-2") / parameters("mlp-3") - 1) < 0.01


def test_costs_of_every_row_are_counted():
    shallow = {row.name: replace(row.config(4), depths=(1,)) for row in ROWS}
    macs = {name: model_info(config, 4, 16, 16)["macs"] for name, config in shallow.items()}
    assert macs["registers"] > macs[BASE] > macs["multi-query"]
    assert macs["clipped-softmax"] == macs["window-scan"] == macs["no-final-norm"] == macs[BASE]


@pytest.mark.parametrize("ratio", (3, 5, 8))
def test_ratios_are_what_they_are_called(ratio):
    assert set(find_rows(f"ratio-{ratio}-1")[0].config(4).depths) == {ratio}


def test_names_are_unique_and_unknown_ones_refused():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert [row.name for row in find_rows("ssd, mamba")] == ["ssd", "mamba"]
    with pytest.raises(ValueError, match=r"--rows: must be some of .*did you mean hat-light"):
        find_rows("hat-ligt")


def test_seeds_come_one_after_the_other(tmp_path):
    jobs = plan_jobs(StudyOptions(out=tmp_path, rows="mamba,ssd", seeds="1,2"))
    assert [job.name for job in jobs] == ["mamba-1", "ssd-1", "mamba-2", "ssd-2"]


@pytest.fixture
def small(monkeypatch):
    """Make every row of this process a tiny network."""
    tiny = ModelConfig(scale=2, dim=12, depths=(1,), heads=2, window=8)
    rows = tuple(
        Row(name=name, config=lambda scale, changes=changes: replace(tiny, scale=scale, **changes), question="")
        for name, changes in ((BASE, {}), ("ssd", {"mixer": "ssd"}))
    )
    monkeypatch.setattr(studyrows, "ROWS", rows)


def photo(file, seed, side=96):
    noise = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(file)


@pytest.fixture
def photos(tmp_path):
    for name, seeds in (("train", (0, 1)), ("test", (2,))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            photo(tmp_path / name / f"{seed}.png", seed)
    return tmp_path


def order(photos, **changes):
    test = str(photos / "test")
    return {
        "row": BASE,
        "seed": 3,
        "study": str(photos / "study"),
        "workers": 0,
        "data": str(photos / "train"),
        "test": test,
        "curve": test,
        "scale": 2,
        "steps": 4,
        "batch": 2,
        "patch": 16,
        "points": 2,
        "lr": 1e-3,
        "graph": False,
    } | changes


def test_run_leaves_its_row_and_report_follows(small, photos, capsys):
    from hybrid_sr.study import StudyOptions, keep_settings
    from hybrid_sr.studyrun import main as run

    settings = order(photos)
    options = StudyOptions(out=photos / "study", scale=2, steps=4, batch=2, patch=16, points=2, rows="ssd")
    assert options.out is not None
    keep_settings(options.out, options.settings())
    for name in (BASE, "ssd"):
        assert run(order(photos, row=name)) == 0
    row = json.loads((photos / "study" / "rows" / f"{BASE}-3.json").read_text())
    assert (row["method"], row["seed"], row["steps"], row["photos"]) == (BASE, 3, 4, 1)
    assert row["sets"]["test"]["psnr_y"] == row["psnr_y"] > 5
    assert row["curve"]["step"] == [2, 4] and len(row["curve"]["psnr_y"]) == 2
    assert row["loss_curve"]["step"] == [1, 2, 3, 4]
    with torch.device("meta"):
        assert row["parameters"] == count(HybridSR(find_rows(BASE)[0].config(settings["scale"])))
    files = report(options.out)
    assert {file.name for file in files} == {"study.json", "table.md", "study.png", "curves.png"}
    assert all(file.is_file() for file in files)
    with pytest.raises(ValueError, match=r"steps 4 in .*, 5 now"):
        keep_settings(options.out, replace(options, steps=5).settings())


@pytest.mark.slow  # starts a process
def test_done_runs_are_not_repeated_and_failures_are_named(tmp_path, capsys):
    options = StudyOptions(out=tmp_path, rows="ssd,mamba", seeds="1", data=str(tmp_path / "none"), jobs=2)
    for name in ("rows", "logs"):
        (tmp_path / name).mkdir()
    jobs = plan_jobs(options)
    jobs[0].result.write_text("{}")
    assert run_jobs(jobs, options) == ["mamba-1"]
    assert jobs[0].result.read_text() == "{}"
    assert "mamba-1: FAILED, see" in capsys.readouterr().out
    assert "none" in (tmp_path / "logs" / "mamba-1.log").read_text()


def made_up(method, seed, psnr, ssim=0.8):
    return {
        "method": method,
        "seed": seed,
        "parameters": 10,
        "macs": 2e9,
        "scan_ops": 1e9,
        "psnr_y": psnr,
        "ssim_y": ssim,
        "curve": {"step": [1], "psnr_y": [psnr]},
    }


def test_summary_compares_same_seeds_and_tells_the_spread():
    part = {"samples_per_s": 100.0, "megapixels_per_s": 5.0, "peak_bytes": 2e9}
    speed = [{"method": "ssd", "eager": {"training": part, "inference": part}}]
    rows = [made_up(BASE, 1, 30.0), made_up(BASE, 2, 30.2), made_up("ssd", 1, 30.5), made_up("ssd", 3, 31.5)]
    base, ssd = summary({"rows": rows, "speed": speed})
    assert (base["method"], ssd["method"]) == (BASE, "ssd")
    assert base["psnr_spread"] == pytest.approx(0.1)
    assert ssd["difference"] == pytest.approx(0.5) and ssd["difference_spread"] is None  # seed 3 has no base
    assert base["train_samples_per_s"] is None
    (alone,) = summary({"rows": rows[:1], "speed": []})
    assert alone["psnr_spread"] is None and "| 30.000 | +0.000 | 0.8000 | 1 |" in table([alone])
    assert "| ssd | 10 | 2.0 + 1.0 | 100 | 2.00 | 5.0 | 2.00 | 31.000 +- 0.500 | +0.500 |" in table([base, ssd])
    both = summary({"rows": [*rows[:3], made_up("ssd", 2, 30.4)], "speed": []})
    assert "| 30.450 +- 0.050 | +0.350 +- 0.150 |" in table(both)


def test_curves_are_compared_within_a_seed():
    """A network that ran with one seed only must not be compared with the base's mean."""
    rows = [made_up(BASE, 1, 30.0), made_up(BASE, 2, 31.0), made_up("ssd", 2, 31.5), made_up("mamba", 3, 99.0)]
    assert curve_differences(rows) == {BASE: [0.0], "ssd": [0.5]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["light"], "--out is missing"),
        (["heavy", "--out", "x"], "the family must be one of light, got heavy"),
        (["light", "--out", "x", "--steps", "5"], "--points: must be at most --steps 5"),
        (["light", "--out", "x", "--seeds", "a"], "--seeds: must be whole numbers"),
        (["light", "--out", "x", "--phase", "report"], "--out: must be a study with a finished run"),
    ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
