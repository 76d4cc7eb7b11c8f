"""Numbers in the documents are those of the committed files, and those of the code."""

import json
import re
from pathlib import Path
from typing import Any

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


def test_operations_in_the_claims_are_those_of_the_file():
    found = {row["preset"]: row["macs"] for row in json.loads((PACKAGE / "docs/results/info.json").read_text())}
    legacy, real = (f"{1 - found[b] / found[a]:.0%}" for a, b in (("v1-legacy", "v2-legacy"), ("v1", "v2")))
    said = f"{legacy} fewer multiply-adds with the origin's blocks, {real} fewer with real Mamba"
    assert said.replace("%", " %") in (PACKAGE / "docs/study.md").read_text()


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


def test_own_support_of_the_page_is_that_of_the_file():
    found = json.loads((PACKAGE / "docs/results/multiscale/own-support.json").read_text())
    assert (found["support"], found["steps"], found["count"]) == ("own", 2, 4)
    said = cells_of("docs/study.md")
    means = {name: [x["results"][name]["mean"] for x in found["resolutions"].values()] for name in ("heun", "rbf")}
    cells = [f"{m['psnr_mean'][0]:.2f}; {100 * m['coverage'][0]:.1f}" for m in means["heun"]]
    assert said["`rgb`, Heun, own support"] == cells
    assert said["thin-plate RBF, own support"] == [f"{m['psnr_mean'][0]:.2f}" for m in means["rbf"]]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("weights", ["rgb", "temperature"])
def test_other_shares_of_the_card_are_the_committed_files(weights, share):
    found = json.loads((PACKAGE / f"docs/results/ship-{weights}/shares/{share}.json").read_text())["results"]
    ours, rows = found[weights]["mean"], {name: [row["psnr_mean"] for row in found[name]["rows"]] for name in found}
    said = cells_of("docs/model-card.md")[f"`{weights}`, {share:.0%}".replace("%", " %")]
    for cell, other in zip(said[1:3], ("rbf", "kriging"), strict=True):
        gain = [a - b for a, b in zip(rows[weights], rows[other], strict=True)]
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


STUDY = json.loads((PACKAGE / "docs/results/study/study.json").read_text())
RUNS = {row["name"]: row for row in STUDY["rows"]}
NETWORKS = ("v1-legacy", "v1", "v2", "v4", "ours")
RATES = (3e-4, 1e-3, 3e-3)
CLASSIC = {"nearest": "nearest", "linear": "linear", "RBF": "rbf", "thin-plate RBF": "rbf", "kriging": "kriging"}


