"""nn.SS2D: the published block's parameters, outputs and gradients, and what a user can do with the module."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from ssm_kernels.nn.ss2d import SS2D
from ssm_kernels.testing import error_ratio
from torch._dynamo.testing import CompileCounterWithBackend

DATA = Path(__file__).parent / "data"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GOLDEN = ["ss2d-n1", "ss2d-n4", "ss2d-vmamba"]


def golden(name, dtype, **options):
    """Return the module with the published weights, the tensors of the case, and the tolerances for float32."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = {key: json.loads(file.metadata()[key]) for key in ("config", "suggested_atol_float32")}
    config = metadata["config"]
    module = SS2D(
        config["d_model"],
        config["d_state"],
        config["ssm_ratio"],
        conv_bias=config["conv_bias"],
        activation=config["act"],
        init=config["initialize"],
        **options,
    )
    module.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("state.")})
    if config["channel_first"]:
        for key in ("input.x", "input.cotangent", "output.y", "grad.input"):
            tensors[key] = tensors[key].permute(0, 2, 3, 1)
    return module.to(dtype), tensors, metadata["suggested_atol_float32"]


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", GOLDEN)
def test_published_outputs_and_gradients(name, impl):
    """Float64, against the published code in float64; parameter gradients were stored in float32."""
    module, case, _ = golden(name, torch.float64, impl=impl)
    x = case["input.x"].double().requires_grad_()
    y = module(x)
    torch.testing.assert_close(y, case["output.y"], rtol=0, atol=1e-10)
    (y * case["input.cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, case["grad.input"], rtol=0, atol=1e-10)
    for key, parameter in module.named_parameters():
        assert error_ratio(parameter.grad, case[f"grad.state.{key}"]) < 1e-7, key


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", GOLDEN)
def test_published_outputs_in_float32(name, device):
    """Within the tolerances that came with the cases, ten times the error of the published code in float32."""
    module, case, tolerance = golden(name, torch.float32)
    x = case["input.x"].to(device).requires_grad_()
    y = module.to(device)(x)
    torch.testing.assert_close(y.double().cpu(), case["output.y"], rtol=0, atol=tolerance["output.y"])
    (y * case["input.cotangent"].to(device)).sum().backward()
    torch.testing.assert_close(x.grad.double().cpu(), case["grad.input"], rtol=0, atol=tolerance["grad.input"])


@pytest.mark.parametrize("channels, rank", [(48, 3), (54, 4), (60, 4), (150, 10)])
def test_number_of_parameters(channels, rank):
    """2 C^2 + C (8 R + 32) with the published ratio and state: 7,296 at C = 48."""
    module = SS2D(channels)
    assert module.dt_rank == rank
    assert sum(p.numel() for p in module.parameters()) == 2 * channels**2 + channels * (8 * rank + 32)


def test_published_names_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in SS2D(20, 3, 2.0, 5).state_dict().items()}
    assert shapes == {
        "x_proj_weight": (4, 11, 40),
        "dt_projs_weight": (4, 40, 5),
        "dt_projs_bias": (4, 40),
        "A_logs": (160, 3),
        "Ds": (160,),
        "in_proj.weight": (40, 20),
        "conv2d.weight": (40, 1, 3, 3),
        "conv2d.bias": (40,),
        "out_norm.weight": (40,),
        "out_norm.bias": (40,),
        "out_proj.weight": (20, 40),
    }


def test_initial_values():
    """v2: A = -1, D = 1, dt in [0, 0.1). v0: A = -1 .. -N and softplus(dt_bias) in [0.001, 0.1]."""
    torch.manual_seed(0)
    v2, v0 = SS2D(64, 4), SS2D(64, 4, init="v0")
    assert (v2.A_logs == 0).all() and (v2.Ds == 1).all() and (v0.Ds == 1).all()
    for values in (v2.dt_projs_weight, v2.dt_projs_bias):
        assert values.min() >= 0 and values.max() < 0.1 and 0.04 < values.mean() < 0.06
    torch.testing.assert_close(v0.A_logs.exp(), torch.arange(1.0, 5).expand(256, 4))
    step = torch.nn.functional.softplus(v0.dt_projs_bias)
    assert step.min() > 0.99e-3 and step.max() < 0.101 and 0.008 < step.log().mean().exp() < 0.012
    assert v0.dt_projs_weight.abs().max() <= 0.5 and v0.dt_projs_weight.std() > 0.25
    bound = 1 / 8
    assert v2.x_proj_weight.abs().max() <= bound and v2.x_proj_weight.std() > 0.5 * bound


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 9), (1, 8, 1), (2, 5, 7)])
def test_any_size_and_layout(size):
    """Single pixels, rows and columns; an input that is a permuted channels-first tensor."""
    torch.manual_seed(0)
    module, reference = SS2D(6, 2).double(), SS2D(6, 2, impl="reference").double()
    reference.load_state_dict(module.state_dict())
    x = torch.randn(*size, 6, dtype=torch.float64)
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert module(x).shape == x.shape
    torch.testing.assert_close(module(channels_first), reference(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_half_precision(dtype, device):
    """Autocast: finite gradients in float32 for float32 weights. A module in half precision: the same output nearly."""
    torch.manual_seed(0)
    module = SS2D(18, 2).to(device)
    x = torch.randn(2, 6, 9, 18, device=device, requires_grad=True)
    exact = module(x)
    with torch.autocast(torch.device(device).type, dtype=dtype):
        mixed = module(x)
    assert mixed.dtype == dtype and error_ratio(mixed, exact) < 8 * torch.finfo(dtype).eps
    mixed.float().square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name
    half = module.to(dtype)(x.detach().to(dtype))
    assert half.dtype == dtype and error_ratio(half, exact) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("options", [{}, {"conv_bias": False, "activation": "silu"}])
def test_padded_channels_change_nothing(options):
    """A GPU computes with channels in multiples of 8: output and every gradient are those without the padding."""
    torch.manual_seed(0)
    module = SS2D(10, 2, **options).double()
    x = torch.randn(2, 4, 5, 10, dtype=torch.float64, requires_grad=True)
    leaves = (x, *module.parameters())
    wanted, found = module(x), module._mix(x, 6)
    cotangent = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent)
    )


