"""The soak tool sees what it is there to see, and its cases pass on every trainer."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def cases(workspace, monkeypatch):
    monkeypatch.syspath_prepend(str(workspace / "tools"))
    import soak_cases

    return soak_cases


def test_lost_and_damaged_checkpoints_are_problems(cases, tmp_path):
    def trainer(damage=None, steps=(3, 2)):
        folders = [Path(f"step-{step:08d}") for step in steps]
        return SimpleNamespace(checkpoints=lambda out: folders, damage=lambda folder: damage)

    assert cases.saved("saved runs/a/checkpoints/step-00000003, validation 20 dB\nstep 4/8\n") == 3
    assert cases.after_kill(trainer(), tmp_path, 3) == ""
    assert "step 4 was reported as saved and is gone" in cases.after_kill(trainer(), tmp_path, 4)
    assert "damaged under its final name" in cases.after_kill(trainer("weights damaged"), tmp_path, 3)
    assert "gone" in cases.after_kill(trainer(steps=()), tmp_path, 1)


def test_committed_report_is_of_all_cases(cases, workspace):
    report = json.loads((workspace / "docs" / "results" / "soak.json").read_text())
    assert {row["kind"] for row in report["rows"]} == set(cases.CASES)
    assert all(row["passed"] == row["times"] for row in report["rows"] if row["times"])


@pytest.mark.slow
def test_every_case_passes_at_a_small_size(workspace, tmp_path):
    command = [sys.executable, str(workspace / "tools" / "soak.py"), "--out", str(tmp_path / "soak.json")]
    command += ["--kills", "2", "--spoils", "1", "--rows", "20000", "--files", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
