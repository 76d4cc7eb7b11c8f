"""Local attribution maps and feature norms: the formulas, what they find in networks that are known, and the verbs."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hybrid_sr import cli
from hybrid_sr.config import ModelConfig
from hybrid_sr.images import Picture, read_picture, write_picture
from hybrid_sr.lam import Attribution, attribute, density, diffusion_index
from hybrid_sr.model import HybridSR
from hybrid_sr.norms import feature_norms
from PIL import Image
from scipy import ndimage, stats
from torch import nn
from torch.nn import functional as F

TINY = ModelConfig(scale=2, dim=12, depths=(1, 1), heads=2, window=8)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Nearest(nn.Module):
    """Repeats pixels, so that a part of the result depends on known input pixels."""

    def __init__(self, scale):
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.scale = scale

    def forward(self, x):
        return self.factor * F.interpolate(x, scale_factor=self.scale, mode="nearest")


class Rows(Nearest):
    """Adds the mean of every row and column to its pixels: what a network of row and column scans can see."""

    def forward(self, x):
        return super().forward(x + x.mean(2, keepdim=True) + x.mean(3, keepdim=True))


def test_only_pixels_that_count_are_marked():
    image, scale = picture(16, 20), 2
    seen = attribute(Nearest(scale), image, (12, 8), scale=scale, window=4)
    expected = np.zeros((16, 20), bool)
    expected[4:7, 6:9] = True  # 4 x 4 pixels of the result and one beyond
    expected[6, 8] = False  # the last one to the lower right is in no difference
    assert np.array_equal(seen.weights > 0, expected)
    assert seen.weights.max() == 1
    assert seen.box == (6, 4, 9, 7)


def test_attributions_add_up_to_what_the_detector_gained():
    """The property that makes the path integral an attribution; F points leave a small rest."""
    image = picture(12, 12)
    seen = attribute(Nearest(2), image, (6, 6), scale=2, window=8, fold=400)
    assert seen.change != 0
    assert seen.explained == pytest.approx(seen.change, rel=0.02)


def test_path_is_the_published_one():
    """One more independent computation of the map of a linear network, from the formulas of the method."""
    image, fold = picture(14, 14), 50
    sharp = image / 255.0
    reach = np.arange(9) - 4

    def blur(sigma):
        kernel = np.exp(-(reach[:, None] ** 2 + reach[None] ** 2) / (2 * (sigma + 1e-5) ** 2))
        kernel /= kernel.sum()
        return np.stack([ndimage.correlate(sharp[..., c], kernel, mode="mirror") for c in range(3)])

    levels = [blur(sigma) for sigma in np.linspace(1.2, 0, fold + 1)]
    total = np.zeros((3, 14, 14))
    for before, after in pairwise(levels):
        x = torch.from_numpy(after).requires_grad_()
        down, right = x[:, 5:9, 5:9] - x[:, 6:10, 5:9], x[:, 5:9, 5:9] - x[:, 5:9, 6:10]
        (down**2 + right**2).sqrt().sum().backward()
        total += x.grad.numpy() * (after - before) * fold / fold
    expected = np.abs(total.sum(0))
    seen = attribute(Nearest(1), image, (5, 5), scale=1, window=4)
    np.testing.assert_allclose(seen.weights, expected / expected.max(), atol=1e-9)


def test_flat_places_do_not_spoil_the_map():
    """The detector's root has no derivative at 0; a single such place must not make the rest NaN."""
    image = picture(16, 16)
    image[4:8, 4:8] = 128
    seen = attribute(Nearest(1), image, (3, 3), scale=1, window=8)
    assert np.isfinite(seen.weights).all() and seen.weights.max() == 1
    flat = attribute(Nearest(1), np.full((16, 16, 3), 7, np.uint8), (3, 3), scale=1, window=8)
    assert not flat.weights.any()


@pytest.mark.parametrize("at", ((0, 25), (33, 0)))
def test_places_outside_are_refused(at):
    with pytest.raises(ValueError, match=r"at must be from 0,0 to 23,15 \(the result is 40x32\)"):
        attribute(Nearest(2), picture(16, 20), at, scale=2)


