"""`ssm-kernels selftest` finds a wrong operator, and finds none where all is well."""

import pytest
import torch
from ssm_kernels.bench import selftest
from ssm_kernels.bench.options import OPS
from ssm_kernels.bench.suite import rows_of
from ssm_kernels.cli import main


def test_everything_is_right_here(capsys):
    assert main(["selftest", "--device", "cpu", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "are right, on cpu" in printed and "WRONG" not in printed
    assert all(f"\n{op} " in printed for op in rows_of(OPS))


def test_a_wrong_operator_is_named(monkeypatch, capsys):
    def spoilt(case, impl, truth):
        return float("nan") if case.op == "depthwise_conv1d" else 0.0

    monkeypatch.setattr(selftest, "error_of", spoilt)
    assert main(["selftest", "--device", "cpu", "--dtype", "bfloat16"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("WRONG")} == {"depthwise_conv1d"}
    assert "are WRONG" in lines[-1]


def test_a_device_that_is_not_here(capsys):
    assert main(["selftest", "--device", f"cuda:{torch.cuda.device_count()}"]) == 2
    assert "--device" in capsys.readouterr().err


@pytest.mark.gpu
def test_everything_is_right_on_a_gpu(capsys):
    assert main(["selftest", "--device", "cuda"]) == 0
    assert " triton " in capsys.readouterr().out
