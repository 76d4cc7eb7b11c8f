"""Targets, importance, and the verb `prune` from a trained folder to a smaller one."""

import json

import pytest
import torch
from vim_compress.axes import find_axes
from vim_compress.cli import main
from vim_compress.config import VimConfig
from vim_compress.cost import Target, meter, parse_target
from vim_compress.cut import residual_tensors
from vim_compress.importance import importance
from vim_compress.info import model_info
from vim_compress.models import make_network
from vim_compress.presets import preset
from vim_compress.prune import prune_to
from vim_compress.target import find_plan, sizes_at
from vim_compress.weights import load_model


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = VimConfig(
        image=(16, 16), patch=4, stride=4, dim=32, depth=2, classes=3, labels=("a", "b", "c"), domain="x"
    )
    make_network(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(capsys, *argv):
    code = main(list(map(str, argv)))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("latency=0.5x", Target("latency", 0.5, True)),
        ("latency=12ms", Target("latency", 12.0, False)),
        ("latency=1.5s", Target("latency", 1500.0, False)),
        ("macs=0.9G", Target("macs", 0.9e9, False)),
        ("parameters=3.5M", Target("parameters", 3.5e6, False)),
    ],
)
def test_targets_are_read(text, wanted):
    assert parse_target(text) == wanted


@pytest.mark.parametrize("text", ["speed=2x", "latency=0.5", "macs=3ms", "parameters=2x", "latency=0x", "half"])
def test_wrong_targets_are_named(text):
    with pytest.raises(ValueError, match=r"^--target"):
        parse_target(text)


@pytest.mark.parametrize(
    ("name", "macs", "total"),
    [
        ("vim_tiny_patch16_224", 1.29, 1.82),
        ("vim_small_patch16_224", 4.85, 5.90),
        ("mambavision_t", 4.56, 4.58),
    ],
)
def test_operations_of_published_sizes(name, macs, total):
    info = model_info(preset(name))
    assert abs(info["macs"] / 1e9 - macs) < 0.006
    assert abs(info["total_macs"] / 1e9 - total) < 0.006


@pytest.mark.parametrize(("share", "parameters", "total"), [(0.75, 5.46, 1.37), (0.5, 3.77, 0.92), (0.25, 2.08, 0.48)])
def test_operations_of_cut_sizes(share, parameters, total):
    widths = {f"layers.{i}.inner": round(384 * share) for i in range(24)}
    info = model_info(VimConfig(widths=widths))
    assert abs(info["parameters"] / 1e6 - parameters) < 0.006
    assert abs(info["total_macs"] / 1e9 - total) < 0.006


@pytest.mark.parametrize("text", ["parameters=0.5x", "macs=0.6x"])
def test_prune_writes_an_ordinary_smaller_network(capsys, folder, tmp_path, text):
    out = tmp_path / "small"
    code, said, _ = run(capsys, "prune", "--weights", folder, "--out", out, "--target", text, "--multiple", 4, "--json")
    assert code == 0
    result = json.loads(said)
    limit = float(text.partition("=")[2][:-1])
    assert 0.7 * limit < result["ratio"] <= limit
    small = load_model(out)
    assert sum(p.numel() for p in small.parameters()) == result["parameters"][1]
    assert small.config.labels == ("a", "b", "c")
    assert set(result["widths"].values()) == {small.config.inner(0)}
    assert not list(tmp_path.glob("*.tmp"))


def test_prune_by_latency_measures(capsys, folder, tmp_path, monkeypatch):
    """The clock is replaced: a network takes a millisecond for each inner channel of its first block."""
    from vim_compress import benchmark

    def clock(model, **how):
        return benchmark.Timing(float(model.config.inner(0)), 0.0, None)

    monkeypatch.setattr(benchmark, "time_network", clock)
    code, said, _ = run(capsys, "prune", "--weights", folder, "--out", tmp_path / "s", "--target", "latency=0.5x")
    assert code == 0
    assert "latency: 64 ms -> 32 ms (0.50x)" in said


