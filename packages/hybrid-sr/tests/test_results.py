"""The figures on the pages are those of the committed evaluations, study and timings."""

import json
import re
from pathlib import Path

import pytest
from hybrid_sr.speedreport import tables
from hybrid_sr.studyreport import summary, table

HOME = Path(__file__).parent.parent
FILES = sorted((HOME / "docs" / "results").glob("evaluation-*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_row_is_the_evaluation(file):
    result = json.loads(file.read_text())
    numbers = (
        f"{result['bicubic_psnr_y']:.2f} | {result['psnr_y']:.2f} | {result['gain_db']:+.2f} | "
        f"{result['bicubic_ssim_y']:.4f} | {result['ssim_y']:.4f} |"
    )
    for page in ("README.md", "docs/model-card.md"):
        assert f"| x{result['scale']} |" in (HOME / page).read_text()
        assert numbers in (HOME / page).read_text()


def mean_of(name, scale):
    """Return the mean of a figure over all photos."""
    results = [json.loads(file.read_text()) for file in FILES if f"-x{scale}-" in file.name]
    return sum(result[name] * result["n"] for result in results) / sum(result["n"] for result in results)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_mean_gain_follows_from_the_evaluations(scale):
    mean = mean_of("gain_db", scale)
    assert f"{mean:.2f} dB at x{scale}" in (HOME / "docs" / "model-card.md").read_text()
    if scale == 3:  # no weights of its own
        return
    card = HOME / "src" / "hybrid_sr" / "weights" / f"contrast-no-pe-no-cab-x{scale}" / "README.md"
    assert f"{mean:+.2f} dB" in card.read_text()


def test_three_by_way_of_four_beats_the_weights_that_were_tried():
    page = " ".join((HOME / "docs" / "model-card.md").read_text().split())
    gains = {}
    for name in ("scikit-image", "scikit-learn"):
        tried = json.loads((HOME / "docs" / "results" / "x3-trained" / f"{name}.json").read_text())
        shipped = json.loads((HOME / "docs" / "results" / f"evaluation-x3-{name}.json").read_text())
        assert tried["gain_db"] < shipped["gain_db"]
        gains[name] = f"{tried['gain_db']:.2f} dB on {name}'s"
    assert " and ".join(gains.values()) in page


@pytest.fixture(scope="module")
def study():
    return json.loads((HOME / "docs" / "results" / "study-light" / "study.json").read_text())


def test_table_of_the_study_is_its_rows(study):
    page = (HOME / "docs" / "study.md").read_text()
    assert table(summary(study)) in page
    assert f"bicubic reaches {mean_of('bicubic_psnr_y', 4):.2f} dB on these photos" in page
    above = [row["method"] for row in study["rows"] if row["psnr_y"] > mean_of("bicubic_psnr_y", 4)]
    assert sorted(above) == ["no-final-norm", "residual-0.2"]
    assert {row["steps"] for row in study["rows"]} == {600}


def test_differences_of_the_findings_are_those_of_the_rows(study):
    page = (HOME / "docs" / "study.md").read_text()
    psnr = {}
    for row in study["rows"]:
        psnr.setdefault(row["method"], {})[row["seed"]] = row["psnr_y"]
    found = re.findall(r"([a-z0-9.-]+) minus ([a-z0-9.-]+): ([-+./ 0-9]*[0-9])", page)
    assert len(found) > 12
    for first, second, written in found:
        common = sorted(psnr[first].keys() & psnr[second].keys())
        assert written == " / ".join(f"{psnr[first][seed] - psnr[second][seed]:+.3f}" for seed in common)


def test_curves_that_the_page_quotes(study):
    page = (HOME / "docs" / "study.md").read_text()
    curves = {row["method"]: row["curve"]["psnr_y"] for row in study["rows"] if row["seed"] == 10}
    early = [a - b for a, b in zip(curves["contrast-baseline"], curves["contrast-no-pe"], strict=True)]
    assert f"{early[0]:+.2f} at step 60, {early[1]:+.2f} at 120, then {max(early[2:]):+.2f} to" in page
    assert f"{min(early[2:]):+.2f} |" in page
    lead = [a - b for a, b in zip(curves["no-final-norm"], curves["contrast-no-pe-no-cab"], strict=True)]
    assert f"falls from {max(lead):.1f} dB at step 120 to {lead[-1]:.1f} at 600" in page and max(lead) == lead[1]
    assert abs(curves["no-final-norm"][2] - curves["contrast-no-pe-no-cab"][-1]) < 0.02  # steps 180 and 600


def test_recorded_losses_are_those_of_the_plain_pass():
    check = json.loads((HOME / "docs" / "results" / "study-light" / "graph-check.json").read_text())
    assert check["graph"] == check["eager"] and len(check["graph"]) == check["steps"] == 24


def test_tables_of_the_timings():
    page = (HOME / "docs" / "speed.md").read_text()
    results = json.loads((HOME / "docs" / "results" / "speed-h100.json").read_text())
    for text in tables(results).values():
        assert text in page
    names = ("hybrid", "hybrid with CAB", "HAT-light fused", "HAT-light eager attention", "HAT-light eager")
    training = [results[f"graph: {name}"]["training"] for name in names]
    hybrid, cab, fused, attention, plain = (network["samples_per_s"] for network in training)
    memory = [network["peak_bytes"] for network in training]
    assert hybrid > 2 * plain and memory[0] < memory[-1] / 2
    assert f"**The hybrid trains at {hybrid / plain:.2f} times the rate" in page
    assert f"and with {memory[0] / memory[-1]:.2f} of its memory**" in page
    assert f"{cab / plain:.2f} times, with {memory[1] / memory[-1]:.2f} of it" in page
    assert f"the hybrid's factor is {hybrid / attention:.2f} in training" in page
    assert f"{fused / hybrid:.1f} times the hybrid's training rate" in page
    half = results["half precision"]
    assert (
        f"differs by {half['bf16 largest difference dB']:.4f} dB" in page and half["bf16 largest difference dB"] < 0.01
    )
    assert f"float16 by {half['fp16 largest difference dB']:.4f} dB" in page
