"""The verbs end to end on tiny models: the files that they say they write, and one line for every mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mamba_diffusion import multiscale
from mamba_diffusion.cli import main

QUICK = ("--samples", "3", "--steps", "2", "--device", "cpu")


@pytest.fixture
def saved(tiny_model, tmp_path: Path) -> Callable[..., str]:
    """Save a tiny model and return its folder."""

    def save(name: str = "tiny", **changes) -> str:
        folder = tmp_path / f"model-{name}-{len(changes)}"
        model = tiny_model(name, **changes)
        if changes.get("channels") == 1:
            model.mean.fill_(280.0)
            model.std.fill_(10.0)
        model.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def fields(tmp_path: Path) -> str:
    """Smooth colour fields with edges, all for training."""
    y, x = np.mgrid[:64, :64] / 64
    waves = [np.sin(9 * x + k * y)[..., None] * [0.4, 0.3, 0.2] + (x > 0.5)[..., None] * 0.2 + 0.4 for k in (3, 5)]
    np.savez(tmp_path / "fields.npz", values=np.stack(waves).astype(np.float32))
    return str(tmp_path / "fields.npz")


@pytest.fixture
def sensors(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    places = rng.random((40, 2)) * [8, 4]
    lines = [f"{x:.4f},{y:.4f},{280 + x + np.sin(y):.4f}" for x, y in places]
    (tmp_path / "sensors.csv").write_text("\n".join(["lon,lat,temperature [K]", *lines]) + "\n")
    return str(tmp_path / "sensors.csv")


def measured(fields: str) -> tuple[str, ...]:
    return ("--data", fields, "--split", "train", "--subject", "sst", "--count", "2", "--side", "16", *QUICK)


def test_reconstruct_writes_field_and_uncertainty(saved, sensors, tmp_path, capsys):
    from scipy.io import netcdf_file

    out = tmp_path / "field"
    asked = ["reconstruct", sensors, "--weights", saved(channels=1), "--grid", "6x12", "--out", str(out), *QUICK]
    assert main([*asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["sensors"], record["queries"], record["unit"]) == (40, 72, "K")
    assert sorted(f.name for f in out.iterdir()) == sorted(Path(f).name for f in record["files"])
    with np.load(out / "reconstruction.npz") as arrays:
        assert arrays["samples"].shape == (3, 6, 12, 1)
        assert arrays["quantiles"].shape == (3, 6, 12, 1)
        np.testing.assert_allclose(arrays["mean"], arrays["samples"].mean(0), rtol=1e-6)
        assert str(arrays["unit"]) == "K"
        assert 270 < arrays["mean"].mean() < 300
    with netcdf_file(out / "reconstruction.nc", mmap=False) as file:
        assert file.variables["temperature_mean"].dimensions == ("lat", "lon")
        assert file.variables["temperature_samples"].shape == (3, 6, 12)
        assert file.variables["temperature_std"].units == b"K"
        assert np.diff(file.variables["lon"][:]) == pytest.approx(np.ptp(file.variables["lon"][:]) / 11)
    assert main(asked) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_reconstruct_at_places_and_in_any_unit(saved, sensors, tmp_path, capsys):
    (tmp_path / "at.csv").write_text("lon,lat\n1,1\n2,2\n3,3\n")
    asked = ["reconstruct", sensors, "--weights", saved(channels=1, unit="degC"), "--at", str(tmp_path / "at.csv")]
    assert main([*asked, "--out", str(tmp_path / "a"), *QUICK]) == 2
    assert "must be in degC, as the training data, got K" in capsys.readouterr().err
    assert main([*asked, "--out", str(tmp_path / "a"), *QUICK, "--normalise", "sensors"]) == 0
    with np.load(tmp_path / "a" / "reconstruction.npz") as arrays:
        assert arrays["mean"].shape == (3, 1)
        assert 270 < arrays["mean"].mean() < 300


def test_example_is_compared_with_its_truth(saved, tmp_path, capsys):
    out = tmp_path / "example"
    assert main(["reconstruct", "--weights", saved(channels=1), "--out", str(out), *QUICK, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["psnr_mean"] > 10
    assert (out / "picture.png").is_file()


def test_without_shipped_weights_one_line_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("mamba_diffusion.weights.SHIPPED", tmp_path / "none")
    assert main(["reconstruct"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "none ship with this version" in said
    assert "--weights" in said


def test_evaluate_puts_model_and_baselines_in_a_table(saved, fields, tmp_path, capsys):
    file = tmp_path / "figures.json"
    asked = ["evaluate", "--weights", saved(), *measured(fields), "--baselines", "nearest,rbf,kriging"]
    assert main([*asked, "--out", str(file)]) == 0
    assert "kriging" in capsys.readouterr().out
    results = json.loads(file.read_text())["results"]
    assert [len(r["rows"]) for r in results.values()] == [2, 2, 2, 2]
    assert results["rbf"]["mean"]["psnr_mean"][0] > results["nearest"]["mean"]["psnr_mean"][0]
    assert 0 < results["kriging"]["mean"]["coverage"][0] <= 1


def test_compare_writes_the_seeds_files(saved, fields, tmp_path, capsys):
    out = tmp_path / "compared"
    pair = ["--a", saved("tiny-v2"), "--b", saved()]
    assert main(["compare", *pair, *measured(fields), "--out", str(out)]) == 0
    wanted = {"comparison_results.txt", "comparison_results.json", "v1_vs_v2_comparison.png", "improvement_chart.png"}
    assert {f.name for f in out.iterdir()} == wanted
    assert "reduction" in capsys.readouterr().out
    record = json.loads((out / "comparison_results.json").read_text())
    mean, low, high = record["difference"]["psnr"]
    assert low <= mean <= high
    rows = [[row["psnr"] for row in record[k]["rows"]] for k in ("a", "b")]
    assert mean == pytest.approx(np.mean(np.subtract(rows[1], rows[0])))


def test_a_model_against_itself_differs_by_nothing(saved, fields, tmp_path):
    out, model = tmp_path / "same", saved()
    assert main(["compare", "--a", model, "--b", model, *measured(fields), "--out", str(out)]) == 0
    difference = json.loads((out / "comparison_results.json").read_text())["difference"]
    assert difference["psnr"] == [0, 0, 0]
    assert all(values in ([0, 0, 0], [None, None, None]) for values in difference.values())  # no flat part: no index


def test_multiscale_writes_the_seeds_files(saved, fields, tmp_path, capsys, monkeypatch):
    out = tmp_path / "scales"
    asked = ["multiscale", "--weights", saved(), *measured(fields), "--resolutions", "16,32", "--samplers", "heun,sde"]
    assert main([*asked, "--out", str(out)]) == 0
    assert "best at 32" in capsys.readouterr().out
    shown, draw = [], multiscale.predict_part

    def spy(model, part, *more):
        shown.append(part)
        return draw(model, part, *more)

    monkeypatch.setattr(multiscale, "predict_part", spy)
    assert main([*asked, "--samplers", "heun", "--support", "own", "--out", str(tmp_path / "own")]) == 0
    assert [len(part.values) for part in shown] == [16, 32]  # the picture has the sensors of the figures
    a, b = (json.loads((x / "metrics_comparison.json").read_text()) for x in (out, tmp_path / "own"))
    means, own = ([x["resolutions"][r]["results"]["rbf"]["mean"]["psnr"][0] for r in ("16", "32")] for x in (a, b))
    assert own[0] == pytest.approx(means[0])
    assert own[1] != pytest.approx(means[1])  # sensors of the finer cells measure other values
    wanted = ("metrics_comparison.txt", "metrics_comparison.json", "multiscale_comparison.png", "performance_chart.png")
    assert {f.name for f in out.iterdir()} == set(wanted)


@pytest.mark.parametrize("dims", [1, 3])
def test_lines_and_volumes_have_pictures_too(saved, tmp_path, dims, capsys):
    """A line is drawn as a strip, a volume by the slice in its middle."""
    y = np.linspace(0, 6, 16 if dims == 1 else 8)
    field = np.sin(sum(np.meshgrid(*[y] * dims, indexing="ij")))
    np.savez(tmp_path / "f.npz", values=field[None, ..., None].astype(np.float32))
    model = saved(dims=dims, channels=1)
    asked = ["--data", str(tmp_path / "f.npz"), "--split", "train", "--subject", "sst", "--side", "8", "--share", "0.5"]
    asked += ["--samples", "2", "--steps", "1", "--device", "cpu", "--count", "1"]
    assert main(["sample", "--weights", model, *asked, "--out", str(tmp_path / "s")]) == 0
    assert main(["compare", "--a", model, "--b", model, *asked, "--out", str(tmp_path / "c")]) == 0
    scales = ["--resolutions", "8", "--samplers", "heun"]
    assert main(["multiscale", "--weights", model, *scales, *asked, "--out", str(tmp_path / "m")]) == 0
    capsys.readouterr()
    assert {f.name for f in (tmp_path / "s").iterdir()} == {"samples.png", "samples.npz"}
    assert len(list((tmp_path / "c").iterdir())) == len(list((tmp_path / "m").iterdir())) == 4


def test_one_sample_has_no_crps(saved, fields, tmp_path, capsys):
    """The seed's scripts draw a single one."""
    one = [*measured(fields), "--samples", "1"]
    asked = ["multiscale", "--weights", saved(), *one, "--resolutions", "16", "--samplers", "sde"]
    assert main([*asked, "--out", str(tmp_path / "scales")]) == 0
    assert main(["compare", "--a", saved(), "--b", saved(), *one, "--out", str(tmp_path / "compared")]) == 0
    found = json.loads((tmp_path / "scales" / "metrics_comparison.json").read_text())["resolutions"]["16"]["results"]
    assert "crps" not in found["sde"]["mean"]
    assert "nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "changes", "said"),
    [
        ("evaluate", {"channels": 1}, "--weights: the model must have the 3 channels of fields.npz"),
        ("multiscale", {"dims": 1}, "--weights: the model must have the 2 axes of fields.npz"),
        ("compare", {"channels": 1}, "--b: the model must have the 3 channels of fields.npz"),
        ("sample", {"channels": 1}, "--weights: the model must have the 3 channels of fields.npz"),
        ("report", {"channels": 1}, "--weights: the model must have the 3 channels of fields.npz"),
    ],
)
def test_a_model_of_other_fields_is_refused_before_anything_is_measured(
    saved, fields, tmp_path, capsys, monkeypatch, verb, changes, said
):
    def measure(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr("mamba_diffusion.model.SparseField.prepare", measure)
    wrong = saved(**changes)
    models = ["--a", saved(), "--b", wrong] if verb == "compare" else ["--weights", wrong]
    if verb == "multiscale":
        models += ["--resolutions", "16"]
    out = tmp_path / "page.html" if verb == "report" else tmp_path / "out"
    if verb != "evaluate":
        models += ["--html" if verb == "report" else "--out", str(out)]
    assert main([verb, *models, *measured(fields)]) == 2
    assert said in capsys.readouterr().err
    assert not out.is_file()
    assert not list(out.glob("*"))


def test_a_model_in_another_unit_is_refused(saved, tmp_path, capsys):
    np.savez(tmp_path / "relief.npz", values=np.random.default_rng(0).random((2, 32, 32, 1)), unit="m")
    asked = ["evaluate", "--weights", saved(channels=1, unit="K"), *measured(str(tmp_path / "relief.npz"))]
    assert main(asked) == 2
    assert "the model must be of m, the unit of relief.npz[0], got K" in capsys.readouterr().err


def test_sample_and_report(saved, fields, tmp_path, capsys):
    model = saved()
    asked = ["--weights", model, *measured(fields), "--number", "1"]
    assert main(["sample", *asked, "--grid", "10x20", "--out", str(tmp_path / "s")]) == 0
    with np.load(tmp_path / "s" / "samples.npz") as arrays:
        assert arrays["samples"].shape == (3, 10, 20, 3)
    page = tmp_path / "page.html"
    assert main(["report", *asked, "--resolutions", "16,24", "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 + 2 + 2 * 2  # steps, sensors and truth, two pictures a resolution
    assert "http" not in text
    assert text.count("<circle") == 2 * 51  # every sensor, on the flow and on the resolutions
    assert main(["sample", *asked[:-1], "9", "--out", str(tmp_path / "t")]) == 2
    assert "--number: must be from 0 to 1, got 9" in capsys.readouterr().err


def test_info_says_what_the_seed_said(capsys):
    assert main(["info", "v2", "--queries", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["seed_claims"]) == (5_878_019, 7_000_000)
    assert found["macs"] > 0
    assert sum(found["parts"].values()) == found["parameters"]


def test_cost_of_ours_grows_linearly_and_of_v2_faster():
    from mamba_diffusion.info import model_info

    def growth(name: str) -> float:
        macs = [model_info(name, 205, n)["macs"] for n in (4_096, 8_192, 16_384)]
        return (macs[2] - macs[1]) / (macs[1] - macs[0])  # 2 if linear

    assert growth("ours") == pytest.approx(2, rel=1e-6)
    assert growth("v2") > 2.5


def test_benchmark_and_export(saved, tmp_path, capsys):
    asked = ["benchmark", "tiny", "--against", "tiny-v2", "--queries", "4x4,8x8", "--steps", "1", "--repeats", "1"]
    assert main([*asked, "--device", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["preset"], row["queries"]) for row in rows] == [
        *(("tiny", 16), ("tiny", 64)),
        *(("tiny-v2", 16), ("tiny-v2", 64)),
    ]
    assert all(row["ms"] > 0 for row in rows)
    model = saved(channels=1)
    assert main(["export", model, "--out", str(tmp_path / "half")]) == 0
    from mamba_diffusion.weights import load_model

    a, b = load_model(model), load_model(tmp_path / "half")
    assert float(b.mean) == 280.0  # not rounded to half precision
    for name, x in a.network.state_dict().items():
        np.testing.assert_allclose(b.network.state_dict()[name], x, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "tiny-v2"])
def test_onnx_gives_the_same_velocity(saved, tmp_path, preset):
    import onnxruntime
    import torch
    from mamba_diffusion.export import Velocity
    from mamba_diffusion.info import empty_inputs
    from mamba_diffusion.weights import load_model

    folder = saved(preset)
    model = load_model(folder)
    torch.nn.init.normal_(getattr(model.network, "out", model.network).weight) if preset == "tiny" else None
    model.save_pretrained(folder)
    file = tmp_path / "velocity.onnx"
    sizes = ["--sensors", "12", "--queries", "20"]
    assert main(["export", folder, "--format", "onnx", "--out", str(file), *sizes]) == 0
    noisy, given = empty_inputs(model.config, 12, 20, "cpu")
    program = Velocity(model, given)
    inputs = (noisy, torch.full((1,), 0.3), *(x for x in given if x is not None))
    named = {n: x.numpy() for n, x in zip(("noisy", "t", *program.names), inputs, strict=True)}
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {i.name: named[i.name] for i in session.get_inputs()})
    with torch.no_grad():
        wanted = program(*inputs)
    assert float(wanted.abs().max()) > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no verb given"),
        (["paint"], "unknown verb 'paint'"),
        (["reconstruct", "nothing.csv"], "nothing.csv, which is not there"),
        (["reconstruct", "--samples", "0"], "--samples: must be at least 1"),
        (["reconstruct", "--samples", "many"], "--samples: must be a whole number"),
        (["reconstruct", "--sampler", "magic"], "--sampler: must be one of heun"),
        (["reconstruct", "--grid", "8x8"], "belong to points of your own"),
        (["evaluate", "--baselines", "magic"], "must be none or among nearest"),
        (["evaluate", "--share", "0"], "--share: must be in (0, 1]"),
        (["evaluate", "--weights", "runs/nothing"], "runs/nothing; check the path"),
        (["evaluate", "--points-seed", "-1"], "--points-seed: must be at least 0"),
        (["sample", "--seed", "-1"], "--seed: must be at least 0"),
        (["compare", "--a", "x"], "--a and --b: both are needed"),
        (["compare", "--weights", "x"], "unrecognized arguments: --weights"),  # what a verb has no use for
        (["multiscale", "--sampler", "sde"], "unrecognized arguments: --sampler sde"),
        (["report", "--out", "x"], "unrecognized arguments: --out"),
        (["multiscale", "--resolutions", "big"], "--resolutions: must be whole numbers"),
        (["info", "v3"], "unknown name 'v3'"),
        (["export"], "no weights given"),
        (["study", "--methods", "gan"], "--methods: must be among v1-legacy"),
        (["study", "--rates", "fast"], "--rates: must be numbers above 0"),
        (["study", "--jobs", "0"], "--jobs: must be at least 1"),
        (["study", "--resolutions", "big"], "--resolutions: must be whole numbers"),
        (["benchmark", "--repeats", "0"], "--repeats: must be at least 1"),
        (["benchmark", "--sensors", "0"], "--sensors: must be at least 4"),
        (["train"], "the preset is missing"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_verb_is_quick(capsys):
    for verb in ("reconstruct", "evaluate", "compare", "multiscale", "sample", "report", "study", "info", "benchmark"):
        assert main([verb, "--help"]) == 0
        assert f"mamba-diffusion {verb}" in capsys.readouterr().out