@pytest.mark.parametrize(("kind", "left"), [("blocks", "depth"), ("directions", "state"), ("residual", "dim")])
@pytest.mark.parametrize("by", ["magnitude", "taylor"])
def test_coarse_cuts_take_as_little_as_the_target_needs(folder, kind, left, by):
    model = load_model(folder)
    torch.manual_seed(1)
    with torch.no_grad():  # block 0 or the backward direction of block 1 matters least, as do the last channels
        model.layers[0].mixer.out_proj.weight.mul_(1e-3 if kind == "blocks" else 1)
        model.layers[1].mixer.D_b.mul_(1e-3)
        model.layers[1].mixer.x_proj_b.weight.mul_(1e-3)
        for name, dim in residual_tensors(model.state_dict()).items():
            dict(model.named_parameters())[name].narrow(dim, 16, 16).mul_(1e-3)
    batch = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    target = parse_target("parameters=0.9x")
    small, plan = prune_to(model, target, kinds=(kind,), by=by, batches=iter([batch]))
    assert plan.cost <= 0.9 * plan.before
    found = {"depth": small.config.depth, "dim": small.config.dim, "state": small.config.state(1)}
    assert found[left] == {"depth": 1, "dim": 16, "state": (16, 0)}[left]
    assert small(batch[0]).isfinite().all()


def test_coarse_cuts_refuse_what_they_cannot_do(capsys, folder, tmp_path):
    for arguments, said in (
        (["--axes", "blocks,inner"], "must be alone"),
        (["--axes", "blocks", "--target", "parameters=0.01x"], "the nearest is"),
        (["--axes", "residual", "--importance", "gates"], "gates are for channels"),
    ):
        code, _, error = run(capsys, "prune", "--weights", folder, "--out", tmp_path / "s", *arguments)
        assert (code, said in error, error.count("\n")) == (2, True, 1)


def test_unreachable_target_says_the_nearest(capsys, folder, tmp_path):
    code, _, error = run(capsys, "prune", "--weights", folder, "--out", tmp_path / "s", "--target", "parameters=0.01x")
    assert code == 2
    assert "the nearest is" in error
    assert not (tmp_path / "s").exists()


def test_full_folder_is_not_overwritten(capsys, folder, tmp_path):
    code, _, error = run(capsys, "prune", "--weights", folder, "--out", folder)
    assert (code, "--overwrite" in error) == (2, True)
    code, _, error = run(capsys, "prune", "--weights", folder)
    assert (code, "--out" in error) == (2, True)


def test_magnitude_finds_dead_channels(folder):
    model = load_model(folder)
    dead = [3, 17, 40]
    with torch.no_grad():
        for axis in find_axes(model):
            for member in axis.members:
                tensor = dict(model.named_parameters())[member.tensor]
                for start in member.starts:
                    tensor.index_fill_(member.dim, torch.tensor(dead) + start, 0.0)
    for score in importance(model, find_axes(model), "magnitude").values():
        assert sorted(score.topk(3, largest=False).indices.tolist()) == dead


def test_taylor_is_the_change_of_the_loss_at_first_order():
    """Of a unit whose slices are scaled by (1 - e), the loss changes by e times its score."""
    torch.manual_seed(0)
    model = make_network(VimConfig(image=(8, 8), patch=4, stride=4, dim=16, depth=1, classes=3)).eval().double()
    x, label = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    axis = find_axes(model)[0]
    score = importance(model, [axis], "taylor", [(x, label)])[axis.name]
    tensors, e = dict(model.named_parameters()), 1e-5

    def loss():
        return torch.nn.functional.cross_entropy(model(x), label)

    for unit in (0, 5):
        before = loss()
        with torch.no_grad():
            for member in axis.members:
                for start in member.starts:
                    tensors[member.tensor].select(member.dim, start + unit).mul_(1 - e)
            change = (loss() - before).abs() / e
            for member in axis.members:
                for start in member.starts:
                    tensors[member.tensor].select(member.dim, start + unit).div_(1 - e)
        assert abs(change - score[unit]) < 2e-3 * score.max()


def test_global_spread_cuts_what_matters_least(folder):
    model = load_model(folder)
    axes = find_axes(model)
    scores = {axes[0].name: torch.linspace(1, 2, 64), axes[1].name: torch.linspace(0, 1, 64)}
    counts = sizes_at(axes, scores, 0.5, "global", multiple=1)
    assert counts[axes[0].name] == 64
    assert counts[axes[1].name] <= 2
    assert set(sizes_at(axes, scores, 0.5, "uniform", multiple=1).values()) == {32}


def test_plan_keeps_everything_if_nothing_is_asked(folder):
    model = load_model(folder)
    target = parse_target("parameters=1x")
    measure = meter(target, batch=1, device="cpu", precision="fp32", repeats=1)
    assert find_plan(model.config, find_axes(model), {}, target, measure).kept == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "weight=3"], "--target"),
        (["--axes", "heads"], "inner, state for vim"),
        (["--importance", "gates"], "gates"),
        (["--weights", "/nonexistent"], "does not exist"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line(capsys, folder, tmp_path, arguments, said):
    code, _, error = run(capsys, "prune", "--weights", folder, "--out", tmp_path / "s", *arguments)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
