"""Export of `ssd`, `ssd_step` and the Mamba-2 mixers to ONNX: onnxruntime agrees with PyTorch."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import ssm_kernels.onnx
import torch
from ssm_kernels.nn import BidirectionalMamba2, Mamba2
from ssm_kernels.ops.ssd import ssd
from ssm_kernels.ops.ssd_step import ssd_step
from ssm_kernels.testing import error_ratio
from ssm_kernels.testing.ssd import ssd_inputs
from torch import nn
from torch.export import Dim

pytestmark = pytest.mark.usefixtures("lean_exporter")
SMALL = {"d_state": 4, "headdim": 4, "ngroups": 2}


class Call(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def exported(model, tensors, **options):
    """Return a session of onnxruntime, as a function."""
    proto = ssm_kernels.onnx.export(model.eval(), tensors, **options).model_proto
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), None, ["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def run(*given):
        found = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        return [torch.from_numpy(np.asarray(x)) for x in found]

    return run


def check(model, runtime, *tensors, tolerance=1e-5):
    with torch.no_grad():
        wanted = model(*tensors)
    wanted = (wanted,) if isinstance(wanted, torch.Tensor) else wanted
    for ours, theirs in zip(runtime(*tensors), wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert error_ratio(ours, theirs) <= tolerance


@pytest.mark.parametrize("mixer", [Mamba2, BidirectionalMamba2])
def test_mixers_with_any_batch_and_length(mixer):
    model = mixer(8, **SMALL)
    shapes = ({0: Dim("batch"), 1: Dim("length")},)
    runtime = exported(model, (torch.randn(2, 9, 8),), dynamic_shapes=shapes)
    for size in ((2, 9), (3, 150), (1, 1)):
        check(model, runtime, torch.randn(*size, 8))


OPTIONS = {
    "least": {"optional": False},
    "half": {"dtype": torch.float16},
}  # all of them, in float64 too: test_export_all


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case):
    given = {n: x for n, x in ssd_inputs(2, 9, 4, 3, 5, **OPTIONS[case]).kwargs().items() if x is not None}

    def function(*tensors):
        named = dict(zip(given, tensors, strict=True))
        return ssd(**named, dt_softplus=case != "least", reverse=case != "half", return_final_state=True)

    model = Call(function)
    tolerance = 1e-3 if case == "half" else 1e-5
    check(model, exported(model, tuple(given.values())), *given.values(), tolerance=tolerance)


def test_a_step_with_little():
    made = ssd_inputs(2, 1, 4, 3, 5, optional=False).kwargs()
    del made["initial_state"]
    made["state"] = torch.randn(2, 4, 3, 5)
    given = {n: x[:, 0] if n in ("x", "dt", "B", "C", "z") else x for n, x in made.items() if x is not None}

    def function(*tensors):
        return ssd_step(**dict(zip(given, tensors, strict=True)), dt_softplus=True)

    model = Call(function)
    check(model, exported(model, tuple(given.values())), *given.values())
