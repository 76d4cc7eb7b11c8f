"""The study's rows on a handful of pictures: what they write down, and that they go on where they were."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from vim_compress.cli import main
from vim_compress.imp import barrier, interpolate, iterative_pruning, shuffle
from vim_compress.masks import load_masks
from vim_compress.recipes import recipe, tiny
from vim_compress.rows import Job, find_job, jobs
from vim_compress.rows import main as do_row
from vim_compress.study import collect, keep_settings, summary, table, with_needs
from vim_compress.train import train
from vim_compress.trials import train as once
from vim_compress.weights import load_model


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Dark and bright noise: two classes that any network can tell apart."""
    folder, rng = tmp_path_factory.mktemp("study") / "data", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label in range(2):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (16, 16, 3)).astype(np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def study(data):
    """A study's folder with its dense row."""
    folder = data.parent / "study"
    keep_settings(folder, {"recipe": "tiny", "data": str(data), "steps": 6, "global_batch": None, "workers": None})
    assert do_row([str(folder), "dense", "10"]) == 0
    return folder


def row(study, name):
    return json.loads((study / "rows" / f"{name}-10.json").read_text())


def test_dense_row(study):
    found = row(study, "dense")
    assert found["sparsity"] == 0
    assert found["parameters"] == sum(p.numel() for p in load_model(study / found["model"]).parameters())
    assert 0 <= found["top1"] <= 100
    assert found["total_macs"] > 0


def test_pruned_row_scores_the_pruned_network(study):
    do_row([str(study), "cosine-60", "10"])
    found = row(study, "cosine-60")
    assert abs(found["sparsity"] - 0.6) < 0.01
    model = load_model(study / found["model"])
    masks = load_masks(study / "runs" / "cosine-60-10" / "run" / "masks.safetensors")
    assert all(not dict(model.named_parameters())[n][~m].any() for n, m in masks.items())
    assert set(found["per_layer"]) == set(masks)


def test_cut_row_is_smaller_and_recovers_with_the_dense_teacher(study):
    do_row([str(study), "cut-50", "10"])
    found = row(study, "cut-50")
    assert found["parameters"] < row(study, "dense")["parameters"]
    config = json.loads((study / "runs" / "cut-50-10" / "run" / "config.json").read_text())
    assert config["teacher"].endswith("dense-10/run/model")
    assert "top1_before" in found


def test_early_bird_row_says_when_and_what_it_saved(study):
    do_row([str(study), "early-bird-50", "10"])
    found = row(study, "early-bird-50")
    assert len(found["looks"]) == found["ticket_step"] == 5  # nothing moves in so few steps: the fifth mask agrees
    assert 0 < found["training_cost"] < 1.2
    assert found["parameters"] < row(study, "dense")["parameters"]


def test_finished_rows_are_collected(study):
    result = collect(study, {"recipe": "tiny"}, [])
    assert json.loads((study / "study.json").read_text())["rows"] == result["rows"]
    assert all(r["latency_ms"] > 0 for r in result["rows"])
    assert "dense" in table(result["rows"])
    assert (study / "accuracy-latency.svg").is_file()
    pair = [{**result["rows"][0], "top1": t, "seed": s} for s, t in ((1, 40.0), (2, 60.0))]
    line = summary(pair)[0]
    assert (line["top1"], line["seeds"]) == (50.0, 2)
    assert line["top1_std"] == pytest.approx(14.142, abs=1e-3)


def test_report_of_a_study_and_of_a_run_is_one_page(study, capsys):
    do_row([str(study), "cosine-60", "10"])
    collect(study, {"recipe": "tiny"}, [])
    run = study / "runs" / "cosine-60-10" / "run"
    for folder, wanted in ((study, "Sparsity by layer"), (run, "Sparsity of every layer")):
        assert main(["report", str(folder), "--overwrite"]) == 0
        page = (folder / "report.html").read_text()
        assert wanted in page
        assert "http" not in page
    assert "<polyline" in page
    assert "What the class sees" in page
    assert "this network, 16 at a time" in page
    capsys.readouterr()
    assert main(["report", str(run)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", str(study / "rows")]) == 2
    assert "looked for study.json" in capsys.readouterr().err
    (run.parent / "study.json").write_text("{}")
    assert main(["report", str(run.parent)]) == 2
    assert "not as vim-compress wrote it" in capsys.readouterr().err


def test_other_settings_need_another_folder(study):
    with pytest.raises(ValueError, match="other settings"):
        keep_settings(study, {"recipe": "emoji"})


def test_every_row_has_a_name_of_its_own_and_needs_what_exists():
    names = [job.name for job in jobs()]
    assert len(names) == len(set(names))
    assert {need for job in jobs() for need in job.needs} <= set(names)
    ordered = [job.name for job in with_needs([find_job("imp-random-37"), find_job("cut-25")])]
    assert ordered == ["dense", "imp", "imp-random-37", "cut-25"]


def test_unknown_experiment_names_the_nearest(capsys, tmp_path):
    assert main(["study", "--out", str(tmp_path / "s"), "--rows", "cosin-60"]) == 2
    assert "cosine-60" in capsys.readouterr().err
    assert main(["study", "--rows", "list"]) == 0
    assert "early-bird-30" in capsys.readouterr().out


@pytest.fixture(scope="session")
def rounds(data):
    cfg = replace(tiny(), data=str(data), steps=4, save_every=4, sample_every=4, log_every=2)
    trained = []

    def remember(run, out):
        trained.append(out.name)
        if not (out / "config.json").is_file():
            train(run, out)

    folder = data.parent / "imp"
    found = iterative_pruning(cfg, folder, rounds=2, share=0.2, rewind_step=1, train=remember)
    return cfg, folder, found, remember


def test_rounds_prune_a_fifth_of_what_is_left_and_nest(rounds):
    _, _, found, _ = rounds
    assert [r.sparsity for r in found] == pytest.approx([0.0, 0.2, 0.36])
    first, second = load_masks(found[1].masks), load_masks(found[2].masks)
    zeros = [1 - sum(int(m.sum()) for m in f.values()) / sum(m.numel() for m in f.values()) for f in (first, second)]
    assert zeros == pytest.approx([0.2, 0.36], abs=1e-3)
    assert all(not (second[n] & ~first[n]).any() for n in first)
    assert not [n for n in first if any(part in n for part in ("norm", "A_log", "bias", "pos_embed", "dt_proj"))]


def test_survivors_start_from_the_rewound_weights_bit_by_bit(rounds, data):
    from safetensors.torch import load_file
    from vim_compress.run import prepare

    cfg, folder, found, _ = rounds
    from vim_compress.imp import REWIND, rewound

    early = load_file(found[0].folder / REWIND)
    final = load_model(found[0].folder / "model").state_dict()
    run = prepare(rewound(cfg, found[0].folder / REWIND, 1, found[1].masks), folder / "look", resume_run=False)
    assert run.progress.step == 1
    weights = dict(run.pruner.model.named_parameters())
    for name, mask in load_masks(found[1].masks).items():
        assert torch.equal(weights[name][mask], early[name][mask])
        assert not weights[name][~mask].any()
    assert any((early[n] != final[n]).any() for n in early)  # and not from the final ones


def test_pruning_goes_on_after_an_interruption(rounds):
    cfg, folder, found, remember = rounds
    before = {r.masks: r.masks.read_bytes() for r in found[1:]}
    again = iterative_pruning(cfg, folder, rounds=2, share=0.2, rewind_step=1, train=remember)
    assert [r.folder for r in again] == [r.folder for r in found]
    assert all(file.read_bytes() == old for file, old in before.items())


def test_trained_round_keeps_its_zeros(rounds):
    _, _, found, _ = rounds
    weights = load_model(found[2].folder / "model").state_dict()
    assert all(not weights[n][~m].any() for n, m in load_masks(found[2].masks).items())


def test_barrier_is_zero_between_a_network_and_itself(rounds):
    _, _, found, _ = rounds
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def error(model):
        with torch.no_grad():
            return float(model(x).square().mean())

    here = found[0].folder / "model"
    assert barrier(here, here, error, points=3) == pytest.approx(0.0, abs=1e-6)
    a, b = {"w": torch.tensor([0.0]), "n": torch.tensor(3)}, {"w": torch.tensor([4.0]), "n": torch.tensor(5)}
    assert interpolate(a, b, 0.25)["w"] == 1.0
    assert interpolate(a, b, 0.25)["n"] == 3


def test_random_control_prunes_as_much_of_each_layer():
    mask = torch.rand(20, 30) > 0.7
    other = shuffle(mask, torch.Generator().manual_seed(0))
    assert other.sum() == mask.sum()
    assert (other != mask).any()


def test_every_row_fits_the_recipe_of_the_study():
    """Each change of the network can be built on the study's own configuration."""
    from vim_compress.rows import _hybrid_with, _vim

    base = replace(recipe("study").model, classes=10)
    for options in ({"se": "inner"}, {"stem": "patch"}, {"token_conv": "depthwise2d"}, {"mixer": "s5"}):
        assert _vim(**options)(base) != base
    assert _hybrid_with(attention="band", windows=(4, 4, 4, 2))(base).image == base.image


def test_stopped_row_is_not_taken_for_a_finished_one(data, tmp_path):
    cfg = replace(tiny(), data=str(data), steps=4, stop_at=2, save_every=4)
    with pytest.raises(SystemExit, match="step 2 of 4"):
        once(cfg, tmp_path / "run")
    assert once(replace(cfg, stop_at=None), tmp_path / "run") > 0


def test_run_that_was_stopped_before_its_first_checkpoint_starts_from_its_weights_again(study, tmp_path):
    from safetensors.torch import save_file
    from vim_compress.run import prepare

    model = load_model(study / "runs" / "dense-10" / "run" / "model")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    data = str(study.parent / "data")
    cfg = replace(tiny(), data=data, init=str(tmp_path / "weights.safetensors"), first_step=3)
    prepare(cfg, tmp_path / "run", resume_run=False)
    run = prepare(cfg, tmp_path / "run", resume_run=True)
    assert run.progress.step == 3
    assert torch.equal(run.pruner.model.state_dict()["pos_embed"], model.state_dict()["pos_embed"])


def test_row_that_fails_is_tried_step_by_step_and_stops_what_waits_for_it(tmp_path, monkeypatch):
    from vim_compress import schedule

    started = []

    def start(folder, task, slot):
        started.append((task.name, task.eager))
        good = task.eager and task.job.name != "bad"
        if good:
            (folder / "rows").mkdir(exist_ok=True)
            schedule.row_file(folder, task.job.name, task.seed).write_text("{}")
        return SimpleNamespace(poll=lambda: 0 if good else 1, returncode=0 if good else 1)

    monkeypatch.setattr(schedule, "_start", start)
    jobs = [Job("good", (), None), Job("after", ("good",), None), Job("bad", (), None), Job("never", ("bad",), None)]
    failed = schedule.run_rows(tmp_path, [(job, 10) for job in jobs], 2)
    assert failed == ["bad-10", "never-10"]
    assert ("good-10", True) in started
    assert ("after-10", True) in started
    assert not [name for name, _ in started if name == "never-10"]


def test_study_without_held_out_pictures_is_refused_before_it_trains(data, capsys, tmp_path):
    assert main(["study", "--out", str(tmp_path / "s"), "--data", str(data / "train"), "--recipe", "tiny"]) == 2
    assert "put some into" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()  # a mistake leaves nothing behind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "imp", "snip-80", "mambavision-s4d", "vim-s5", "mambavision-neighbourhood"])
def test_other_rows(study, name):
    do_row([str(study), name, "10"])
    found = row(study, name)
    assert 0 <= found["top1"] <= 100
    assert ("top1_double_size_half_step" in found) == name.endswith(("s4d", "s5"))  # both families
    if name == "imp":
        do_row([str(study), "imp-random-60", "10"])
        methods = {r["method"] for r in collect(study, {"recipe": "tiny"}, [])["rows"]}
        assert {"imp-37", "imp-60", "imp-75", "imp-random-60"} <= methods


@pytest.mark.slow
def test_study_runs_rows_in_processes_and_goes_on(study, data, capsys, tmp_path):
    arguments = ["study", "--out", str(tmp_path / "s"), "--recipe", "tiny", "--data", str(data), "--steps", "4"]
    arguments += ["--seeds", "1", "--jobs", "2", "--rows", "cut-25"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "dense" in said.out
    assert main(arguments) == 0
    assert "done" not in capsys.readouterr().err
