"""Every figure of the tables in docs/ is one of a committed JSON."""

import json
import math
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def table_rows(page, first):
    """Return the cells of the rows of the tables whose first column is called `first`."""
    found, inside = [], False
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not line.startswith("|---"):
            found.append(cells)
    return found


def test_speed_is_what_was_measured():
    known = set()
    for file in (DOCS / "results").glob("*.json"):
        for row in json.loads(file.read_text())["rows"]:
            memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
            place = row["model"], str(row["image"][0]), str(row["batch"]), row["mode"]
            known.add((*place, f"{row['ms']:.2f}", f"{row['images_per_s']:.0f}", memory))
    rows = table_rows("speed.md", "network")
    assert len(rows) >= 40
    assert not [row for row in rows if tuple(row) not in known]


def test_cuts_to_a_measured_time_are_what_was_measured():
    rows = table_rows("speed.md", "cut")
    assert [row[0] for row in rows] == ["blocks", "inner"]
    for kind, *shown in rows:
        found = json.loads((DOCS / "results" / "emoji" / f"prune-{kind}.json").read_text())
        times = [f"{found[name]:.2f}" for name in ("before", "after", "ratio")]
        assert shown == [*times, f"{found['parameters'][1] / 1e3:.0f}"]


def test_accuracy_of_the_weights_that_ship_is_what_was_measured():
    found = json.loads((DOCS / "results" / "emoji" / "evaluation.json").read_text())
    shown = {name: value for name, value in table_rows("model-card.md", "class")}
    all_pictures = shown.pop(f"all {found['pictures']} held-out pictures")
    assert all_pictures == f"{found['top1']:.2f}"
    assert shown == {name: f"{value:.2f}" for name, value in found["per_class"].items()}
    kinds = (
        ("int8 weights (", "int8-weights"),
        ("activations", "int8"),
        ("fp8", "fp8"),
        ("two of four", "two-of-four"),
        ("merged", "merged"),
    )
    smaller = table_rows("model-card.md", "made smaller, without training again")
    for (words, name), (label, *shown) in zip(kinds, smaller, strict=True):
        assert words in label
        files = [DOCS / "results" / network / f"evaluation-{name}.json" for network in ("emoji", "emoji-cut")]
        assert shown == [f"{accuracy(file):.2f}" if file.is_file() else "not measured" for file in files]
    readme, cut = (DOCS.parent / "README.md").read_text(), accuracy(DOCS / "results" / "emoji-cut" / "evaluation.json")
    assert f"{found['top1']:.1f} % of {found['pictures']} emoji" in readme
    assert f"`--weights emoji-cut` is right on {cut:.1f} % of them" in readme


def accuracy(file):
    return json.loads(file.read_text())["top1"]


def test_cut_network_that_ships_is_what_the_card_says():
    from vim_compress.info import model_info
    from vim_compress.weights import SHIPPED, read_config, shipped, shipped_models

    assert shipped_models() == ["emoji", "emoji-cut"]
    for name, parameters, macs, top1, before in table_rows("model-card.md", "network"):
        found, results = model_info(read_config(shipped(name))), DOCS / "results" / name
        assert (parameters, macs) == (f"{found['parameters']:,}", f"{found['total_macs'] / 1e6:.1f}")
        assert top1 == f"{accuracy(results / 'evaluation.json'):.2f}"
        earlier = results / "evaluation-before.json"
        assert before == (f"{accuracy(earlier):.2f}" if earlier.is_file() else "")
    assert sum(file.stat().st_size for file in SHIPPED.glob("*/*")) <= 4e6


def test_study_is_what_was_trained():
    from vim_compress.study import summary

    known = set()
    for name in ("study", "baseline", "fashion-mnist"):
        rows = json.loads((DOCS / "results" / "study" / f"{name}.json").read_text())["rows"]
        for line in summary([row | {"latency_ms": row["latency_ms"] or math.nan} for row in rows]):
            spread = f" +- {line['top1_std']:.2f}" if line["seeds"] > 1 else ""
            known.add(
                (
                    *(line["method"], str(line["seeds"]), f"{line['top1']:.2f}{spread}"),
                    *(f"{100 * line['sparsity']:.1f}", f"{line['parameters'] / 1e3:.0f}"),
                    *(f"{line['total_macs'] / 1e6:.1f}", f"{line['latency_ms']:.2f}".replace("nan", "")),
                )
            )
    rows = table_rows("study.md", "method")
    assert len(rows) == len(known)
    assert not [row for row in rows if tuple(row) not in known]
