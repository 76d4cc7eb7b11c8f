"""The examples of docs/classifier.md and docs/coming-from.md run as they stand, and the names they use exist."""

import re
from pathlib import Path

import ssm_kernels
import ssm_kernels.nn
import torch

DOCS = Path(__file__).parent.parent / "docs"


def example(page):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return code


def test_example_learns(capsys):
    code = example("classifier.md")
    assert len(code.splitlines()) <= 56, "it should fit on one screen"
    names: dict = {}
    state = torch.get_rng_state()
    try:
        exec(compile(code, "classifier.md", "exec"), names)
    finally:
        torch.set_rng_state(state)
    assert names["accuracy"] > 0.8
    assert "of new pictures are right; chance is 25%" in capsys.readouterr().out


def test_transposed_call_is_the_scan():
    names: dict = {}
    exec(compile(example("coming-from.md"), "coming-from.md", "exec"), names)
    wanted = ssm_kernels.selective_scan(
        *(names[key].mT for key in ("u", "delta")),
        names["A"],
        *(names[key].mT for key in ("b", "c")),
        names["skip"],
        dt_softplus=True,
        impl="reference",
    )
    assert torch.allclose(names["y"].mT, wanted, atol=1e-5)


def test_names_of_the_page_exist():
    page = (DOCS / "coming-from.md").read_text()
    here = "\n".join(line.split("|")[2] for line in page.splitlines() if line.startswith("| `") or "| Vim" in line[:6])
    modules = re.findall(r"nn\.(\w+)", here)
    functions = re.findall(r"`(?:y = )?([a-z]\w*_\w+|ssd)[(`]", here)
    assert modules
    assert functions
    assert all(hasattr(ssm_kernels.nn, name) for name in modules)
    options = {"cu_seqlens"}  # arguments, not functions
    assert set(functions) - options <= set(ssm_kernels.__all__)
    assert all((DOCS / link).exists() for link in re.findall(r"\]\((\w[\w.-]+\.md)\)", page))
