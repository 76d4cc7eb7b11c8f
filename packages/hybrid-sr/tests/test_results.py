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
    lines = summary(study)
    assert table(lines) in page
    assert f"bicubic reaches {mean_of('bicubic_psnr_y', 4):.2f} dB on these photos" in page
    above = {row["method"] for row in study["rows"] if row["psnr_y"] > mean_of("bicubic_psnr_y", 4)}
    assert above == {"no-final-norm", "residual-0.2", "gcffn-published"}
    assert {row["steps"] for row in study["rows"]} == {600}
    for name, words in (
        ("psnr_spread", "Two seeds of one network differ by up to"),
        ("difference_spread", "base by up to"),
    ):
        assert f"{words} {2 * max(line[name] or 0 for line in lines):.2f} dB" in page


def test_speeds_of_the_study_are_those_of_the_speed_page(study):
    """Three rows are in both tables, and must not contradict each other."""
    quiet = json.loads((HOME / "docs" / "results" / "speed-h100.json").read_text())
    rows = {row["method"]: row["graph"] for row in study["speed"]}
    names = {"contrast-no-pe-no-cab": "hybrid", "contrast-baseline": "hybrid with CAB", "hat-light": "HAT-light fused"}
    for method, label in names.items():
        for part, rate in (("training", "samples_per_s"), ("inference", "megapixels_per_s")):
            assert rows[method][part][rate] == quiet[f"graph: {label}"][part][rate]
    assert len(rows) == 12 and rows["dwconv-ffn"]["inference"]["ms"] is None


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
    curves = {(row["method"], row["seed"]): row["curve"]["psnr_y"] for row in study["rows"]}

    def lead(first, second, seed):
        return [a - b for a, b in zip(curves[first, seed], curves[second, seed], strict=True)]

    bias, other = (lead("contrast-baseline", "contrast-no-pe", seed) for seed in (10, 11))
    later = bias[1:] + other[1:]
    wanted = f"{bias[0]:+.2f} / {other[0]:+.2f} at step 60, then between {min(later):+.2f} and {max(later):+.2f} |"
    assert wanted in page and min(bias[0], other[0]) > 0
    norm, other = (lead("no-final-norm", "contrast-no-pe-no-cab", seed) for seed in (10, 11))
    assert norm[1] == max(norm) and other[1] == max(other)
    assert (
        f"falls from {norm[1]:.1f} / {other[1]:.1f} dB at step 120 to {norm[-1]:.2f} / {other[-1]:.2f} at 600" in page
    )
    for seed in (10, 11):  # after 180 steps where the base is after 600
        assert curves["no-final-norm", seed][2] > curves["contrast-no-pe-no-cab", seed][-1] - 0.02


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
