"""nn.Mamba2 and nn.BidirectionalMamba2: numbers of the published implementation, steps, first values, errors."""

import json
from pathlib import Path

import pytest
import torch
from ssm_kernels.nn import BidirectionalMamba2, GatedRMSNorm, Mamba2
from torch.nn import functional as F

DATA = Path(__file__).parent / "data"
BOTH = [Mamba2, BidirectionalMamba2]
SMALL = {"d_state": 8, "headdim": 8, "ngroups": 2}


def golden(name):
    from safetensors.torch import load_file

    return load_file(DATA / f"{name}.safetensors")


def published():
    """Return mamba-ssm's module of the file, and the file."""
    numbers = golden("mamba_v2_compat")
    module = Mamba2(32, **SMALL).double()
    state = {key.removeprefix("state."): x.double() for key, x in numbers.items() if key.startswith("state.")}
    assert module.load_state_dict(state) == torch.nn.modules.module._IncompatibleKeys([], [])
    return module, {key: x.double() for key, x in numbers.items()}


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_equals_the_published_implementation(impl):
    """Keys, output, states and the gradient of the input, in float64; 20 steps are no whole number of chunks."""
    module, numbers = published()
    module.impl = impl
    x = numbers["input.x"].requires_grad_()
    y, (conv, scanned) = module(x, return_state=True)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-12)
    # those below are kept as float32; the file's convolution state has one step more than is needed
    torch.testing.assert_close(conv, numbers["output.conv_state"][..., 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(scanned, numbers["output.ssm_state"], rtol=0, atol=1e-6)
    y.backward(numbers["grad.output.y"])
    torch.testing.assert_close(x.grad, numbers["grad.input.x"], rtol=0, atol=1e-6)


def test_steps_are_those_of_the_published_implementation():
    module, numbers = published()
    state = module(numbers["input.x"], return_state=True)[1]
    for t in range(3):
        y, state = module.step(numbers["input.step_x"][:, t], state)
        torch.testing.assert_close(y[:, None], numbers[f"output.step{t}.y"], rtol=0, atol=1e-6)
    torch.testing.assert_close(state[0], numbers["output.step2.conv_state"][..., 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(state[1], numbers["output.step2.ssm_state"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rmsnorm": False, "D_has_hdim": True, "dt_limit": (0.05, 0.9)}])
def test_steps_and_parts_are_the_whole(options):
    """Token by token from zeros, and in two parts, the first shorter than the convolution."""
    module = Mamba2(16, **SMALL, **options).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, last = module(x, return_state=True)
    state, steps = module.initial_state(2), []
    for token in x.unbind(1):
        y, state = module.step(token, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    first, middle = module(x[:, :2], return_state=True)
    second, end = module(x[:, 2:], middle, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    for a, b, c in zip(last, state, end, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)


def test_gated_norm_is_the_published_one():
    numbers = golden("mamba_gated_rmsnorm_grouped")
    norm = GatedRMSNorm(24, groups=2).double()
    norm.load_state_dict({"weight": numbers["input.weight"].double()})
    x, z = (numbers[f"input.{name}"].double().requires_grad_() for name in "xz")
    y = norm(x, z)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-12)
    y.backward(numbers["grad.output.y"].double())
    for name, leaf in (("x", x), ("z", z), ("weight", norm.weight)):
        torch.testing.assert_close(leaf.grad, numbers[f"grad.input.{name}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("module_class", BOTH)
def test_shapes_of_the_parameters(module_class):
    module = module_class(24, d_state=5, d_conv=3, expand=3, headdim=12, ngroups=2, bias=True)
    heads, channels = 6, 72 + 2 * 2 * 5
    both = module_class is BidirectionalMamba2
    shapes = {key: tuple(x.shape) for key, x in module.state_dict().items() if "_b" not in key or key == "dt_bias"}
    assert shapes == {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "in_proj.weight": (72 + channels + heads * (1 + both), 24),
        "in_proj.bias": (72 + channels + heads * (1 + both),),
        "conv1d.weight": (channels, 1, 3),
        "conv1d.bias": (channels,),
        "norm.weight": (72,),
        "out_proj.weight": (24, 72),
        "out_proj.bias": (24,),
    }
    assert module(torch.randn(1, 4, 24)).shape == (1, 4, 24)
    assert "conv1d.bias" not in module_class(16, **SMALL, conv_bias=False).state_dict()


@pytest.mark.parametrize("module_class", BOTH)
def test_initial_values_are_those_of_the_paper(module_class):
    """First steps log-uniform in [dt_min, dt_max], rates uniform in A_init_range, D = 1; the same for both ends."""
    torch.manual_seed(0)
    module = module_class(1024, d_state=8, headdim=8)
    for suffix in ("", "_b") if module_class is BidirectionalMamba2 else ("",):
        step = F.softplus(getattr(module, f"dt_bias{suffix}").detach())
        assert step.min() >= 1e-3 * 0.999 and step.max() <= 1e-1 * 1.001
        assert step.log().mean().item() == pytest.approx(-4.6, abs=0.3)
        rate = getattr(module, f"A{suffix}_log").detach().exp()
        assert 1 <= rate.min() < 2 and 15 < rate.max() <= 16
        assert rate.mean().item() == pytest.approx(8.5, abs=1)
        assert (getattr(module, f"D{suffix}") == 1).all()


def reach(module, length, step):
    """Return which steps of the input the result at `step` depends on."""
    x = torch.randn(1, length, module.d_model, generator=torch.Generator().manual_seed(0), requires_grad=True)
    module(x)[0, step].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(1) > 0


def test_mamba2_sees_the_past_only_and_the_other_everything():
    assert reach(Mamba2(16, **SMALL), 9, 4).tolist() == [True] * 5 + [False] * 4
    assert reach(BidirectionalMamba2(16, **SMALL), 9, 4).all()


def test_bidirectional_is_symmetric():
    """With the parameters of the two directions exchanged, the flipped sequence gives the flipped result."""
    module, swapped = BidirectionalMamba2(16, **SMALL), BidirectionalMamba2(16, **SMALL)
    values = module.state_dict()
    pairs = {"conv1d": "conv1d_b", "dt_bias": "dt_bias_b", "A_log": "A_b_log", "D": "D_b"}
    pairs |= {new: old for old, new in pairs.items()}

    def other(key):
        head, dot, tail = key.partition(".")
        return pairs.get(head, head) + dot + tail

    exchanged = {other(key): x for key, x in values.items()}
    rows = values["in_proj.weight"]
    exchanged["in_proj.weight"] = torch.cat([rows[:-8], rows[-4:], rows[-8:-4]])
    swapped.load_state_dict(exchanged)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(swapped(x.flip(1)).flip(1), module(x))


@pytest.mark.parametrize("module_class", BOTH)
def test_autocast_keeps_the_recurrence_in_float32(module_class):
    """Under bfloat16 autocast the result stays close to float32, and parameters get float32 gradients."""
    torch.manual_seed(0)
    module = module_class(32, **SMALL)
    x = torch.randn(2, 50, 32)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.02 * expected.norm()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("module_class", BOTH)
def test_compiles_without_a_break(module_class):
    torch._dynamo.reset()
    module = module_class(16, **SMALL)
    x = torch.randn(2, 5, 16)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize("module_class", BOTH)
def test_refuses_what_does_not_fit(module_class):
    name = module_class.__name__
    with pytest.raises(ValueError, match=rf"{name}: x must be \(B, L, 16\), got \(2, 3, 8\)"):
        module_class(16, **SMALL)(torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match=f"{name}: headdim must be a divisor of expand \\* d_model = 32, got 12"):
        module_class(16, headdim=12)
    with pytest.raises(ValueError, match=f"{name}: ngroups must be a divisor of the 4 heads, got 3"):
        module_class(16, headdim=8, ngroups=3)


def test_step_and_norm_refuse_what_does_not_fit():
    module = Mamba2(16, **SMALL)
    with pytest.raises(ValueError, match=r"Mamba2: x must be \(B, C\) = \(2, 16\), got \(2, 1, 16\)"):
        module.step(torch.zeros(2, 1, 16), module.initial_state(2))
    with pytest.raises(ValueError, match="GatedRMSNorm: groups must be a divisor of 16, got 3"):
        GatedRMSNorm(16, groups=3)
    with pytest.raises(ValueError, match="GatedRMSNorm: z must be the shape of y"):
        GatedRMSNorm(16)(torch.zeros(2, 16), torch.zeros(2, 8))


def test_the_golden_file_is_the_module_that_is_tested():
    with (DATA / "mamba_v2_compat.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    config = json.loads(header["__metadata__"]["config"])
    assert {name: config[name] for name in ("d_model", *SMALL)} == {"d_model": 32, **SMALL}
