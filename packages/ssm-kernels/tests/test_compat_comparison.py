"""impl="mamba_ssm" compares with the real package only: how to get it, and no comparison with our own stand-in."""

import importlib.metadata
import sys

import pytest
import ssm_kernels.compat
import torch
from ssm_kernels import selective_scan
from ssm_kernels.testing import scan_inputs


def inputs():
    return scan_inputs(1, 3, 2, 2).kwargs() | {"initial_state": None}


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ValueError, match=r"cannot run here: .*pip install 'ssm-kernels\[mamba-ssm\]'.*impl='auto'"):
        selective_scan(**inputs(), impl="mamba_ssm")


def test_extra_of_that_name_asks_for_the_package():
    asked = importlib.metadata.requires("ssm-kernels") or []
    extra = [line.replace("'", '"') for line in asked if 'extra == "mamba-ssm"' in line.replace("'", '"')]
    assert any(line.startswith("mamba-ssm") for line in extra)
    assert not [line for line in asked if line.startswith("mamba-ssm") and "extra" not in line]


def test_drop_in_is_not_compared_with_itself():
    ssm_kernels.compat.install(packages=["mamba_ssm"])
    try:
        with pytest.raises(ValueError, match=r"ssm_kernels.compat is in that package's place"):
            selective_scan(**inputs(), impl="mamba_ssm")
        assert torch.isfinite(selective_scan(**inputs())).all()
    finally:
        ssm_kernels.compat.uninstall()
