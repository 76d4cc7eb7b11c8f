"""The command: verbs, one-line mistakes, and what each prints."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from vim_compress.cli import main
from vim_compress.config import VimConfig
from vim_compress.models import make_network
from vim_compress.options import parse
from vim_compress.weights import shipped


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = main(list(map(str, argv)))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = VimConfig(
        image=(16, 16), patch=4, stride=4, dim=16, depth=1, d_state=4, classes=2, labels=("cat", "dog"), domain="pets"
    )
    make_network(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)).save(file)
    return file


@pytest.fixture
def data(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_classify_names_classes_and_domain(run, folder, picture):
    code, said, _ = run("classify", picture, "--weights", folder)
    assert code == 0
    assert "cat" in said
    assert "trained on pets" in said
    code, said, _ = run("classify", picture, "--weights", folder, "--json", "--best", "1")
    result = json.loads(said)
    assert result["classes"] == ["cat", "dog"]
    assert len(result["pictures"][str(picture)]) == 1


def test_classify_without_shipped_weights_says_what_is_missing(run, picture, monkeypatch, tmp_path):
    from vim_compress import weights

    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    code, _, error = run("classify", picture)
    assert code == 2
    assert "vim-compress train emoji" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no picture given"),
        (["nowhere.png"], "no such file"),
    ],
)
def test_classify_mistakes(run, arguments, said):
    code, _, error = run("classify", *arguments)
    assert (code, said in error, error.count("\n")) == (2, True, 1)


def test_class_list_that_does_not_match_the_head(run, folder, picture, tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    code, _, error = run("classify", picture, "--weights", folder, "--classes", tmp_path / "names.txt")
    assert code == 2
    assert "2 names, one for each output, got 3" in error


def test_broken_picture_is_named(run, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code, _, error = run("classify", tmp_path / "broken.png", "--weights", folder)
    assert (code, "broken.png" in error) == (2, True)


def test_evaluate_reports_accuracy_and_refuses_other_classes(run, folder, data):
    code, said, _ = run("evaluate", "--weights", folder, "--data", data, "--json")
    assert code == 0
    result = json.loads(said)
    assert result["pictures"] == 6
    assert set(result["per_class"]) == {"cat", "dog"}
    (data / "fish").mkdir()
    (data / "fish" / "0.png").write_bytes((data / "cat" / "0.png").read_bytes())
    code, _, error = run("evaluate", "--weights", folder, "--data", data)
    assert (code, "classes" in error, error.count("\n")) == (2, True, 1)


def test_evaluate_under_masks_scores_the_pruned_network(run, folder, data, tmp_path):
    """Everything pruned: every picture gets the same answer, which the dense weights do not give."""
    from vim_compress.masks import prunable, save_masks
    from vim_compress.weights import load_model

    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in prunable(load_model(folder)).items()}
    save_masks(tmp_path / "masks.safetensors", masks, {})
    code, said, _ = run(
        "evaluate", "--weights", folder, "--data", data, "--masks", tmp_path / "masks.safetensors", "--json"
    )
    result = json.loads(said)
    assert (code, result["sparsity"]) == (0, 1.0)
    assert sorted(result["per_class"].values()) == [0.0, 100.0]


def test_evaluate_with_merged_tokens(run, folder, data):
    code, said, _ = run(
        "evaluate", "--weights", folder, "--data", data, "--merge", "0.3", "--merge-layers", "0", "--json"
    )
    assert (code, json.loads(said)["merge"]) == (0, 0.3)
    code, _, error = run("evaluate", "--weights", folder, "--data", data, "--merge", "0.9", "--merge-layers", "0")
    assert (code, "share" in error) == (2, True)


def test_masks_of_another_network_are_refused(run, folder, data, tmp_path):
    from vim_compress.masks import save_masks

    file = tmp_path / "masks.safetensors"
    for masks, said in (
        ({"layers.7.mixer.in_proj.weight": torch.ones(2, 2)}, "which it lacks"),
        ({"head.weight": torch.ones(2, 3)}, "whose weights are"),
    ):
        save_masks(file, {n: m.bool() for n, m in masks.items()}, {})
        code, _, error = run("evaluate", "--weights", folder, "--data", data, "--masks", file)
        assert (code, said in error) == (2, True)
    file.write_bytes(b"nothing")
    code, _, error = run("evaluate", "--weights", folder, "--data", data, "--masks", file)
    assert (code, "cannot be read" in error) == (2, True)


def test_info_counts(run, folder):
    code, said, _ = run("info", "--json")
    assert (code, json.loads(said)["parameters"]) == (0, 7_148_008)
    code, said, _ = run("info", folder)
    assert code == 0
    code, said, _ = run("info", "mambavision_t", "--height", "448", "--json")
    assert json.loads(said)["image"] == [448, 448]


def test_weights_that_ship_have_a_size_of_their_own(run):
    code, said, _ = run("benchmark", "emoji-cut", "--batch", "1", "--repeats", "1", "--json")
    assert (code, json.loads(said)["rows"][0]["image"]) == (0, [64, 64])


def test_training_starts_from_weights_that_ship(tmp_path):
    found = parse(["emoji", "--from", "emoji-cut", "--out", str(tmp_path / "run")]).config
    assert found.model.widths["layers.0.inner"] == 48
    assert found.init == str(shipped("emoji-cut"))


def test_unknown_network_names_the_nearest(run):
    code, _, error = run("info", "vim_tiny_224")
    assert (code, "vim_tiny_patch16_224" in error) == (2, True)


def test_benchmark_compares_networks_cut_and_masked(run, tmp_path):
    code, said, _ = run(
        *("benchmark", "vim_test_patch4_16,mambavision_test_32", "--sizes", "32:1", "--keep", "0.5"),
        *("--repeats", "1", "--out", tmp_path / "b.json", "--attention", "band", "--mixer", "mamba2", "--json"),
    )
    assert code == 0
    rows = json.loads(said)["rows"]
    assert [row["model"] for row in rows] == [
        "vim_test_patch4_16",
        "vim_test_patch4_16 cut to 0.5",
        "vim_test_patch4_16 masked to 0.5",
        "vim_test_patch4_16 mamba2",
        "mambavision_test_32",
        "mambavision_test_32 band",
        "mambavision_test_32 mamba2",
    ]
    assert rows[0]["parameters"] == rows[2]["parameters"] > rows[1]["parameters"]
    assert all(row["ms"] > 0 for row in rows)
    assert json.loads((tmp_path / "b.json").read_text())["environment"]["torch"]
    code, _, error = run("benchmark", "vim_test_patch4_16", "--out", tmp_path / "b.json")
    assert (code, "--overwrite" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "unknown verb"),
        ([], "no verb given"),
        (["benchmark", "--sizes", "big"], "--sizes"),
        (["benchmark", "--modes", "quick"], "--modes"),
        (["benchmark", "--attention", "wide"], "--attention"),
        (["benchmark", "--mixer", "mamba3"], "--mixer"),
        (["benchmark", "vim_test_patch4_16", "--attention", "band"], "no such versions"),
        (["benchmark", "emoji-cut", "--mixer", "mamba2"], "start from a network that is not cut"),
        (["benchmark", "emoji", "--sizes", "3:1"], "at least one patch"),
        (["classify", "."], "a folder"),
        (["classify", __file__, "--weights", "emoji_cut"], "weights that ship (emoji, emoji-cut)"),
        (["prune", "--target", "parameters=10", "--out", "unwritten"], "10 parameters cannot be reached"),
        (["benchmark", "resnet_of_the_moon"], "unknown network"),
        (["info", "--height", "x"], "--height: must be a whole number"),
        (["classify", "--weights"], "expected"),
    ],
)
def test_mistakes_are_one_line(run, arguments, said):
    code, _, error = run(*arguments)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["classify", "evaluate", "prune", "info", "benchmark", "train"])
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys; from vim_compress.cli import main\n"
        f"assert main(['{verb}', '--help']) == 0\n"
        "assert not {'torch', 'timm', 'accelerate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_version_and_help(run):
    assert run("--version")[1].startswith("vim-compress ")
    assert "classify" in run("--help")[1]


@pytest.mark.parametrize("weights", [(), ("--weights", "emoji-cut")], ids=["emoji", "emoji-cut"])
def test_shipped_weights_classify_offline(run, tmp_path, weights):
    """A flag of three stripes that no set holds; the classes and what they were trained on are said."""
    from PIL import ImageDraw

    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    for stripe, colour in enumerate(("#1b4db3", "#ffffff", "#d22f27")):
        pen.rectangle((4 + 19 * stripe, 16, 22 + 19 * stripe, 48), fill=colour)
    pen.rectangle((4, 16, 60, 48), outline="black")
    image.save(tmp_path / "flag.png")
    code, said, _ = run("classify", tmp_path / "flag.png", "--json", *weights)
    found = json.loads(said)
    assert code == 0
    assert found["pictures"][str(tmp_path / "flag.png")][0]["label"] == "Flags"
    assert (len(found["classes"]), found["trained_on"]) == (9, "colour emoji, by category of Unicode")
