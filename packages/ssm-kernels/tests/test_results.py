"""The tables of docs/results say what the JSON beside them says."""

import json
from pathlib import Path

import pytest
from ssm_kernels.bench.rows import Row, as_table

RESULTS = Path(__file__).parent.parent / "docs" / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.json")), ids=lambda path: path.stem)
def test_table_is_the_json(file):
    rows = [Row(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(file.read_text())["rows"]]
    assert as_table(rows) in (RESULTS / "README.md").read_text()


def test_there_are_results():
    assert sorted(RESULTS.glob("*/*.json"))
