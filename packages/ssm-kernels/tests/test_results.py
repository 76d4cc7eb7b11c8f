"""The pages say what the JSON of the results says."""

from pathlib import Path

import pytest
from ssm_kernels.bench.report import fill_page, has_results, quoted

HOME = Path(__file__).parent.parent
RESULTS = HOME / "docs" / "results"
PAGES = [HOME / "README.md", *sorted(HOME.glob("docs/*.md")), RESULTS / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_page_is_the_json(page):
    """`ssm-kernels report docs/results --page ...` would change nothing."""
    assert page.read_text() == fill_page(page, RESULTS)


def test_results_page_quotes_every_folder():
    folders = {path.name for path in RESULTS.iterdir() if path.is_dir()}
    assert folders == {path.name for path in RESULTS.iterdir() if has_results(path)}
    assert quoted(RESULTS / "README.md") == folders
