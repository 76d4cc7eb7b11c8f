"""torch.export and ONNX of Mamba-2's operators, and of one model made of every mixer."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import ssm_kernels.onnx
import torch
from ssm_kernels import layer_norm, rms_norm, ssd, ssd_bidirectional, ssd_step
from ssm_kernels import nn as mixers
from ssm_kernels.compat.mamba2 import Mamba2
from ssm_kernels.testing import error_ratio
from torch import Tensor, nn
from torch.export import Dim

pytestmark = pytest.mark.usefixtures("lean_exporter")
SEQUENCE = {0: Dim("batch"), 1: Dim("length")}


class Call(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor):
        return self.function(*tensors)


class Runtime:
    """An exported model in onnxruntime, on one thread."""

    def __init__(self, program: torch.onnx.ONNXProgram):
        proto = program.model_proto
        onnx.checker.check_model(proto)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.proto = proto
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        names = [x.name for x in self.session.get_inputs()]
        found = self.session.run(None, dict(zip(names, (x.numpy() for x in tensors), strict=True)))
        return [torch.from_numpy(np.asarray(x)) for x in found]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def agree(model: nn.Module, runtime: Runtime, *tensors: Tensor, tolerance: float = 1e-5) -> None:
    """Compare shapes, dtypes and numbers with PyTorch."""
    with torch.no_grad():
        wanted = model(*tensors)
    wanted = (wanted,) if isinstance(wanted, Tensor) else wanted
    for ours, theirs in zip(runtime(*tensors), wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert error_ratio(ours, theirs.double()) < tolerance


def both_ways(model: nn.Module, *tensors: Tensor, dynamic=None, tolerance: float = 1e-5) -> Runtime:
    """Export with torch.export and to ONNX, compare both with the model, and give the ONNX one."""
    model = model.eval()
    shapes = None if dynamic is None else (dynamic,)
    program = torch.export.export(model, tensors, dynamic_shapes=shapes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*tensors), model(*tensors))
    runtime = Runtime(ssm_kernels.onnx.export(program, tensors))
    agree(model, runtime, *tensors, tolerance=tolerance)
    return runtime


def ssd_arguments(batch: int, length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, dt, A, B, C, z, dt_bias, state: H 4, P 3, G 2, N 5."""
    shapes = ((batch, length, 4, 3), (batch, length, 4), (4,), *2 * ((batch, length, 2, 5),), (batch, length, 4, 3))
    tensors = [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    tensors[2] = -tensors[2].exp()
    return [*tensors, draw(4, seed=9, dtype=dtype), draw(batch, 4, 3, 5, seed=10, dtype=dtype)]


@pytest.mark.parametrize(("reverse", "dtype"), [(False, torch.float32), (True, torch.float64)])
def test_ssd_with_all_options(reverse, dtype):
    """Free batch and length; a file of one size runs at another."""
    D = draw(4, 3, dtype=dtype)

    def call(x, dt, A, B, C, z, dt_bias, state):
        options = {"z": z, "dt_bias": dt_bias, "dt_softplus": True, "initial_state": state, "reverse": reverse}
        return ssd(x, dt, A, B, C, D, return_final_state=True, **options)

    row = {0: SEQUENCE[0]}
    dynamic = (SEQUENCE, SEQUENCE, {}, SEQUENCE, SEQUENCE, SEQUENCE, {}, row)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    runtime = both_ways(Call(call), *ssd_arguments(2, 7, dtype), dynamic=dynamic, tolerance=tolerance)
    agree(Call(call), runtime, *ssd_arguments(3, 11, dtype), tolerance=tolerance)


def test_ssd_both_ways_with_little():
    """Both directions of Mamba-2, gated once, no D, no bias, no softplus."""

    def call(x, dt, A, B, C, z):
        one = (x, dt.exp(), A, B, C, None, None)
        return ssd_bidirectional(*one, *one, z=z, dt_softplus=False, average=True)

    both_ways(Call(call), *ssd_arguments(2, 5)[:6])


def test_ssd_step():
    x, dt, A, B, C, z, bias, state = ssd_arguments(2, 1)
    tokens, D = (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], z[:, 0], bias, state), draw(4)

    def call(x, dt, A, B, C, z, bias, state):
        return ssd_step(x, dt, A, B, C, D, state=state, z=z, dt_bias=bias, dt_softplus=True)

    row = {0: Dim("batch")}
    runtime = both_ways(Call(call), *tokens, dynamic=(row, row, {}, row, row, row, {}, row))
    agree(Call(call), runtime, *(t[:1] if t.shape[0] == 2 else t for t in tokens))