def table_under(heading):
    """The rows of a section of the study's page, cell by cell, by the first cell."""
    part = (PACKAGE / "docs/study.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def case_of(row, share=0.2, resolution=32) -> Any:
    return next((c for c in row["full"] if (c["share"], c["resolution"]) == (share, resolution)), None)


def said_of(cases, *wanted):
    """Figures of one or two seeds as the page has them: key, digits, factor."""
    return [" / ".join(f"{factor * c[key]:.{digits}f}" for c in cases) for key, digits, factor in wanted]


MEANS = (("psnr", 2, 1), ("psnr_mean", 2, 1), ("ssim_mean", 3, 1))
ERRORS = (("crps", 2, 100), ("coverage", 1, 100))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_run_of_the_study_is_on_its_page(name):
    said = table_under("Learning rates")[f"`{name}`"]
    for cell, rate in zip(said[1:], RATES, strict=True):
        rows = [RUNS[f"{name}-rgb-lr{rate:g}-seed{seed}"] for seed in (0, 1)]
        assert {row["parameters"] for row in rows} == {int(said[0].replace(",", ""))}
        assert cell == " / ".join(
            f"stops at {row['failed'].split()[-1]}" if "failed" in row else f"{case_of(row)['psnr_mean']:.2f}"
            for row in rows
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_figures_at_the_best_rate_are_those_of_the_file(name):
    rate = STUDY["best"][name]
    rows = [RUNS[f"{name}-rgb-lr{rate:g}-seed{seed}"] for seed in (0, 1)]
    cases = [case_of(row) for row in rows]
    said = table_under("Pictures, at the best rate")[f"`{name}` at {rate:.0e}".replace("e-0", "e-")]
    assert said[0] == f"{rows[0]['step_ms_alone']:.1f}"
    assert said[1:5] + said[6:] == said_of(cases, *MEANS, ("xsi", 4, 1), *ERRORS)
    less = [[100 * x for x in STUDY["against_v1"][row["name"]]["speckle_reduction"]] for row in rows if name != "v1"]
    assert said[5] == " / ".join(f"{a:+.0f} ({b:+.0f} to {c:+.0f})" for a, b, c in less)


def test_v2_against_v1_in_the_claims_is_that_of_the_file():
    text = (PACKAGE / "docs/study.md").read_text()
    for seed in (0, 1):
        found = STUDY["against_v1"][f"v2-rgb-lr0.003-seed{seed}"]
        for key, digits in (("psnr", 2), ("psnr_mean", 2), ("ssim", 3)):
            a, b, c = (f"{x:+.{digits}f}" for x in found[key])
            assert f"{a} dB ({b} to {c})" in text or f"{a} ({b} to {c})" in text


@pytest.mark.parametrize("subject", ["sst", "topography"])
def test_fields_of_the_page_are_those_of_the_file(subject):
    said = table_under("Sea surface temperature and topography")
    for name in ("v2", "ours-scalar"):
        cases = [case_of(RUNS[f"{name}-{subject}-lr0.001-seed{seed}"]) for seed in (0, 1)]
        assert said[f"`{name}`, {subject}"] == said_of(cases, *MEANS, *ERRORS)
    krig = case_of(RUNS[f"kriging-{subject}"])
    assert said[f"kriging, {subject}"] == said_of([krig], *MEANS, *ERRORS)


AGAIN = json.loads((PACKAGE / "docs/results/study/shares.json").read_text())
AGAIN_RUNS = {row["name"]: row for row in AGAIN["rows"]}
SHARES = [(share, 32) for share in (0.05, 0.1, 0.2, 0.5)]


def rows_of(label):
    """What a line of a table shows: a classical method, first runs of ours, or runs that were made again."""
    name, subject, *steps = label.replace("`", "").split(", ")
    if name in CLASSIC:
        return [RUNS[f"{CLASSIC[name]}-{subject}"]["full"]]
    rate = STUDY["best"][name] if subject == "rgb" else 1e-3
    runs = [f"{name}-{subject}-lr{rate:g}-seed{seed}" for seed in (0, 1)]
    if name.startswith("ours") and not steps:
        return [RUNS[run]["full"] for run in runs]
    again = [AGAIN_RUNS[run] for run in runs if run in AGAIN_RUNS]
    assert {row["steps"] for row in again} == {int(steps[0].removesuffix(" steps")) if steps else 625}, label
    return [[dict(zip(AGAIN["columns"], case, strict=True)) for case in row["cases"]] for row in again]


@pytest.mark.parametrize(
    ("heading", "cases"), [("Finer grids", [(0.2, 64), (0.2, 128)]), ("Other shares of sensors", SHARES)]
)
def test_grids_and_shares_of_the_page_are_those_of_the_files(heading, cases):
    subjects = {"rgb", "sst", "topography"}
    rows = {k: v for k, v in table_under(heading).items() if subjects & set(k.split(", "))}
    assert len(rows) >= 15
    for label, said in rows.items():
        known = [{(c["share"], c["resolution"]): c for c in row} for row in rows_of(label)]
        assert said == [cell_of([row[case] for row in known if case in row]) for case in cases], label


def cell_of(found):
    columns = [("psnr_mean", 2, 1), ("crps", 2, 100)]
    if found and found[0]["coverage"] is not None:
        columns.append(("coverage", 1, 100))
    return "; ".join(said_of(found, *columns)) if found else ""


@pytest.mark.parametrize("label", ["v2", "ours, 150 steps"])
def test_speckle_at_other_shares_is_that_of_the_file(label):
    name = label.split(", ")[0]
    said = table_under("Other shares of sensors")["`" + label.replace(", ", "`, ") + ("" if ", " in label else "`")]
    runs = [f"{name}-rgb-lr{STUDY['best'][name]:g}-seed{seed}" for seed in (0, 1)]
    for cell, share in zip(said, ("0.05", "0.1", "0.2", "0.5"), strict=True):
        found = [AGAIN["against_v1"][run].get(share) for run in runs]
        less = [[100 * x for x in f["speckle_reduction"]] for f in found if f is not None]
        assert cell == " / ".join(f"{a:+.0f} ({b:+.0f} to {c:+.0f})" for a, b, c in less)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_longer_run_of_the_page_is_that_of_the_file(name):
    found = json.loads((PACKAGE / "docs/results/study/longer.json").read_text())
    ended = {row["name"]: row["error"].split()[-1] for row in found["failed"]}
    known = {row["name"]: row["screen"]["psnr_mean"] for row in found["rows"]}
    runs = [f"{name}-rgb-lr{rate:g}-seed0" for rate in RATES]
    said = table_under("A longer run, and recorded steps")[f"`{name}`, longer"]
    assert said[:3] == [f"{known[run]:.2f}" if run in known else f"stops at {ended[run]}" for run in runs]
    best = max((run for run in runs if run in known), key=lambda run: known[run])
    less = [f"{100 * x:+.0f}" for x in found["against_v1"].get(best, [])]
    assert said[3] == (f"{less[0]} ({less[1]} to {less[2]})" if less else "")


def test_cost_of_the_page_is_that_of_the_files():
    rows = json.loads((PACKAGE / "docs/results/cost/linear.json").read_text())["rows"]
    said = cells_of("docs/study.md")
    assert said["ms"] == [f"{row['ms']:.0f}" for row in rows]
    assert said["peak memory, GB"] == [f"{row['peak_bytes'] / 1e9:.2f}" for row in rows]
    pairs = json.loads((PACKAGE / "docs/results/cost/v1-v2.json").read_text())["rows"]
    labels = ("training step, `v1` and `v2`", "training step, `v1-legacy` and `v2-legacy`", "a sample, `v1` and `v2`")
    for label, (a, b) in zip(labels, zip(pairs[::2], pairs[1::2], strict=True), strict=True):
        more = f"{100 * (b['ms'] / a['ms'] - 1):.1f} % longer"
        assert said[label] == [f"{a['ms']:.1f}", f"{b['ms']:.1f}", more]
