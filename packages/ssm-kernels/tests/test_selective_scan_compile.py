"""`selective_scan` as an operator: contract, torch.compile with changing sizes, torch.export, fake and meta tensors."""

from itertools import product

import pytest
import torch
from ssm_kernels.ops.selective_scan import selective_scan
from ssm_kernels.testing import error_ratio, scan_inputs
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

OP = torch.ops.ssm_kernels.selective_scan.default
BACKWARD = torch.ops.ssm_kernels.selective_scan_backward.default


# every pair of switches takes all four values; the rest is slow
SWITCHES = [
    pytest.param(*which, marks=() if sum(which) % 2 else pytest.mark.slow) for which in product((False, True), repeat=3)
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads it itself
@pytest.mark.parametrize(("save", "packed", "optional"), SWITCHES)
def test_opcheck(save, packed, optional):
    batch = 1 if packed else 2
    inputs = scan_inputs(batch, 70, 4, 3, groups=2, optional=optional).kwargs()
    bounds = torch.tensor([0, 20, 70]) if packed else None
    if packed and optional:
        inputs["initial_state"] = scan_inputs(2, 1, 4, 3).initial_state
    given = {name: x.requires_grad_() if save and x is not None else x for name, x in inputs.items()}
    torch.library.opcheck(OP, (*given.values(), bounds, True, False, save, "auto"))


@pytest.mark.parametrize("optional", [False, True])
def test_opcheck_backward(optional):
    inputs = scan_inputs(2, 70, 4, 3, optional=optional).kwargs()
    y, final, states = OP(*inputs.values(), None, True, False, True, "auto")
    grad_final = torch.randn_like(final) if optional else None
    torch.library.opcheck(
        BACKWARD, (*inputs.values(), None, states, torch.randn_like(y), grad_final, True, False, "auto")
    )


def loss(inputs):
    y, final = selective_scan(**inputs, dt_softplus=True, return_final_state=True)
    return (y * y.detach().cos()).sum() + final.sum()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiles_once_for_any_batch_and_length(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in [(2, 70), (3, 40), (5, 129), (2, 64)]:
        found, wanted = [], []
        for function, grads in ((compiled, found), (loss, wanted)):
            inputs = {
                k: v.requires_grad_() for k, v in scan_inputs(batch, length, 4, 3, device=device).kwargs().items()
            }
            function(inputs).backward()
            grads.extend(v.grad for v in inputs.values())
        assert all(error_ratio(a, b) < 1e-5 for a, b in zip(found, wanted, strict=True))
    assert counter.frame_count == 1


def test_compiles_with_packed_sequences():
    def packed(inputs, bounds):
        return selective_scan(**inputs, dt_softplus=True, cu_seqlens=bounds)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend=counter)
    for bounds in ([0, 20, 70], [0, 30, 30, 90]):
        inputs = scan_inputs(1, bounds[-1], 7, 5).kwargs() | {"initial_state": None}
        assert torch.equal(compiled(inputs, torch.tensor(bounds)), packed(inputs, torch.tensor(bounds)))
    assert counter.frame_count == 1


class Scan(torch.nn.Module):
    def forward(self, x, dt, A, B, C, D, z):
        return selective_scan(x, dt, A, B, C, D, z=z, dt_softplus=True, return_final_state=True)


def test_exports_with_any_batch_and_length(tmp_path):
    """The exported program keeps the operator, so that it picks its implementation where it is run."""

    def arguments(batch, length):
        inputs = scan_inputs(batch, length, 4, 3)
        return inputs.x, inputs.dt, inputs.A, inputs.B, inputs.C, inputs.D, inputs.z

    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    row = {0: batch, 1: length}
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
    inputs = scan_inputs(2, 9, 4, 3, dtype=dtype, device="meta").kwargs()
    y, final = selective_scan(**inputs, return_final_state=True)
    assert (y.shape, y.dtype) == ((2, 9, 4), dtype)
    assert (final.shape, final.dtype) == ((2, 4, 3), torch.float64 if dtype == torch.float64 else torch.float32)


def test_fake_tensors_are_not_read():
    with FakeTensorMode():
        inputs = scan_inputs(1, 9, 4, 3).kwargs() | {"initial_state": None}
        y, final = selective_scan(**inputs, cu_seqlens=torch.tensor([0, 4, 9]), return_final_state=True)
    assert y.shape == (1, 9, 4)
    assert final.shape == (2, 4, 3)


def test_a_compiled_call_refuses_wrong_bounds_too():
    """The values are read by the operator when it runs, so the message is that of an eager call."""
    inputs = scan_inputs(1, 9, 4, 3).kwargs() | {"initial_state": None}
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="selective_scan: cu_seqlens must be non-decreasing from 0 to L=9"):
        compiled(**inputs, cu_seqlens=torch.tensor([0, 4, 8]))


@pytest.mark.slow
def test_inductor_gives_the_same():
    inputs = scan_inputs(2, 70, 4, 3).kwargs()
    compiled = torch.compile(loss, fullgraph=True)
    assert torch.allclose(compiled(inputs), loss(inputs))
