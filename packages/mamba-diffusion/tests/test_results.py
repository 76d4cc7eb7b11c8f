"""Numbers in the documents are those of the committed files, and those of the code."""

import json
import re
from pathlib import Path

import pytest
from mamba_diffusion.config import preset
from mamba_diffusion.info import model_info

PACKAGE = Path(__file__).parent.parent


def test_info_is_what_the_code_says():
    """One network of every kind; the command writes the file: `mamba-diffusion info --json`."""
    found = {row["preset"]: row for row in json.loads((PACKAGE / "docs/results/info.json").read_text())}
    assert {"ours", "v1", "v2", "v4", "v1-legacy", "v2-legacy", "v2-mamba2", "ours-scalar", "v4-small"} == set(found)
    assert found["v2"] == model_info("v2")
    assert found["ours-scalar"] == model_info("ours-scalar")


def test_readme_and_page_have_the_counts_of_the_file():
    found = {row["preset"]: row["parameters"] for row in json.loads((PACKAGE / "docs/results/info.json").read_text())}
    for name in ("README.md", "docs/models.md"):
        text = (PACKAGE / name).read_text()
        said = {int(x.replace(",", "")) for x in re.findall(r"\b\d{1,3}(?:,\d{3}){2}\b|\b\d{3},\d{3}\b", text)}
        assert said <= set(found.values()), name
        assert {found["v1"], found["v2"], found["v1-legacy"], found["v2-legacy"]} <= said


def test_shares_of_parameters_are_right():
    text = (PACKAGE / "docs/models.md").read_text()
    found = {row["preset"]: row["parameters"] for row in json.loads((PACKAGE / "docs/results/info.json").read_text())}
    assert f"{1 - found['v2-legacy'] / found['v1-legacy']:.1%}".replace("%", " %") in text
    assert f"{1 - found['v2'] / found['v1']:.1%}".replace("%", " %") in text


def test_lengths_in_the_page_are_the_defaults():
    config, text = preset("ours"), (PACKAGE / "docs/models.md").read_text()
    assert f"its {config.neighbours} nearest sensors" in text
    assert f"at most {config.anchors} noisy queries" in text
    assert f"correlation length of {config.noise_length} of the domain" in text


def figures(row):
    """The cells of a row of the model card as its JSON has them."""
    mean = row["mean"]
    one = f"{mean['psnr'][0]:.2f}" if "expected_coverage" in row else ""
    covered = mean["coverage"][0]
    return [
        one,
        f"{mean['psnr_mean'][0]:.2f}",
        f"{mean['ssim_mean'][0]:.4f}",
        f"{100 * mean['crps'][0]:.2f}",
        "" if covered is None else f"{100 * covered:.1f}",
    ]


@pytest.mark.parametrize("weights", ["rgb", "temperature"])
def test_tables_of_the_model_card_are_the_committed_files(weights):
    text = (PACKAGE / "docs/model-card.md").read_text()
    said = [[cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith("| ")]
    files = sorted((PACKAGE / f"docs/results/ship-{weights}").glob("*.json"))
    found = [json.loads(file.read_text()) for file in files if file.name != "config.json"]
    assert len(found) == 3
    for record in found:
        for name, row in record["results"].items():
            assert figures(row) in said, (weights, name)


def test_shipped_weights_fit_and_load():
    """Both together in at most 4 MB, scaling in full precision, an output that is no longer zero."""
    from mamba_diffusion.weights import SHIPPED, load_model, shipped_models

    assert shipped_models() == ["rgb", "temperature"]
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) < 4_000_000
    for name, channels in (("rgb", 3), ("temperature", 1)):
        model = load_model(name)
        assert (model.config.kind, model.config.channels) == ("ours", channels)
        assert float(model.network.get_parameter("out.weight").detach().abs().max()) > 0.01
    assert model.config.unit == "K"
    assert 270 < float(model.mean) < 300
