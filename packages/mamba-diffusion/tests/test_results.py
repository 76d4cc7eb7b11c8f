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
    assert len(found) >= 2
    for record in found:
        for name, row in record["results"].items():
            assert figures(row) in said, (weights, name)


def cells_of(page):
    """The tables of a page, cell by cell, by the first cell of a line."""
    lines = [line for line in (PACKAGE / page).read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_crossover_of_the_page_is_that_of_the_file():
    record, said = json.loads((PACKAGE / "docs/results/cost/crossover.json").read_text()), cells_of("docs/study.md")
    for name in ("ours", "v4-small"):
        assert said[f"`{name}`, ms"] == [f"{row['ms']:.0f}" for row in record["rows"] if row["preset"] == name]
    side = round(record["crossover_queries"] ** 0.5)
    assert f"from\n{side} x {side} queries on" in (PACKAGE / "docs/study.md").read_text()


def test_scales_of_the_page_are_those_of_the_file():
    found = json.loads((PACKAGE / "docs/results/multiscale/metrics_comparison.json").read_text())["resolutions"]
    said = cells_of("docs/study.md")
    for label, name in (("Heun", "heun"), ("SDE", "sde"), ("DDIM", "ddim")):
        means = [scale["results"][name]["mean"] for scale in found.values()]
        assert said[f"`rgb`, {label}"] == [f"{m['psnr_mean'][0]:.2f}; {100 * m['coverage'][0]:.1f}" for m in means]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_other_shares_of_the_card_are_the_committed_files(share):
    found = json.loads((PACKAGE / f"docs/results/ship-rgb/shares/{share}.json").read_text())["results"]
    ours, rows = found["rgb"]["mean"], {name: [row["psnr_mean"] for row in found[name]["rows"]] for name in found}
    said = cells_of("docs/model-card.md")[f"{share:.0%}".replace("%", " %")]
    for cell, other in zip(said[1:3], ("rbf", "kriging"), strict=True):
        gain = [a - b for a, b in zip(rows["rgb"], rows[other], strict=True)]
        assert cell.startswith(f"{sum(gain) / len(gain):+.2f} (")
    kept = (ours["psnr_mean"][0], 100 * ours["crps"][0], 100 * found["kriging"]["mean"]["crps"][0])
    assert [said[0], *said[3:5]] == [f"{x:.2f}" for x in kept]
    assert said[5] == f"{100 * ours['coverage'][0]:.1f}"


def test_losses_of_the_page_are_those_of_the_file():
    rows = json.loads((PACKAGE / "docs/results/study/curves.json").read_text())["rows"]
    said = cells_of("docs/study.md")
    for name in ("v1-legacy", "v1", "v2", "v4", "ours"):
        rate = next(row["lr"] for row in rows if row["method"] == name)
        step, *losses = said[f"`{name}` at {rate:.0e}".replace("e-0", "e-")]
        for loss, (seed, graph) in zip(losses, ((0, False), (0, True), (1, True)), strict=True):
            (row,) = [r for r in rows if (r["method"], r["seed"], r["graph"]) == (name, seed, graph)]
            known = dict(zip(row["step"], row["loss"], strict=True)).get(int(step))
            assert loss == "not finite at step 160" if known is None else abs(float(loss) - known) <= 5.1e-4


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
