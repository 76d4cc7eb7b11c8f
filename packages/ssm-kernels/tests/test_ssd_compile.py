"""`ssd` and `ssd_step` as operators: contract, torch.compile with changing sizes, torch.export, meta tensors."""

import pytest
import torch
from ssm_kernels.ops.ssd import ssd
from ssm_kernels.ops.ssd_step import ssd_step
from ssm_kernels.testing import error_ratio
from ssm_kernels.testing.ssd import ssd_inputs
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

OP, BACKWARD = torch.ops.ssm_kernels.ssd.default, torch.ops.ssm_kernels.ssd_backward.default
STEP, STEP_BACKWARD = torch.ops.ssm_kernels.ssd_step.default, torch.ops.ssm_kernels.ssd_step_backward.default


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("optional", [False, True])
def test_opcheck(packed, optional):
    inputs = ssd_inputs(1 if packed else 2, 40, 4, 3, 2, groups=2, optional=optional, rows=2).kwargs()
    bounds = torch.tensor([0, 10, 40]) if packed else None
    given = {name: None if x is None else x.requires_grad_() for name, x in inputs.items()}
    torch.library.opcheck(OP, (*given.values(), bounds, True, False, 16, "auto"))


@pytest.mark.parametrize("optional", [False, True])
def test_opcheck_backward(optional):
    inputs = ssd_inputs(2, 40, 4, 3, 2, optional=optional).kwargs()
    y, final = OP(*inputs.values(), None, True, False, 16, "auto")
    grad_final = torch.randn_like(final) if optional else None
    options = (True, False, 16, "auto")
    torch.library.opcheck(BACKWARD, (*inputs.values(), None, torch.randn_like(y), grad_final, *options))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_of_the_kernels():
    """The fake results have the shapes, strides and dtypes of what the launchers return."""
    inputs = ssd_inputs(1, 5, 1, 3, 2).kwargs()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OP, (*inputs.values(), None, True, False, 16, "triton"), test_utils=checks)
    y, final = OP(*inputs.values(), None, True, False, 16, "triton")
    torch.library.opcheck(BACKWARD, (*inputs.values(), None, y, final, True, False, 16, "triton"), test_utils=checks)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_step():
    inputs = ssd_inputs(2, 1, 4, 3, 2, groups=2).kwargs()
    sequences = ("x", "dt", "B", "C", "z")
    given = [x[:, 0].detach().requires_grad_() if name in sequences else x for name, x in inputs.items()]
    torch.library.opcheck(STEP, (*given, True, "auto"))
    y, following = STEP(*given, True, "auto")
    detached = [x.detach() for x in given]
    torch.library.opcheck(STEP_BACKWARD, (y.detach(), following.detach(), *detached, True))


def loss(inputs):
    y, final = ssd(**inputs, dt_softplus=True, return_final_state=True)
    return (y * y.detach().cos()).sum() + final.sum()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiles_once_for_any_batch_and_length(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in [(2, 70), (3, 40), (5, 129)]:
        found, wanted = [], []
        for function, grads in ((compiled, found), (loss, wanted)):
            made = ssd_inputs(batch, length, 4, 3, 5, device=device).kwargs()
            inputs = {name: x.requires_grad_() for name, x in made.items()}
            function(inputs).backward()
            grads.extend(x.grad for x in inputs.values())
        assert all(error_ratio(a, b) < 1e-5 for a, b in zip(found, wanted, strict=True))
    assert counter.frame_count == 1


def test_compiles_with_packed_sequences():
    def packed(inputs, bounds):
        return ssd(**inputs, dt_softplus=True, cu_seqlens=bounds)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend=counter)
    for bounds in ([0, 20, 70], [0, 30, 30, 90]):
        inputs = ssd_inputs(1, bounds[-1], 6, 5, 2).kwargs() | {"initial_state": None}
        assert torch.equal(compiled(inputs, torch.tensor(bounds)), packed(inputs, torch.tensor(bounds)))
    assert counter.frame_count == 1


class Scan(torch.nn.Module):
    def forward(self, x, dt, A, B, C, D, z):
        return ssd(x, dt, A, B, C, D, z=z, dt_softplus=True, return_final_state=True)


def test_exports_with_any_batch_and_length(tmp_path):
    """The exported program keeps the operator, so that it picks its implementation where it is run."""

    def arguments(batch, length):
        made = ssd_inputs(batch, length, 4, 3, 2)
        return made.x, made.dt, made.A, made.B, made.C, made.D, made.z

    row = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    shapes = {"x": row, "dt": row, "A": None, "B": row, "C": row, "D": None, "z": row}
    program = torch.export.export(Scan(), arguments(2, 70), dynamic_shapes=shapes)
    assert OP in {node.target for node in program.graph.nodes}
    torch.export.save(program, tmp_path / "scan.pt2")
    loaded = torch.export.load(tmp_path / "scan.pt2").module()
    for size in ((3, 40), (5, 129)):
        for found, wanted in zip(loaded(*arguments(*size)), Scan()(*arguments(*size)), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_meta_tensors_give_shapes_and_dtypes(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = ssd_inputs(2, 9, 4, 3, 5, dtype=dtype, device="meta").kwargs()
    y, final = ssd(**inputs, return_final_state=True)
    assert (y.shape, y.dtype) == ((2, 9, 4, 3), dtype)
    assert (final.shape, final.dtype) == ((2, 4, 3, 5), wide)
    token = {name: inputs[name][:, 0] for name in ("x", "dt", "B", "C")}
    y, following = ssd_step(**token, A=inputs["A"], state=final)
    assert (y.shape, y.dtype, following.shape, following.dtype) == ((2, 4, 3), dtype, (2, 4, 3, 5), wide)


def test_fake_tensors_are_not_read():
    with FakeTensorMode():
        inputs = ssd_inputs(1, 9, 4, 3, 2).kwargs() | {"initial_state": None}
        y, final = ssd(**inputs, cu_seqlens=torch.tensor([0, 4, 9]), return_final_state=True)
    assert y.shape == (1, 9, 4, 3)
    assert final.shape == (2, 4, 3, 2)


def test_a_compiled_call_refuses_wrong_bounds_too():
    inputs = ssd_inputs(1, 9, 4, 3, 2).kwargs() | {"initial_state": None}
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="ssd: cu_seqlens must be non-decreasing from 0 to L=9"):
        compiled(**inputs, cu_seqlens=torch.tensor([0, 4, 8]))
