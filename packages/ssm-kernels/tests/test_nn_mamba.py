"""nn.Mamba and nn.BidirectionalMamba: numbers of the published implementations, initial values, what a step sees."""

import math
from pathlib import Path

import pytest
import torch
from ssm_kernels.nn import BidirectionalMamba, Mamba

DATA = Path(__file__).parent / "data"
MODULES = {"mamba_v1_block": Mamba, "vim_mixer_bimamba_v2": BidirectionalMamba}


def golden(name):
    from safetensors.torch import load_file

    return load_file(DATA / f"{name}.safetensors")


def state(numbers):
    return {key.removeprefix("state."): x.double() for key, x in numbers.items() if key.startswith("state.")}


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_published_implementation(name, impl):
    """Keys, output and all gradients, in float64 on the numbers of the reference."""
    numbers = golden(name)
    module = MODULES[name](32, impl=impl).double()
    assert module.load_state_dict(state(numbers)) == torch.nn.modules.module._IncompatibleKeys([], [])
    x = numbers["input.x"].double().requires_grad_()
    y = module(x)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-12)
    y.backward(numbers["grad.output.y"].double())
    torch.testing.assert_close(x.grad, numbers["grad.input.x"], rtol=0, atol=1e-11)
    for key, parameter in module.named_parameters():  # stored as float32
        expected = numbers[f"grad.state.{key}"].double()
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-7 * expected.abs().max().item())


@pytest.mark.parametrize("name", MODULES)
def test_float32_stays_within_rounding(name):
    numbers = golden(name)
    module = MODULES[name](32)
    module.load_state_dict({key: x.float() for key, x in state(numbers).items()})
    torch.testing.assert_close(module(numbers["input.x"]).double(), numbers["output.y"], rtol=0, atol=5e-6)


def test_sum_of_the_directions_is_twice_their_average():
    numbers = golden("vim_mixer_bimamba_v2")
    module = BidirectionalMamba(32, average=False).double()
    module.load_state_dict(state(numbers))
    y = module(numbers["input.x"].double())
    torch.testing.assert_close(y, numbers["output.y_sum_not_divided"], rtol=0, atol=1e-12)


def gradient_reach(module, length, step):
    """Return which steps of the input the result at `step` depends on."""
    x = torch.randn(1, length, module.d_model, generator=torch.Generator().manual_seed(0), requires_grad=True)
    module(x)[0, step].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(1) > 0


def test_mamba_sees_the_past_only():
    seen = gradient_reach(Mamba(8), 9, 4)
    assert seen.tolist() == [True] * 5 + [False] * 4


def test_bidirectional_sees_everything():
    assert gradient_reach(BidirectionalMamba(8), 9, 4).all()


def test_bidirectional_is_symmetric():
    """With the parameters of the two directions exchanged, the flipped sequence gives the flipped result."""
    module = BidirectionalMamba(8)
    values = module.state_dict()
    swapped = BidirectionalMamba(8)
    pairs = {"conv1d": "conv1d_b", "x_proj": "x_proj_b", "dt_proj": "dt_proj_b", "A_log": "A_b_log", "D": "D_b"}
    pairs |= {new: old for old, new in pairs.items()}

    def other(key):
        head, dot, tail = key.partition(".")
        return pairs.get(head, head) + dot + tail

    swapped.load_state_dict({other(key): x for key, x in values.items()})
    x = torch.randn(2, 7, 8)
    torch.testing.assert_close(swapped(x.flip(1)).flip(1), module(x))


@pytest.mark.parametrize("module_class", MODULES.values())
def test_shapes_of_the_parameters(module_class):
    """Sizes follow d_model, expand, d_state and d_conv; the rank is d_model / 16, rounded up, or what is asked for."""
    module = module_class(40, d_state=5, d_conv=3, expand=3, bias=True)
    shapes = {key: tuple(x.shape) for key, x in module.state_dict().items() if "_b" not in key}
    assert shapes == {
        "A_log": (120, 5),
        "D": (120,),
        "in_proj.weight": (240, 40),
        "in_proj.bias": (240,),
        "conv1d.weight": (120, 1, 3),
        "conv1d.bias": (120,),
        "x_proj.weight": (3 + 2 * 5, 120),
        "dt_proj.weight": (120, 3),
        "dt_proj.bias": (120,),
        "out_proj.weight": (40, 120),
        "out_proj.bias": (40,),
    }
    assert module(torch.randn(1, 4, 40)).shape == (1, 4, 40)
    assert module_class(40, dt_rank=7).dt_proj.in_features == 7
    assert "conv1d.bias" not in module_class(40, conv_bias=False).state_dict()


def test_initial_values_are_those_of_the_paper():
    """First steps log-uniform in [dt_min, dt_max], A = -(1..N), D = 1, step weights within +-rank^-0.5."""
    torch.manual_seed(0)
    module = Mamba(128, dt_min=1e-3, dt_max=1e-1)
    step = torch.nn.functional.softplus(module.dt_proj.bias.detach())
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 1e-1 * 1.001
    middle = step.log().mean().item()
    assert middle == pytest.approx(math.log(1e-2), abs=0.3)
    one_step = Mamba(16, dt_min=0.5, dt_max=0.5).dt_proj.bias
    assert torch.allclose(torch.nn.functional.softplus(one_step), torch.tensor(0.5))
    assert torch.allclose(module.A_log.exp(), torch.arange(1.0, 17.0).expand(256, 16))
    assert (module.D == 1).all()
    assert module.dt_proj.weight.abs().max() <= 8**-0.5


def test_official_initialisation_of_vim_differs_backward_only():
    """Vim leaves the backward steps at softplus(0); "fixed" starts both directions alike."""
    torch.manual_seed(0)
    official, fixed = BidirectionalMamba(32, init="official"), BidirectionalMamba(32)
    assert (official.dt_proj_b.bias == 0).all()
    assert (torch.nn.functional.softplus(official.dt_proj.bias) < 0.11).all()
    for layer in (fixed.dt_proj, fixed.dt_proj_b):
        assert (torch.nn.functional.softplus(layer.bias) < 0.11).all()


@pytest.mark.parametrize("module_class", MODULES.values())
def test_autocast_keeps_the_recurrence_in_float32(module_class):
    """Under bfloat16 autocast the result stays close to float32, and parameters get float32 gradients."""
    torch.manual_seed(0)
    module = module_class(32)
    x = torch.randn(2, 50, 32)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.02 * expected.norm()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("module_class", MODULES.values())
def test_compiles_without_a_break(module_class):
    module = module_class(16)
    x = torch.randn(2, 5, 16)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("module_class", MODULES.values())
def test_refuses_another_shape(module_class):
    with pytest.raises(ValueError, match=rf"{module_class.__name__}: x must be \(B, L, 16\), got \(2, 3, 8\)"):
        module_class(16)(torch.zeros(2, 3, 8))


def test_refuses_an_unknown_initialisation():
    with pytest.raises(ValueError, match="init must be 'fixed' or 'official', got 'quirk'"):
        BidirectionalMamba(16, init="quirk")
