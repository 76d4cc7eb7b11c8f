"""impl="mamba_ssm" compares with the real package only: how to get it, and no comparison with our own stand-in."""

import sys
import tomllib
from pathlib import Path

import pytest
import ssm_kernels.compat
import torch
from ssm_kernels import selective_scan
from ssm_kernels.ops.ssd import ssd
from ssm_kernels.testing import scan_inputs


def inputs():
    return scan_inputs(1, 3, 2, 2).kwargs() | {"initial_state": None}


def heads():
    """x, dt, A, B, C of two heads of four channels."""
    return torch.ones(1, 3, 2, 4), torch.ones(1, 3, 2), -torch.ones(2), torch.ones(1, 3, 1, 2), torch.ones(1, 3, 1, 2)


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ValueError, match=r"cannot run here: .*pip install 'ssm-kernels\[mamba-ssm\]'.*impl='auto'"):
        selective_scan(**inputs(), impl="mamba_ssm")
    with pytest.raises(ValueError, match=r"ssd: .*cannot run here: .*pip install 'ssm-kernels\[mamba-ssm\]'"):
        ssd(*heads(), impl="mamba_ssm")


def test_extra_of_that_name_asks_for_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("mamba-ssm>=") for line in project["optional-dependencies"]["mamba-ssm"])
    assert not any(line.startswith("mamba-ssm") for line in project["dependencies"])


def test_drop_in_is_not_compared_with_itself():
    ssm_kernels.compat.install(packages=["mamba_ssm"])
    try:
        with pytest.raises(ValueError, match=r"ssm_kernels.compat is in that package's place"):
            selective_scan(**inputs(), impl="mamba_ssm")
        with pytest.raises(ValueError, match=r"ssd: .*ssm_kernels.compat is in that package's place"):
            ssd(*heads(), impl="mamba_ssm")
        assert torch.isfinite(selective_scan(**inputs())).all()
    finally:
        ssm_kernels.compat.uninstall()
