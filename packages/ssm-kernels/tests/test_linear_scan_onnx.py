"""The linear scans, the long convolution and the mixers made of them, exported to ONNX and run by onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import ssm_kernels.onnx
import torch
from ssm_kernels import linear_scan, long_conv1d
from ssm_kernels.nn import S4, S4D, S5
from ssm_kernels.testing import error_ratio, linear_inputs
from torch.export import Dim

pytestmark = pytest.mark.usefixtures("lean_exporter")


class Runtime:
    """An exported model in onnxruntime."""

    def __init__(self, program):
        proto = program.model_proto
        onnx.checker.check_model(proto)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.proto = proto
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])

    def __call__(self, *tensors):
        names = [x.name for x in self.session.get_inputs()]
        found = self.session.run(None, dict(zip(names, (x.numpy() for x in tensors), strict=True)))
        return [torch.from_numpy(np.asarray(x)) for x in found]


def check(model, runtime, *tensors, tolerance=1e-5):
    """Compare with PyTorch; `tolerance` is that of all results or has one for each."""
    with torch.no_grad():
        wanted = model(*tensors)
    wanted = (wanted,) if isinstance(wanted, torch.Tensor) else wanted
    found = runtime(*tensors)
    assert len(found) == len(wanted)
    limits = tolerance if isinstance(tolerance, tuple) else (tolerance,) * len(found)
    for ours, theirs, limit in zip(found, wanted, limits, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert error_ratio(ours, theirs) <= limit


def tokens(batch, length, channels=6, dtype=torch.float32):
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(0)).to(dtype)


class Scans(torch.nn.Module):
    """One after another: both directions, as a scan and as a convolution, a final state as two real tensors.

    With a state in half precision too.
    """

    def __init__(self, shared):
        super().__init__()
        made = linear_inputs(2, 1, 6, 3, shared=shared)
        for name in ("Lambda", "B", "C", "step"):
            self.register_buffer(name, getattr(made, name))
        self.register_buffer("state", made.initial_state[:1])

    def forward(self, x, one):
        arguments = self.Lambda, self.B, self.C, self.step
        y, final = linear_scan(x, *arguments, return_final_state=True)
        back = linear_scan(x, *arguments, reverse=True, discretization="bilinear")
        half, last = linear_scan(one.half(), *arguments, initial_state=self.state, return_final_state=True)
        found = y, final.real, final.imag, back, linear_scan(x, *arguments, mode="fft")
        return *found, half.float(), last.real, last.imag


@pytest.mark.parametrize("shared", [False, True], ids=["s4d", "s5"])
def test_operators(shared):
    """With complex parameters, for any length; with a state, in half precision."""
    model, row = Scans(shared).eval(), tokens(1, 9)
    shapes = {0: Dim("batch"), 1: Dim("length")}, None
    runtime = Runtime(ssm_kernels.onnx.export(model, (tokens(2, 9), row), dynamic_shapes=shapes))
    for size in ((2, 9), (1, 31)):
        check(model, runtime, tokens(*size), row, tolerance=(*(1e-5,) * 5, 1e-3, 1e-5, 1e-5))


class Convolutions(torch.nn.Module):
    def forward(self, x, kernel, back):
        one = long_conv1d(x, kernel), long_conv1d(x, kernel, reverse=True)
        both = (long_conv1d(x, kernel, kernel_back=back, reverse=reverse) for reverse in (False, True))
        return *one, *both


def test_long_convolution():
    x, kernel, back = tokens(2, 9), tokens(1, 6, 13)[0], tokens(1, 6, 4)[0]
    runtime = Runtime(ssm_kernels.onnx.export(Convolutions().eval(), (x, kernel, back)))
    check(Convolutions(), runtime, x, kernel, back)


MIXERS = {
    "s4d": lambda: S4D(6, d_state=8, bidirectional=True),
    "s4d real": lambda: S4D(6, d_state=3, init="real", discretization="bilinear"),
    "s4d fft": lambda: S4D(6, d_state=8, mode="fft"),
    "s5": lambda: S5(6, d_state=8, bidirectional=True),
}


class Beside(torch.nn.Module):
    """Mixers beside each other on one input."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, x):
        return tuple(part(x) for part in self.parts)


@pytest.mark.parametrize(
    "names",
    [("s4d", "s4d real", "s5"), pytest.param(("s4d fft",), marks=pytest.mark.slow)],  # the operator as fft is above
    ids="+".join,
)
def test_mixers_with_any_batch_and_length(names):
    model = Beside(*(MIXERS[name]() for name in names)).eval()
    shapes = ({0: Dim("batch"), 1: Dim("length")},)
    runtime = Runtime(ssm_kernels.onnx.export(model, (tokens(2, 9),), dynamic_shapes=shapes))
    assert not any(value.type.tensor_type.elem_type in (14, 15) for value in runtime.proto.graph.value_info)  # complex
    for batch, length in ((2, 9), (1, 40), (1, 1)):
        check(model, runtime, tokens(batch, length))


@pytest.mark.parametrize("bidirectional", [False, pytest.param(True, marks=pytest.mark.slow)])  # one more filter
def test_s4_with_any_batch(bidirectional):
    """The filter has the length of the row, so the length is fixed; it is made in real arithmetic."""
    model = S4(6, d_state=8, bidirectional=bidirectional).eval()
    runtime = Runtime(ssm_kernels.onnx.export(model, (tokens(2, 20),), dynamic_shapes=({0: Dim("batch")},)))
    for batch in (2, 1):
        check(model, runtime, tokens(batch, 20), tolerance=1e-4)


class Steps(torch.nn.Module):
    """One token through every mixer that has a state."""

    def __init__(self, *mixers):
        super().__init__()
        self.mixers = torch.nn.ModuleList(mixers)

    def forward(self, x, *states):
        found = (mixer.step(x, state) for mixer, state in zip(self.mixers, states, strict=True))
        return tuple(tensor for pair in found for tensor in pair)


def test_steps_of_decoders():
    model = Steps(S4(6, d_state=8), S4D(6, d_state=8), S5(6, d_state=8)).eval()
    x, states = tokens(2, 1)[:, 0], [torch.randn_like(mixer.initial_state(2)) for mixer in model.mixers]
    check(model, Runtime(ssm_kernels.onnx.export(model, (x, *states))), x, *states)
