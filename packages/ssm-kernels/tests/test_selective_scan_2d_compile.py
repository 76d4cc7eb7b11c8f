"""selective_scan_2d as a PyTorch operator: schema checks, compilation and export with sizes that change, devices."""

import pytest
import torch
from ssm_kernels import selective_scan_2d
from ssm_kernels.ops.selective_scan_2d.schema import selective_scan_2d_backward_op, selective_scan_2d_op
from ssm_kernels.testing import scan_2d_inputs
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own checker
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optional, dtype", [(True, torch.float32), (False, torch.bfloat16)])
def test_operator_checks_of_pytorch(optional, dtype, device):
    """Schema, autograd registration, fake kernel and AOT dispatch, with and without the optional arguments."""
    args = scan_2d_inputs(2, 3, 4, 3, 2, directions=2, dtype=dtype, device=device).kwargs()
    tensors = [t.requires_grad_() if optional or name not in ("D", "dt_bias") else None for name, t in args.items()]
    torch.library.opcheck(selective_scan_2d_op, (*tensors, True, [3, 0], "auto", True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optional", [True, False])
def test_backward_operator_checks_of_pytorch(optional, device):
    args = scan_2d_inputs(2, 3, 4, 3, 2, directions=2, dtype=torch.float16, device=device).kwargs()
    tensors = [t if optional or name not in ("D", "dt_bias") else None for name, t in args.items()]
    grad_y = torch.ones(2, 4, 3, 3, dtype=torch.float16, device=device).transpose(1, 2)
    states = grad_y.new_empty((0, 3, 2), dtype=torch.float32)
    torch.library.opcheck(selective_scan_2d_backward_op, (grad_y, states, *tensors, True, [0, 1], "auto"))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_once_for_every_size(device):
    """fullgraph, forward and backward, with batch, height and width changing: one compilation, equal to eager."""
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def compiled(args):
        return selective_scan_2d(**args)

    for batch, height, width in [(6, 3, 7), (3, 8, 4), (4, 2, 7)]:
        args = scan_2d_inputs(batch, height, width, 5, 2, device=device).kwargs()
        leaves = [t.requires_grad_() for t in args.values()]
        y, eager = compiled(args), selective_scan_2d(**args)
        assert torch.equal(y, eager)
        for ours, theirs in zip(
            torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True
        ):
            assert torch.equal(ours, theirs)
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_dynamic_sizes(strict):
    """The graph holds the operator itself, so that an exported program still picks Triton on a GPU."""

    class Model(torch.nn.Module):
        def forward(self, x, dt, A, B, C):
            return selective_scan_2d(x, dt, A, B, C, directions=("column", "row"))

    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    moving = {0: batch, 1: height, 2: width}
    names = ["x", "dt", "A", "B", "C"]

    def example(*sizes):
        args = scan_2d_inputs(*sizes, 3, 2, directions=2).kwargs()
        return tuple(args[name] for name in names)

    shapes = {name: None if name == "A" else moving for name in names}
    program = torch.export.export(Model(), example(2, 4, 5), dynamic_shapes=shapes, strict=strict)
    assert any(node.target is selective_scan_2d_op for node in program.graph.nodes)
    other = example(3, 7, 2)
    assert torch.equal(program.module()(*other), Model()(*other))


def test_meta_and_fake_tensors_give_shapes():
    args = {name: t.to("meta") for name, t in scan_2d_inputs(2, 3, 4, 5, 2, dtype=torch.bfloat16).kwargs().items()}
    y = selective_scan_2d(**args)
    assert y.device.type == "meta" and y.shape == (2, 3, 4, 5) and y.dtype == torch.bfloat16
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in scan_2d_inputs(2, 3, 4, 5, 2).kwargs().values()]
        grads = torch.autograd.grad(selective_scan_2d(*fakes).sum(), fakes)
    assert [g.shape for g in grads] == [t.shape for t in fakes]


def test_errors_are_the_same_when_compiled():
    """A wrong shape is the documented ValueError, not a message of the compiler."""
    args = scan_2d_inputs(1, 3, 4, 5, 2).kwargs()
    args["D"] = args["D"][:2]
    compiled = torch.compile(selective_scan_2d, backend="eager")
    with pytest.raises(ValueError, match=r"^selective_scan_2d: D must be \(K, D\) = \(4, 5\), got \(2, 5\)"):
        compiled(**args)


@pytest.mark.gpu
def test_export_on_the_cpu_runs_triton_on_a_gpu():
    """The choice of the implementation is made when the operator runs."""
    args = scan_2d_inputs(1, 4, 5, 3, 2).kwargs()

    class Model(torch.nn.Module):
        def forward(self, args):
            return selective_scan_2d(**args)

    program = torch.export.export(Model(), (args,))
    on_gpu = {name: t.cuda() for name, t in args.items()}
    assert torch.equal(program.module()(on_gpu), selective_scan_2d(**on_gpu, impl="triton"))
