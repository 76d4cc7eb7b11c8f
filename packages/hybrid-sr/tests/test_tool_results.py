"""The figures on the pages about the loader and about export are those of the committed measurements."""

import json
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def result(name):
    return json.loads((DOCS / "results" / name).read_text())


def test_what_a_crop_costs():
    page = (DOCS / "loader.md").read_text()
    for row in result("loader-processor.json")["rows"]:
        cost = row["processor_ms_per_crop"]
        assert f"| {cost:.2f} | {1000 / cost:,.0f} |" in page


def test_the_gpu_does_not_wait_for_the_loader():
    (row,) = result("loader-h100.json")["rows"]
    page = " ".join((DOCS / "loader.md").read_text().split())
    assert (row["batch"], row["workers"], row["graph"], row["device"][:11]) == (32, 8, True, "NVIDIA H100")
    assert row["share_of_time_waited"] < 0.01 and row["host_seconds_in_next"] < 0.01 * row["train_seconds"]
    train, resident, alone = (row[f"{name}_samples_per_s"] for name in ("train", "resident", "loader"))
    assert f"makes {train:.0f} crops a second with the loader and {resident:.0f} on the batch that stays" in page
    assert f"{row['host_seconds_in_next']:.2f} of {row['train_seconds']:.1f} seconds asking" in page
    assert f"alone makes {alone:,.0f} crops a second there, {alone / train:.0f} times" in page


def test_compiled_and_recorded_steps():
    page = " ".join((DOCS / "training.md").read_text().split())
    compiled, speed = result("compile-h100.json")["compile: HAT-light fused"], result("speed-h100.json")
    for name, words in (("hybrid", "shipped network takes"), ("HAT-light fused", "one of HAT-light")):
        graph, eager = (speed[f"{mode}: {name}"]["training"]["ms"] for mode in ("graph", "eager"))
        assert f"{words} {graph:.0f} instead of {eager:.0f}" in page
    eager, graph = (speed[f"{mode}: HAT-light fused"]["inference"]["ms"] for mode in ("eager", "graph"))
    found = (compiled["training"]["ms"], compiled["inference"]["ms"], eager, graph)
    step, upscaling, eager, recorded = (f"{ms:.0f}" for ms in found)
    assert f"step takes {step} ms with it, upscaling to 1280 x 720 {upscaling} ms instead of {eager}," in page
    assert f"where a recording takes {recorded} (" in page


def test_onnx_differs_by_one_grey_level():
    row = result("onnx-x4.json")
    page = " ".join((DOCS / "export.md").read_text().split())
    assert row["largest_difference_grey_levels"] == 1 and "by one grey level" in page
    assert f"{1e5 * row['share_of_values_that_differ']:.1f} in 100,000 values" in page
    assert f"{row['file_bytes'] / 1e6:.1f} MB" in page


def test_norms_of_the_shipped_network():
    page = (DOCS / "inside.md").read_text()
    (model,) = result("norms-china.json")["models"]
    for row in model["places"]:
        assert f"| {row['name']} | {row['max']:.2f} | {row['median']:.2f} | {row['max_over_median']:.2f} |" in page
    assert f"{model['places'][3]['max'] / model['places'][0]['max']:.0f} times from the first to the last" in page


def test_attribution_map_of_the_shipped_network():
    page = " ".join((DOCS / "inside.md").read_text().split())
    (row,) = result("lam-china.json")["models"]
    assert f"diffusion index {row['diffusion_index']:.2f}, {100 * row['cross_near']:.1f} % of the weight" in page
    assert f"columns {row['cross_ratio']:.2f} times as heavy" in page
    assert f"add up to {row['explained']:.1f} of a change of {row['change']:.1f}" in page


def test_attribution_maps_of_the_study():
    page = (DOCS / "inside.md").read_text()
    coffee, china = (result(f"lam-study-{name}.json")["models"] for name in ("coffee", "china"))
    for pair in zip(coffee, china, strict=True):
        cells = (
            f"{row['diffusion_index']:.2f} | {row['cross_ratio']:.2f} | {100 * row['cross_near']:.2f} %" for row in pair
        )
        assert f"| {pair[0]['model'].removesuffix('-10')} | {' | '.join(cells)} |" in page


def test_norms_with_and_without_the_final_norm():
    page = (DOCS / "inside.md").read_text()
    models = result("norms-study-china.json")["models"]
    assert [model["model"] for model in models] == ["contrast-no-pe-no-cab-10", "no-final-norm-10", "residual-0.2-10"]
    for rows in zip(*(model["places"][:4] for model in models), strict=True):
        cells = (f"{row['median']:.2f} | {row['max']:.2f} | {row['max_over_median']:.2f}" for row in rows)
        assert f"| {rows[0]['name']} | {' | '.join(cells)} |" in page
