"""The norms of ssm_kernels.compat: published numbers of the gated one, and what the fused sums keep and return."""

from pathlib import Path

import pytest
import torch
from ssm_kernels.compat import gated_norms, norms
from ssm_kernels.compat.norms import layer_norm_fn, rms_norm_fn
from torch.nn import functional as F

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(("name", "size", "first"), [("grouped", 12, False), ("norm_first", None, True)])
def test_gated_norm_equals_the_published_one(name, size, first):
    from safetensors.torch import load_file

    numbers = load_file(DATA / f"mamba_gated_rmsnorm_{name}.safetensors")
    leaves = {key: numbers[f"input.{key}"].double().requires_grad_() for key in ("x", "weight", "z")}
    x, weight, z = leaves.values()
    y = gated_norms.rmsnorm_fn(x, weight, None, z, 1e-5, size, first)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-13)
    y.backward(numbers["grad.output.y"].double())
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, numbers[f"grad.input.{key}"], rtol=0, atol=1e-11)
    module = gated_norms.RMSNorm(24, eps=1e-5, group_size=size, norm_before_gate=first, dtype=torch.float64)
    assert list(module.state_dict()) == ["weight"]
    module.load_state_dict({"weight": weight.detach()})
    torch.testing.assert_close(module(x), numbers["output.no_gate"], rtol=0, atol=1e-13)
    torch.testing.assert_close(gated_norms.rms_norm_ref(x, weight, None, z, 1e-5, size, first), y)


def test_gated_layer_norm_is_group_norm():
    x, z = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    module = gated_norms.LayerNorm(8, group_size=4)
    with torch.no_grad():
        module.weight.uniform_(0.5, 2)
        module.bias.uniform_()
    plain = F.group_norm(x.flatten(0, 1), 2, module.weight, module.bias).view(x.shape)
    torch.testing.assert_close(module(x, z), plain * F.silu(z))


def test_sum_and_norm_of_a_block():
    """The call of every Mamba block: half-precision branch, float32 residual, both results."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 8).bfloat16().requires_grad_(), torch.randn(2, 3, 8).requires_grad_()
    weight, bias = torch.rand(8), torch.rand(8)
    y, total = layer_norm_fn(x, weight, bias, residual, prenorm=True, residual_in_fp32=True, eps=1e-5)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(total, x.float() + residual)
    torch.testing.assert_close(y, F.layer_norm(x.float() + residual, (8,), weight, bias).bfloat16())
    (y.float().sum() + total.sum()).backward()
    assert (x.grad.dtype, residual.grad.dtype) == (torch.bfloat16, torch.float32)
    y, total = rms_norm_fn(x, weight, None, prenorm=True, residual_in_fp32=True, eps=1e-5)
    assert total.dtype == torch.float32  # the first block has no residual
    torch.testing.assert_close(y, F.rms_norm(x.float(), (8,), weight, 1e-5).bfloat16())
    assert rms_norm_fn(x, weight, None, prenorm=True)[1].dtype == torch.bfloat16


def test_plain_calls_are_one_operator(monkeypatch):
    """What a block asks for is our operator; a sum in a narrower dtype than x, or more parts, is not."""
    called = []

    def counted(name, norm):
        return lambda *args, **options: called.append(name) or norm(*args, **options)

    for name in ("layer_norm", "rms_norm"):
        monkeypatch.setattr(norms, name, counted(name, getattr(norms, name)))
    x, weight = torch.randn(2, 8), torch.rand(8)
    layer_norm_fn(x, weight, None, x, prenorm=True)
    rms_norm_fn(x.bfloat16(), weight, None, x, residual_in_fp32=True)
    norms.RMSNorm(8)(x)
    assert called == ["layer_norm", "rms_norm", "rms_norm"]
    _, total = layer_norm_fn(x, weight, None, x.bfloat16(), prenorm=True)
    assert total.dtype == torch.bfloat16
    layer_norm_fn(x, weight, None, weight1=weight)
    assert len(called) == 3


def test_module_has_the_published_form():
    module = norms.RMSNorm(8, eps=1e-5)
    assert (list(module.state_dict()), module.bias, module.eps) == (["weight"], None, 1e-5)
    x = torch.randn(4, 8)
    torch.testing.assert_close(module(x), F.rms_norm(x, (8,), eps=1e-5))
    y, total = module(x, residual=x, prenorm=True)
    torch.testing.assert_close(total, 2 * x)
    torch.testing.assert_close(y, F.rms_norm(2 * x, (8,), eps=1e-5))


def test_two_branches_and_two_norms():
    x, x1, weight = torch.randn(3, 8), torch.randn(3, 8), torch.rand(8)
    y, y1, total = layer_norm_fn(x, weight, None, x1=x1, weight1=2 * weight, bias1=weight, prenorm=True)
    torch.testing.assert_close(total, x + x1)
    torch.testing.assert_close(y1, 2 * y + weight)


def test_rows_are_scaled_and_elements_dropped():
    torch.manual_seed(0)
    x, scale, weight = torch.rand(50, 40) + 1, torch.tensor([0.0, 2.0]).repeat(25), torch.ones(40)
    _, total, mask, none = layer_norm_fn(
        x, weight, None, dropout_p=0.25, rowscale=scale, prenorm=True, return_dropout_mask=True
    )
    torch.testing.assert_close(total, x * scale[:, None] * mask / 0.75)
    assert none is None
    assert 0.7 < mask.float().mean() < 0.8
    module = norms.RMSNorm(40, dropout_p=0.5).eval()
    torch.testing.assert_close(module(x), F.rms_norm(x, (40,), eps=1e-5))


def test_norm_and_projection():
    x, weight, linear = torch.randn(3, 8), torch.rand(8), torch.randn(5, 8)
    y, total = norms.layer_norm_linear_fn(x, weight, None, linear, None, residual=x, prenorm=True, is_rms_norm=True)
    torch.testing.assert_close(y, F.rms_norm(2 * x, (8,), weight, 1e-6) @ linear.T)
    torch.testing.assert_close(total, 2 * x)
    assert norms.layer_norm_linear_fn(x, weight, None, linear, None).shape == (3, 5)


def test_wrong_arguments_are_named():
    x, weight = torch.rand(2, 6), torch.ones(6)
    with pytest.raises(ValueError, match=r"layer_norm_fn: residual must be the shape of x = \(2, 6\)"):
        layer_norm_fn(x, weight, None, residual=x[:1])
    with pytest.raises(ValueError, match="layer_norm_fn: rowscale must be None with x1"):
        layer_norm_fn(x, weight, None, x1=x, rowscale=x[:, 0])
    with pytest.raises(ValueError, match="rmsnorm_fn: group_size must be a divisor of D=6, got 4"):
        gated_norms.rmsnorm_fn(x, weight, None, group_size=4)
    with pytest.raises(ValueError, match="layernorm_fn: z must be the shape of x"):
        gated_norms.layernorm_fn(x, weight, None, z=x[:1])
