"""The GPU check leaves out what a bare machine cannot collect, and nothing else."""

import importlib.util

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