@pytest.mark.parametrize("rank, states", [(1, 1), (3, 2)])
def test_the_product_of_both_step_weights_is_the_same_map(rank, states):
    """What a GPU computes for narrow mixers: outputs and gradients, of the input and of both weights, in float64."""
    torch.manual_seed(0)
    module = SS2D(10, states, dt_rank=rank).double()
    u = torch.randn(2, 4, 5, 10, dtype=torch.float64, requires_grad=True)
    leaves = (u, module.x_proj_weight, module.dt_projs_weight)
    wanted = module._project(u)
    found = module._project_at_once(*leaves)
    cotangents = [torch.randn_like(y) for y in wanted]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, cotangents), torch.autograd.grad(wanted, leaves, cotangents)
    )


def test_compiles_once_for_every_size():
    """fullgraph with batch, height and width changing: nothing is compiled after the first, all equal to eager."""
    counter = CompileCounterWithBackend("aot_eager")
    module = SS2D(10)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for size in [(3, 5, 6), (2, 9, 7), (5, 4, 8)]:
        x = torch.randn(*size, 10)
        torch.testing.assert_close(compiled(x), module(x))
        counts.append(counter.frame_count)
    assert counts[1:] == counts[:1] * 2


def test_exports_with_dynamic_sizes():
    module = SS2D(10).eval()
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    moving = {"x": {0: batch, 1: height, 2: width}}
    program = torch.export.export(module, (torch.randn(3, 5, 6, 10),), dynamic_shapes=moving)
    x = torch.randn(2, 9, 4, 10)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"d_model": 4, "d_state": 0}, "d_state must be at least 1, got 0"),
        ({"d_model": 4, "ssm_ratio": 0.1}, r"ssm_ratio \* d_model must be at least 1, got 0"),
        ({"d_model": 4, "dt_rank": 0}, "dt_rank must be at least 1, got 0"),
        ({"d_model": 4, "activation": "relu"}, "activation must be one of gelu, silu, got 'relu'"),
        ({"d_model": 4, "init": "v1"}, "init must be one of v2, v0, got 'v1'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=f"^SS2D: {message}; "):
        SS2D(**options)


def test_bad_input_is_named():
    module = SS2D(4)
    with pytest.raises(ValueError, match=r"^SS2D: x must be of shape \(B, H, W, 4\), got \(2, 4, 8, 8\); "):
        module(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^SS2D: x must be of shape \(B, H, W, 4\), got \(8, 8, 4\); "):
        module(torch.zeros(8, 8, 4))
