"""The linear scans and the long convolution as operators: contract, torch.compile, torch.export, fake tensors."""

import pytest
import torch
from ssm_kernels import linear_scan, long_conv1d
from ssm_kernels.testing import error_ratio, linear_inputs
from torch._dynamo.testing import CompileCounterWithBackend

MODES = torch.ops.ssm_kernels.linear_modes.default
SCAN = torch.ops.ssm_kernels.linear_scan.default
SHARED = torch.ops.ssm_kernels.diagonal_scan.default
CONV = torch.ops.ssm_kernels.long_conv1d.default
FORMS = pytest.mark.parametrize("shared", [False, True], ids=["s4d", "s5"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def planes(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.5


IGNORE = "ignore:The .grad attribute of a Tensor that is not a leaf"  # opcheck reads it itself


@pytest.mark.filterwarnings(IGNORE)
@pytest.mark.parametrize(("mode", "states"), [("scan", True), ("scan", False), ("fft", False)])
def test_opcheck_of_channels_with_their_own_modes(mode, states):
    a, b, c = planes(3, 2, 4, 3).requires_grad_().unbind()
    state = planes(2, 2, 4, 3) if states else None
    x = planes(2, 20, 3).requires_grad_()
    arguments = (x, a.detach().requires_grad_(), b.detach() if states else None, c.detach(), state)
    torch.library.opcheck(SCAN, (*arguments, mode, False, "auto"))
    backward = torch.ops.ssm_kernels.linear_scan_backward.default
    final = planes(2, 2, 4, 3) if states else None
    plain = [t if t is None else t.detach() for t in arguments]
    torch.library.opcheck(backward, (*plain, planes(2, 20, 3), final, mode, True, "auto"))


@pytest.mark.filterwarnings(IGNORE)
@pytest.mark.parametrize(("mode", "save"), [("scan", True), ("scan", False), ("fft", True)])
def test_opcheck_of_shared_modes(mode, save):
    x, a, b, c = planes(2, 20, 3), planes(2, 4), planes(2, 4, 3), planes(2, 3, 4)
    state = planes(2, 2, 4) if mode == "scan" else None
    given = [t.requires_grad_() if save else t for t in (x, a, b, c)]
    torch.library.opcheck(SHARED, (*given, state, mode, False, save, "auto"))
    backward = torch.ops.ssm_kernels.diagonal_scan_backward.default
    plain = [t.detach() for t in given]
    states = planes(2, 20, 2, 4) if save else planes(0)
    torch.library.opcheck(backward, (*plain, state, states, planes(2, 20, 3), planes(2, 2, 4), mode, True, "auto"))


@pytest.mark.filterwarnings(IGNORE)
@pytest.mark.parametrize("unit", [False, True])
def test_opcheck_of_the_discretisation(unit):
    modes = [*planes(3, 2, 4, 3).unbind(), planes(3).abs()]
    given = [t.requires_grad_() for t in (m.detach() for m in modes)]
    torch.library.opcheck(MODES, (*given, "zoh", unit, 2.0, False, "auto"))
    backward = torch.ops.ssm_kernels.linear_modes_backward.default
    grads = [t.detach() for t in MODES(*modes, "zoh", unit, 2.0, False, "auto")]
    torch.library.opcheck(backward, (*grads, *modes, "bilinear", unit, 2.0, "auto"))


@pytest.mark.filterwarnings(IGNORE)
@pytest.mark.parametrize("both", [False, True])
def test_opcheck_of_the_long_convolution(both):
    x, kernel = planes(2, 9, 3).requires_grad_(), planes(3, 9).requires_grad_()
    back = planes(3, 4) if both else None
    torch.library.opcheck(CONV, (x, kernel, back, False, "auto"))
    backward = torch.ops.ssm_kernels.long_conv1d_backward.default
    torch.library.opcheck(backward, (planes(2, 9, 3), x.detach(), kernel.detach(), back, True, "auto"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@FORMS
def test_compiles_once_for_any_batch_and_length(device, shared):
    def loss(inputs):
        y, final = linear_scan(**inputs, return_final_state=True)
        return y.square().sum() + torch.view_as_real(final).sum()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in [(2, 70), (3, 40), (5, 129), (2, 64)]:
        found, wanted = [], []
        for function, grads in ((compiled, found), (loss, wanted)):
            made = linear_inputs(batch, length, 4, 3, shared=shared, device=device).kwargs()
            inputs = {name: x.requires_grad_() for name, x in made.items()}
            function(inputs).backward()
            grads.extend(torch.view_as_real(x.grad) if x.is_complex() else x.grad for x in inputs.values())
        assert all(error_ratio(a, b) < 1e-5 for a, b in zip(found, wanted, strict=True))
    assert counter.frame_count == 1


class Scans(torch.nn.Module):
    def __init__(self, shared):
        super().__init__()
        made = linear_inputs(1, 1, 4, 3, shared=shared)
        self.Lambda, self.B, self.C = (torch.nn.Parameter(t) for t in (made.Lambda, made.B, made.C))
        self.step = torch.nn.Parameter(made.step)

    def forward(self, x):
        arguments = (x, self.Lambda, self.B, self.C, self.step)
        y, final = linear_scan(*arguments, return_final_state=True)
        return y, final, linear_scan(*arguments, mode="fft", reverse=True), long_conv1d(x, self.C.real)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 about its own file of parameters
@FORMS
def test_exports_with_any_batch_and_length(shared, tmp_path):
    """The exported program keeps the operators, so that they pick their implementation where they are run."""
    model = Scans(shared)
    shapes = {"x": {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}}
    program = torch.export.export(model, (planes(2, 70, 4),), dynamic_shapes=shapes)
    targets = {node.target for node in program.graph.nodes}
    assert {SHARED if shared else SCAN, CONV} <= targets
    torch.export.save(program, tmp_path / "scan.pt2")
    loaded = torch.export.load(tmp_path / "scan.pt2").module()
    for size in ((3, 40), (5, 129)):
        x = planes(*size, 4)
        assert all(torch.equal(a, b) for a, b in zip(loaded(x), model(x), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@FORMS
def test_meta_tensors_give_shapes_and_dtypes(dtype, shared):
    made = linear_inputs(2, 9, 4, 3, shared=shared, dtype=dtype, device="meta").kwargs()
    y, final = linear_scan(**made, return_final_state=True)
    assert (y.shape, y.dtype) == ((2, 9, 4), dtype)
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    assert (final.shape, final.dtype) == (((2, 3) if shared else (2, 4, 3)), kind)
    assert long_conv1d(made["x"], made["C"].real).shape == (2, 9, 4)
