"""The GPU check leaves out what a bare machine cannot collect, and nothing else."""

import importlib.util
import os
import signal
import sys
import threading
import time

import pytest


@pytest.fixture(scope="module")
def gpu_check(workspace):
    spec = importlib.util.spec_from_file_location("gpu_check", workspace / "tools" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_imports_at_collection_count(gpu_check, tmp_path):
    file = tmp_path / "test_a.py"
    file.write_text(
        "import json\nimport absent_one.part\nfrom absent_two import x\nfrom ssm_kernels import selective_scan\n"
        "def test_it():\n    import absent_three\n"
    )
    assert gpu_check.lacking(file) == ["absent_one", "absent_two"]


def test_every_test_file_is_collected_here(gpu_check, workspace):
    files = [*workspace.glob("tests/test_*.py"), *workspace.glob("packages/*/tests/test_*.py")]
    assert [file.name for file in files if gpu_check.lacking(file)] == []


@pytest.mark.parametrize("limit_s", [5.0, None], ids=["limit", "Ctrl-C"])
def test_an_interrupted_run_still_tells_what_failed(gpu_check, tmp_path, capfd, limit_s):
    """A machine that is lent for minutes: the log names the failures when the time is up, the screen only those."""
    file = tmp_path / "test_slow.py"
    file.write_text(
        "import time\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\ndef test_long(): time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(file)]
    key = threading.Timer(5.0, os.kill, [os.getpid(), signal.SIGINT])
    if limit_s is None:
        key.start()
    begun = time.monotonic()
    assert gpu_check.follow(command, tmp_path / "log", limit_s) != 0
    assert time.monotonic() - begun < 40  # not when the test of 60 s is over
    assert "assert 1 == 2" in (tmp_path / "log").read_text()
    shown = capfd.readouterr().out
    assert "test_wrong FAILED" in shown
    assert "test_right PASSED" not in shown
