"""`layer_norm` and `rms_norm` and their modules: definition, PyTorch's form, arguments, exchange for PyTorch's."""

import copy

import pytest
import torch
from ssm_kernels import layer_norm, rms_norm
from ssm_kernels.nn import LayerNorm, RMSNorm
from ssm_kernels.testing import error_ratio
from torch import nn
from torch.nn import functional as F

NORMS = pytest.mark.parametrize("norm", [layer_norm, rms_norm], ids=["layer_norm", "rms_norm"])


def make(*shape, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    x, residual = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(shape[-1]).to(dtype).requires_grad_() for _ in range(2))
    return x, weight, bias, residual


@NORMS
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_gradients_are_right(norm, impl):
    """Against finite differences, of the sum too; the second derivative with PyTorch's operators."""
    x, weight, bias, residual = make(3, 2, 5, dtype=torch.float64)

    def call(x, weight, bias, residual):
        return norm(x, weight, bias, residual=residual, impl=impl)

    assert torch.autograd.gradcheck(call, (x, weight, bias, residual))
    assert torch.autograd.gradgradcheck(lambda x: norm(x, weight, impl=impl), (x,))


def test_definition_is_pytorchs():
    """The definition and PyTorch's functions agree, with and without parameters."""
    x, weight, bias, _ = make(7, 12)
    assert error_ratio(layer_norm(x, weight, bias, impl="reference"), F.layer_norm(x, (12,), weight, bias)) < 1e-6
    assert error_ratio(rms_norm(x, weight, impl="reference"), F.rms_norm(x, (12,), weight, 1e-5)) < 1e-6
    assert error_ratio(layer_norm(x, None, impl="reference"), F.layer_norm(x, (12,))) < 1e-6
    assert error_ratio(rms_norm(x, None, bias, impl="torch"), F.rms_norm(x, (12,), eps=1e-5) + bias) < 1e-6


@NORMS
def test_dtypes_of_the_results(norm):
    """y is in `dtype`, else in that of x; the sum in what both promote to; half precision is summed in float32."""
    x, weight, bias, residual = make(40, 96)
    truth = norm(x.double(), weight.double(), bias.double(), impl="reference")
    for impl in ("reference", "torch"):
        y = norm(x, weight, bias, dtype=torch.bfloat16, impl=impl)
        assert y.dtype == torch.bfloat16 and error_ratio(y, truth) < 2.0**-8
        y, total = norm(x.half(), weight, bias, residual=residual.bfloat16(), impl=impl)
        assert (y.dtype, total.dtype) == (torch.float16, torch.float32)
        far = norm(x.half() * 500, weight, bias, impl=impl)  # squares are beyond float16
        assert error_ratio(far, truth) < 2.0**-9


def test_autocast_has_no_say():
    """Inside of autocast the function gives what it gives outside."""
    x, weight, bias, residual = make(6, 8)
    expected = layer_norm(x.bfloat16(), weight, bias, residual=residual.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = layer_norm(x.bfloat16(), weight, bias, residual=residual.bfloat16())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LayerNorm(12), nn.LayerNorm(12)),
        (LayerNorm((3, 4), bias=False), nn.LayerNorm((3, 4), bias=False)),
        (LayerNorm(12, eps=1e-3, elementwise_affine=False), nn.LayerNorm(12, eps=1e-3, elementwise_affine=False)),
        (RMSNorm(12), nn.RMSNorm(12)),
        (RMSNorm((3, 4), eps=1e-6), nn.RMSNorm((3, 4), eps=1e-6)),
    ],
    ids=["layer", "two axes", "no parameters", "rms", "rms of two axes"],
)
def test_modules_are_pytorchs_on_a_cpu(ours, theirs):
    """Same state dict; bit-equal results and gradients."""
    theirs = copy.deepcopy(theirs)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(1)
    x = torch.randn(5, *ours.normalized_shape, requires_grad=True)
    against = torch.randn_like(x)
    results = [module(x) for module in (ours, theirs)]
    assert torch.equal(*results)
    leaves = [[x, *module.parameters()] for module in (ours, theirs)]
    grads = [torch.autograd.grad(y, leaf, against) for y, leaf in zip(results, leaves, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    y, total = ours(x, against)
    assert torch.equal(total, x + against) and torch.equal(y, theirs(x + against))


def test_modules_under_autocast():
    """The result is in autocast's dtype, where PyTorch's is float32; the residual stream stays as it is."""
    for module in (LayerNorm(8), RMSNorm(8)):
        x = torch.randn(3, 8, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            y, total = module(x, torch.randn(3, 8))
            alone = module(x.float())
        assert (y.dtype, total.dtype, alone.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
        assert module(x.double()).dtype == torch.float64


def test_errors_name_the_argument():
    x, weight, bias, residual = make(4, 6)
    cases = {
        "weight must be (C,) = (6,), got (4,)": lambda: layer_norm(x, weight[:4]),
        "residual must be the shape of x": lambda: rms_norm(x, weight, residual=residual[:2]),
        "x must be float32, bfloat16": lambda: layer_norm(x.int(), weight),
        "with C >= 1": lambda: layer_norm(x[:, :0], None),
        "dtype must be": lambda: layer_norm(x, weight, dtype=torch.int32),
        "bias must be float32, bfloat16": lambda: rms_norm(x, weight, bias.bool()),
        "impl must be one of": lambda: rms_norm(x, weight, impl="cuda"),
        "x must be (..., 2, 3)": lambda: LayerNorm((2, 3))(x),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_exported_graph_is_the_norm_alone():
    """A module exports as PyTorch's own layer norm: nothing of this package is in the graph, under autocast neither."""
    program = torch.export.export(nn.Sequential(LayerNorm(6), nn.Linear(6, 2)), (torch.randn(3, 6),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.layer_norm.default", "aten.linear.default"]
