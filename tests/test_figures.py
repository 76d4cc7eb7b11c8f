"""The tables of the root README and of docs/ are what the committed JSON says."""

import importlib.util
import json
import shutil

import pytest


def load(workspace, name):
    spec = importlib.util.spec_from_file_location(name, workspace / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures(workspace):
    return load(workspace, "figures")


def test_pages_are_the_json(figures, workspace):
    """`python tools/figures.py` would change nothing."""
    stale = [page.name for page in figures.pages(workspace) if figures.fill(page, workspace) != page.read_text()]
    assert stale == []


def test_every_table_is_used(figures, workspace):
    used = {name for page in figures.pages(workspace) for _, name, _, _ in figures.BLOCK.findall(page.read_text())}
    assert used == set(figures.TABLES)


def test_another_number_is_another_page(figures, workspace, tmp_path):
    (tmp_path / "docs/results").mkdir(parents=True)
    source = workspace / "docs/results/packages.json"
    shutil.copy(source, tmp_path / "docs/results")
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: packages -->\n<!-- end of figures -->\n")
    page.write_text(figures.fill(page, tmp_path))
    assert figures.fill(page, tmp_path) == page.read_text()
    found = json.loads(source.read_text())
    found["packages"]["hybrid-sr"]["distributions"] += 1
    (tmp_path / "docs/results/packages.json").write_text(json.dumps(found))
    assert figures.fill(page, tmp_path) != page.read_text()


UNKNOWN = "<!-- figures: nonsense -->\n<!-- end of figures -->\n"


@pytest.mark.parametrize("text", [UNKNOWN, "<!-- figures: packages -->\n"], ids=["unknown", "no end"])
def test_mistakes_in_a_page_are_errors(figures, workspace, tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        figures.fill(tmp_path / "page.md", workspace)


def test_scaling_formula(workspace):
    """64 GPUs of 900 samples a second at 95 %: a billion images in 5 hours; GPU hours do not depend on how many."""
    module = load(workspace, "scaling")
    one = dict(rate=900, loader=60, sample_bytes=60e3, images=1e9, epochs=1, price=3)
    result = module.cost(**one, gpus=64)
    assert result.seconds == pytest.approx(1e9 / (900 * 64 * 0.95))
    assert result.disk_bytes == 60e12
    assert result.gpu_hours == pytest.approx(module.cost(**one, gpus=2).gpu_hours)
    assert result.money == pytest.approx(3 * result.gpu_hours)
    assert result.cores == 15
    with pytest.raises(ValueError, match="rate must be above 0"):
        module.cost(**{**one, "rate": 0}, gpus=1)
