"""The example of docs/classifier.md runs as it stands and learns what it claims."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parent.parent / "docs" / "classifier.md"


def test_example_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 56, "it should fit on one screen"
    names: dict = {}
    state = torch.get_rng_state()
    try:
        exec(compile(code, str(PAGE), "exec"), names)
    finally:
        torch.set_rng_state(state)
    assert names["accuracy"] > 0.8
    assert "of new pictures are right; chance is 25%" in capsys.readouterr().out