def test_packed_ssd_is_refused_by_name():
    def call(x, dt, A, B, C, bounds):
        return ssd(x, dt, A, B, C, cu_seqlens=bounds)

    tensors = (*ssd_arguments(1, 5)[:5], torch.tensor([0, 2, 5]))
    with pytest.raises(torch.onnx.OnnxExporterError, match="ssd: cu_seqlens in an ONNX export must be None"):
        ssm_kernels.onnx.export(Call(call).eval(), tensors)


def test_norms_as_pytorchs_own_nodes():
    """The modules: in the file is the standard's layer norm, and the residual's sum."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.root = mixers.LayerNorm(6), mixers.RMSNorm(6)

        def forward(self, x, residual):
            y, total = self.norm(x, residual)
            return self.root(y), total

    runtime = both_ways(Block(), draw(2, 3, 6), draw(2, 3, 6, seed=1))
    assert "LayerNormalization" in [node.op_type for node in runtime.proto.graph.node]


@pytest.mark.parametrize("centered", [True, False])
def test_norms_as_a_gpu_exports_them(centered):
    """The registered operator, which is in graphs that were made on a GPU, with all parts and with none but x."""

    def registered(x, weight, bias, residual):
        norm = torch.ops.ssm_kernels.layer_norm.default
        y, total = norm(x, weight, bias, residual, torch.float16, 1e-5, centered)
        return y, total, norm(x, None, None, None, torch.float32, 1e-3, centered)[0]

    def defined(x, weight, bias, residual):
        norm = layer_norm if centered else rms_norm
        y, total = norm(x, weight, bias, residual=residual, dtype=torch.float16)
        return y, total, norm(x, None, eps=1e-3)

    tensors = draw(2, 3, 6), draw(6, seed=1), draw(6, seed=2), draw(2, 3, 6, seed=3, dtype=torch.float16)
    program = torch.export.export(Call(registered), tensors)
    agree(Call(defined), Runtime(ssm_kernels.onnx.export(program, tensors)), *tensors, tolerance=1e-3)


def test_drop_in_mamba2_with_free_batch_and_length():
    """The block of ssm_kernels.compat: projection, convolution, scan, gated norm."""
    model = Mamba2(8, d_state=4, headdim=4, ngroups=2)
    runtime = both_ways(model, draw(2, 5, 8), dynamic=SEQUENCE)
    agree(model, runtime, draw(1, 9, 8))


class Everything(nn.Module):
    """Every mixer of ssm_kernels.nn once, over the pixels of a picture (B, 8, 8, 8) and over their sequence."""

    SEQUENCES: ClassVar = {
        "Mamba": lambda: mixers.Mamba(8, d_state=4),
        "BidirectionalMamba": lambda: mixers.BidirectionalMamba(8, d_state=4),
        "Mamba2": lambda: mixers.Mamba2(8, d_state=4, headdim=4),
        "BidirectionalMamba2": lambda: mixers.BidirectionalMamba2(8, d_state=4, headdim=4),
        "S4": lambda: mixers.S4(8, d_state=4),
        "S4D": lambda: mixers.S4D(8, d_state=4, bidirectional=True),
        "S5": lambda: mixers.S5(8, d_state=4),
    }
    PICTURES: ClassVar = {
        "SS2D": lambda: mixers.SS2D(8, d_state=2),
        "WindowAttention": lambda: mixers.WindowAttention(8, 2, 4, shift=2),
        "OverlappingWindowAttention": lambda: mixers.OverlappingWindowAttention(8, 2, 4),
        "SlidingWindowAttention": lambda: mixers.SlidingWindowAttention(8, 2, 3, ndim=2),
    }

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.sequences = nn.ModuleList(make() for make in self.SEQUENCES.values())
        self.pictures = nn.ModuleList(make() for make in self.PICTURES.values())

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        for mixer in self.sequences:
            tokens = tokens + mixer(tokens)
        x = tokens.unflatten(1, x.shape[1:3])
        for mixer in self.pictures:
            x = x + mixer(x)
        return x


def test_every_mixer_is_in_the_model():
    norms = {"GatedRMSNorm", "LayerNorm", "RMSNorm"}
    assert set(mixers.__all__) - norms == set(Everything.SEQUENCES) | set(Everything.PICTURES)


def test_model_of_every_mixer_through_torch_export():
    model = Everything().eval()
    program = torch.export.export(model, (draw(2, 8, 8, 8),), dynamic_shapes=({0: Dim("batch")},))
    x = draw(3, 8, 8, 8, seed=1)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.slow
def test_model_of_every_mixer_in_onnxruntime():
    """One file for any batch gives the model's numbers."""
    model = Everything()
    runtime = both_ways(model, draw(2, 8, 8, 8), dynamic={0: Dim("batch")})
    agree(model, runtime, draw(3, 8, 8, 8, seed=1))
