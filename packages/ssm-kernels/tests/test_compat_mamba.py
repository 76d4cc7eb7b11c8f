"""ssm_kernels.compat's Mamba: checkpoints of mamba-ssm and Vim, caches, steps, initial values, dtypes."""

import math
from pathlib import Path

import pytest
import torch
from ssm_kernels.compat.cache import InferenceParams
from ssm_kernels.compat.errors import UnknownChoice
from ssm_kernels.compat.mamba import Mamba

DATA = Path(__file__).parent / "data"


def golden(name):
    from safetensors.torch import load_file

    return load_file(DATA / f"{name}.safetensors")


def loaded(name, dtype=torch.float64, **options):
    """Return a mixer with the file's weights, and the file."""
    numbers = golden(name)
    mixer = Mamba(32, **options).to(dtype)
    state = {key.removeprefix("state."): x.to(dtype) for key, x in numbers.items() if key.startswith("state.")}
    mixer.load_state_dict(state)
    return mixer, numbers


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mamba_v1_block", {}),
        ("mamba_v1_block", {"use_fast_path": False}),
        ("vim_mixer_bimamba_v2", {"bimamba_type": "v2", "if_divide_out": True}),
        ("vim_mixer_bimamba_v2", {"bimamba_type": "v2", "if_devide_out": True}),
    ],
)
def test_checkpoint_gives_the_published_numbers(name, options):
    """All keys fit; output and every gradient agree in float64."""
    mixer, numbers = loaded(name, **options)
    x = numbers["input.x"].double().requires_grad_()
    y = mixer(x)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-12)
    y.backward(numbers["grad.output.y"].double())
    torch.testing.assert_close(x.grad, numbers["grad.input.x"], rtol=0, atol=1e-11)
    for key, parameter in mixer.named_parameters():  # stored as float32
        expected = numbers[f"grad.state.{key}"].double()
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-7 * expected.abs().max().item())


def test_sum_of_vims_directions():
    mixer, numbers = loaded("vim_mixer_bimamba_v2", bimamba_type="v2")
    y = mixer(numbers["input.x"].double())
    torch.testing.assert_close(y, numbers["output.y_sum_not_divided"], rtol=0, atol=1e-12)


