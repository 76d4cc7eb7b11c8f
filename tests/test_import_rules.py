"""The import rules hold in the tree, and the checker finds each kind of violation when one is planted."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rules():
    spec = importlib.util.spec_from_file_location("import_rules", ROOT / "tools" / "import_rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_workspace_is_clean(rules):
    assert rules.check(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("hybrid-sr/src/hybrid_sr/a.py", "import muse_mamba", "may not import muse_mamba"),
        ("hybrid-sr/src/hybrid_sr/a.py", "def f():\n    from vim_compress import x", "may not import vim_compress"),
        ("hybrid-sr/src/hybrid_sr/a.py", "import yaml", "pyproject.toml declares none of"),
        ("ssm-kernels/src/ssm_kernels/nn/a.py", "import accelerate", "ssm_kernels may not import accelerate"),
        ("ssm-kernels/src/ssm_kernels/nn/a.py", "import triton", "triton may only be imported inside a function"),
        ("ssm-kernels/src/ssm_kernels/ops/s/api.py", "from .torch_impl import f", "api may not import torch_impl"),
        (
            "ssm-kernels/src/ssm_kernels/ops/s/kernels.py",
            "from .reference import f",
            "kernels may not import reference",
        ),
        (
            "ssm-kernels/src/ssm_kernels/ops/s/torch_impl.py",
            "from . import kernels",
            "torch_impl may not import kernels",
        ),
        ("ssm-kernels/src/ssm_kernels/ops/s/schema.py", "from .kernels import f", "inside a function, on first launch"),
        ("ssm-kernels/src/ssm_kernels/ops/s/schema.py", "from ..t.api import f", "schema may not import api"),
    ],
)
def test_planted_violation_is_found(rules, tmp_path, file, code, complaint):
    for package in ("ssm-kernels", "hybrid-sr"):
        folder = tmp_path / "packages" / package
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text('[project]\ndependencies = ["ssm-kernels", "torch", "triton"]\n')
    path = tmp_path / "packages" / file
    path.parent.mkdir(parents=True)
    path.write_text(code + "\n")
    assert any(complaint in line for line in rules.check(tmp_path)), rules.check(tmp_path)


def test_allowed_imports_pass(rules, tmp_path):
    folder = tmp_path / "packages" / "ssm-kernels"
    scan = folder / "src" / "ssm_kernels" / "ops" / "s"
    scan.mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["torch", "triton", "mamba-ssm"]\n')
    (scan / "api.py").write_text("from . import autograd\nfrom .reference import f\ndef g():\n    import mamba_ssm\n")
    (scan / "schema.py").write_text("import torch\ndef f():\n    from .kernels import g\n")
    (scan / "kernels.py").write_text("import triton\nfrom ..other.kernels import h\n")
    assert rules.check(tmp_path) == []
