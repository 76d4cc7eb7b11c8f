"""Plain calls skip PyTorch's dispatcher; whoever looks on sees the registered operator, with the same gradients."""

import pytest
import torch
import triton
from ssm_kernels import depthwise_conv1d
from ssm_kernels.ops import eager
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"  # where kernels run
OPERATOR = torch.ops.ssm_kernels.depthwise_conv1d.default


def inputs(**options):
    torch.manual_seed(0)
    shapes = ((2, 7, 6), (6, 3), (6,))
    return [torch.randn(*shape, dtype=torch.float64, **options) for shape in shapes]


class Seen(TorchDispatchMode):
    """Collect the operators that pass by."""

    def __init__(self):
        super().__init__()
        self.operators = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.add(func)
        return func(*args, **(kwargs or {}))


def test_gradients_are_those_of_the_operator():
    leaves = inputs(requires_grad=True)
    found = depthwise_conv1d(*leaves, activation="silu")
    wanted = OPERATOR(*leaves, None, None, "causal", False, "silu", "auto")
    assert "Direct" in type(found.grad_fn).__name__ and "Direct" not in type(wanted.grad_fn).__name__
    assert torch.equal(found, wanted)
    cotangent = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (found, wanted)), strict=True):
        assert torch.equal(a, b)


def test_without_a_gradient_nothing_is_recorded():
    assert depthwise_conv1d(*inputs()).grad_fn is None
    with torch.no_grad():
        assert depthwise_conv1d(*inputs(requires_grad=True)).grad_fn is None


def test_a_second_derivative_is_not_zero_in_silence():
    """The operator has none, and PyTorch says so; without the operator nobody would."""
    x, weight, bias = inputs(requires_grad=True)
    (grad,) = torch.autograd.grad(depthwise_conv1d(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        grad.sum().backward()


def test_modes_see_the_operator_and_its_backward():
    with Seen() as seen:
        depthwise_conv1d(*inputs(requires_grad=True)).sum().backward()
    assert {OPERATOR, torch.ops.ssm_kernels.depthwise_conv1d_backward.default} <= seen.operators
    with FlopCounterMode(display=False, custom_mapping={OPERATOR.overloadpacket: lambda *_, **__: 5}) as counter:
        depthwise_conv1d(*inputs())
    assert counter.get_total_flops() == 5


def test_fake_and_meta_tensors_keep_their_kind():
    with FakeTensorMode():
        fake = inputs()
    outside = depthwise_conv1d(*fake)  # the mode is left; the tensors say what they are
    assert type(outside) is type(fake[0]) and outside.shape == (2, 7, 6)
    assert depthwise_conv1d(*inputs(device="meta")).is_meta


def test_compiled_graphs_hold_the_operator():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compile(depthwise_conv1d, backend=keep, fullgraph=True)(*inputs())
    assert any(node.target is OPERATOR for node in graphs[0].graph.nodes)


def test_subclasses_go_through_the_dispatcher():
    class Tagged(torch.Tensor):
        pass

    x = torch.ones(3)
    called = []
    call = eager.direct(lambda *_: called.append("operator"), lambda *_: called.append("implementation"))
    with torch.no_grad():
        call(x)
        call(x.as_subclass(Tagged))
    call(x)  # with gradients on: somebody may want that of the gradient
    assert called == ["implementation", "operator", "operator"]


def test_negated_views_are_what_they_say():
    """Their sign is a flag that only the dispatcher turns into numbers: a kernel reads the memory."""
    x, weight, bias = (part.float() for part in inputs(device=DEVICE))
    view = torch.complex(x, -x).conj().imag  # x, negated in memory
    assert view.is_neg()
    found = depthwise_conv1d(view, weight, bias, impl="triton")
    assert torch.equal(found, depthwise_conv1d(x, weight, bias, impl="triton"))


def test_gradients_of_many_cotangents_at_once():
    """As `torch.autograd.functional.jacobian(..., vectorize=True)` asks for them."""
    leaves = inputs(requires_grad=True)
    found = depthwise_conv1d(*leaves)
    against = torch.randn(3, *found.shape, dtype=found.dtype)
    batched = torch.autograd.grad(found, leaves, against, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(found, leaves, one, retain_graph=True) for one in against]
    for a, b in zip(batched, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b))