def test_diffusion_index_of_known_maps():
    assert diffusion_index(np.ones((8, 8))) == pytest.approx(100)
    one = np.zeros((32, 32))
    one[3, 4] = 1
    assert diffusion_index(one) < 0.5
    half = np.zeros(1000)
    half[:500] = 1
    assert diffusion_index(half) == pytest.approx(50, abs=0.1)  # Gini of half the pixels used alike is 1/2


def test_cross_tells_scans_from_windows():
    image = picture(48, 48)
    cross = attribute(Rows(1), image, (24, 20), scale=1, window=4).cross(near=3)
    assert cross["ratio"] > 100
    blob = np.exp(-((np.arange(48)[:, None] - 22) ** 2 + (np.arange(48)[None] - 26) ** 2) / 200.0)
    found = Attribution(blob, (24, 20), 4, 1, 1.0, 1.0).cross(near=3)
    assert 0.5 < found["ratio"] < 5
    assert 0 < found["near"] < 1


def test_density_is_that_of_scipy():
    weights = np.random.default_rng(1).random((9, 12)) ** 4
    y, x = np.mgrid[:9, :12]
    places = np.stack([y.ravel(), x.ravel()])
    expected = stats.gaussian_kde(places, weights=weights.ravel())(places).reshape(9, 12)
    np.testing.assert_allclose(density(weights), expected / expected.max(), atol=1e-10)


def test_norms_are_those_of_the_features():
    torch.manual_seed(0)
    model = HybridSR(TINY).eval()
    kept = []
    model.groups[1].conv.register_forward_hook(lambda module, inputs, output: kept.append(output))
    found = feature_norms(model, picture(20, 24))
    assert [norm.name for norm in found] == ["groups.0.conv", "groups.1.conv", "final_norm"]
    expected = kept[0][0, :20, :24].square().sum(-1).sqrt()  # the network pads to 24 x 24
    np.testing.assert_allclose(found[1].map, expected.detach().numpy(), rtol=1e-5)
    figures = found[1].figures()
    assert figures["max"] == found[1].map.max() and figures["median"] == np.median(found[1].map)


@pytest.fixture
def two_models(tmp_path):
    folders = []
    for name, norm in (("with", True), ("without", False)):
        torch.manual_seed(1)
        HybridSR(ModelConfig(**{**TINY.to_dict(), "final_norm": norm})).save_pretrained(tmp_path / name / "model")
        folders.append(str(tmp_path / name / "model"))
    write_picture(Picture(picture(80, 90)), tmp_path / "a.png")
    return ",".join(folders)


def test_lam_verb_compares_networks(tmp_path, two_models, capsys):
    arguments = ["lam", str(tmp_path / "a.png"), "--at", "40,30", "--size", "64", "--scale", "2"]
    arguments += ["--models", two_models, "--out", str(tmp_path / "o"), "--points", "3"]
    assert cli.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in printed["models"]] == ["custom (with)", "custom (without)"]
    assert all(0 < row["diffusion_index"] < 100 for row in printed["models"])
    assert json.loads((tmp_path / "o" / "a_lam.json").read_text())["at"] == [40, 30]
    assert read_picture(tmp_path / "o" / "a_lam.png").width > 800  # three panels
    assert cli.main(arguments) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err


def test_norms_verb_with_and_without_the_final_norm(tmp_path, two_models, capsys):
    arguments = ["norms", str(tmp_path / "a.png"), "--scale", "2", "--models", two_models, "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "groups.1.conv" in capsys.readouterr().out
    rows = json.loads((tmp_path / "a_norms.json").read_text())["models"]
    assert [len(row["places"]) for row in rows] == [3, 2]
    with Image.open(tmp_path / "a_norms.png") as drawn:
        assert drawn.width > drawn.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ([], "give one picture, or --sample"),
        (["x.png", "--sample", "coffee"], "give one picture, or --sample"),
        (["x.png", "--at", "3;4"], "--at: must be two whole numbers X,Y, got 3;4"),
        (["x.png", "--size", "20"], "--size: must be at least 64"),
        (["missing.png"], "missing.png: does not exist"),
    ),
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert cli.main(["lam", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