def test_states_and_steps_equal_the_published_ones():
    """The cache is filled by the whole sequence and advanced by three tokens."""
    mixer, numbers = loaded("mamba_v1_block", layer_idx=3)
    steps = golden("mamba_v1_steps")
    cache = InferenceParams(max_seqlen=15, max_batch_size=2)
    y = mixer(numbers["input.x"].double(), inference_params=cache)
    torch.testing.assert_close(y, numbers["output.y"], rtol=0, atol=1e-12)
    conv_state, ssm_state = cache.key_value_memory_dict[3]
    torch.testing.assert_close(conv_state, steps["output.conv_state"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ssm_state, steps["output.ssm_state"].double(), rtol=0, atol=1e-6)
    for i in range(3):
        cache.seqlen_offset = 12 + i
        token = mixer(steps["input.step_x"][:, i : i + 1].double(), inference_params=cache)
        torch.testing.assert_close(token, steps[f"output.step{i}.y"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(conv_state, steps["output.step2.conv_state"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ssm_state, steps["output.step2.ssm_state"].double(), rtol=0, atol=1e-6)


def test_state_of_a_sequence_shorter_than_the_filter():
    mixer, _ = loaded("mamba_v1_block", layer_idx=0)
    steps = golden("mamba_v1_steps")
    cache = InferenceParams(2, 2)
    mixer(steps["input.x_short"].double(), cache)
    conv_state, ssm_state = cache.key_value_memory_dict[0]
    torch.testing.assert_close(conv_state, steps["output.short.conv_state"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ssm_state, steps["output.short.ssm_state"].double(), rtol=0, atol=1e-6)


def test_steps_from_nothing_are_the_sequence():
    torch.manual_seed(0)
    mixer, x = Mamba(8, layer_idx=0), torch.randn(2, 6, 8)
    states = mixer.allocate_inference_cache(2, 6)
    tokens = [mixer.step(x[:, t : t + 1], *states)[0] for t in range(6)]
    torch.testing.assert_close(torch.cat(tokens, 1), mixer(x))


def test_vims_first_form_shares_what_comes_before_the_scan():
    """v1: the result for the flipped sequence is another one (the convolution is causal), keys are those of Vim."""
    torch.manual_seed(0)
    mixer = Mamba(8, bimamba_type="v1", init_layer_scale=0.1)
    extra = set(mixer.state_dict()) - set(Mamba(8).state_dict())
    assert extra == {"A_b_log", "gamma"}
    x = torch.randn(1, 7, 8, requires_grad=True)
    y = mixer(x)
    reach = torch.autograd.grad(y[0, 3].sum(), x, retain_graph=True)[0]
    assert (reach.abs().sum(-1) > 0).all()  # every step sees every other
    y.sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())
    with torch.no_grad():
        mixer.gamma.mul_(2)
    torch.testing.assert_close(mixer(x), 2 * y)


def test_keys_shapes_and_dtypes_of_a_half_precision_model():
    mixer = Mamba(32, d_state=8, d_conv=3, expand=3, bias=True, dtype=torch.bfloat16)
    shapes = {key: tuple(x.shape) for key, x in mixer.state_dict().items()}
    assert shapes == {
        "A_log": (96, 8),
        "D": (96,),
        "in_proj.weight": (192, 32),
        "in_proj.bias": (192,),
        "conv1d.weight": (96, 1, 3),
        "conv1d.bias": (96,),
        "x_proj.weight": (18, 96),
        "dt_proj.weight": (96, 2),
        "dt_proj.bias": (96,),
        "out_proj.weight": (32, 96),
        "out_proj.bias": (32,),
    }
    single = {key for key, x in mixer.state_dict().items() if x.dtype == torch.float32}
    assert single == {"A_log", "D"}
    assert mixer(torch.randn(2, 5, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_initial_values_and_marks():
    torch.manual_seed(0)
    mixer = Mamba(64, dt_rank=5, dt_init="constant", dt_scale=2.0, dt_min=0.01, dt_max=0.02)
    assert torch.all(mixer.dt_proj.weight == 2 * 5**-0.5)
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.0099 < steps.min() < steps.max() < 0.0201
    assert torch.equal(mixer.A_log[7].exp().round(), torch.arange(1.0, 17.0))
    assert mixer.A_log._no_weight_decay
    assert mixer.D._no_weight_decay
    assert mixer.dt_proj.bias._no_reinit
    assert Mamba(64).dt_rank == math.ceil(64 / 16)
    with pytest.raises(UnknownChoice, match="dt_init"):
        Mamba(8, dt_init="zeros")


def test_parameters_can_be_made_without_memory():
    assert {p.device.type for p in Mamba(8, device="meta").parameters()} == {"meta"}


def test_wrong_use_is_named():
    x = torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match="Mamba: bimamba_type must be 'none', 'v1' or 'v2', got 'v3'"):
        Mamba(8, bimamba_type="v3")
    with pytest.raises(ValueError, match="Mamba: layer_idx must be a number with inference_params"):
        Mamba(8)(x, InferenceParams(3, 2))
    with pytest.raises(ValueError, match="Mamba: inference_params must be None with two directions"):
        Mamba(8, layer_idx=0, bimamba_type="v2")(x, InferenceParams(3, 2))
    mixer, cache = Mamba(8, layer_idx=0), InferenceParams(3, 2)
    mixer(x, cache)
    with pytest.raises(ValueError, match="Mamba: inference_params must be of 1 rows, got states of 2 rows"):
        mixer(x[:1], cache)
    with pytest.raises(ValueError, match=r"Mamba.step: hidden_states must be \(B, 1, 8\), got \(2, 3, 8\)"):
        mixer.step(x, *mixer.allocate_inference_cache(2, 3))
    with pytest.raises(ValueError, match=r"Mamba: x must be \(B, L, 8\)"):
        mixer(torch.randn(2, 3, 7))
