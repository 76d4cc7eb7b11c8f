"""Outputs and gradients of every published architecture, from its own weights through the key map."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hybrid_sr.config import ModelConfig
from hybrid_sr.keymap import from_published, published_config
from hybrid_sr.model import HybridSR
from torch import Tensor

CASES = {
    "sr-no-pe-no-cab": ModelConfig(scale=4, dim=24, depths=(2, 2)),
    "sr-baseline": ModelConfig(scale=2, dim=36, depths=(2,), channel_attention=True, position="table"),
    "sr-mamba": ModelConfig(scale=3, dim=20, depths=(2, 1), overlap_attention=False),
    "sr-hat-light": ModelConfig(
        scale=2,
        dim=36,
        depths=(2,),
        mixer="attention",
        channel_attention=True,
        squeeze_factor=18,
        position="table",
        rgb_mean=(0.0, 0.0, 0.0),
    ),
    "sr-gcffn": ModelConfig(scale=2, dim=24, depths=(2,), heads=4, ffn="gated-conv", final_norm=False),
    "sr-dwconv-ffn": ModelConfig(scale=3, dim=24, depths=(1, 1), heads=3, ffn="dwconv"),
    "sr-contrast-s": ModelConfig(
        scale=4,
        dim=24,
        depths=(2,),
        ffn="spatial-gate",
        position="dynamic",
        final_norm=False,
        upsampler="pixelshuffle",
    ),
}
NO_EFFECT = "cpb_mlp.pos3.2.bias"  # adds one number to all keys of a head: its gradient is rounding only
ROTATION = 880  # rows by which the published table of the overlapping attention is behind, window 16 and 24


@dataclass
class Run:
    """One forward and backward pass; `published` maps a published parameter name to its gradient in our layout."""

    y: Tensor
    input_grad: Tensor
    published: dict[str, Tensor]


def published_state(file) -> dict[str, Tensor]:
    """Return the whole state dict; the upsampler that the Contrast-S file leaves out is random."""
    state = {k: torch.from_numpy(v.copy()) for k, v in file.under("state.").items()}
    generator = torch.Generator().manual_seed(0)
    for name, shape in file.meta.get("omitted_state", {}).items():
        state[name] = 0.05 * torch.randn(shape, generator=generator)
    return state


def build(file, config: ModelConfig, dtype: torch.dtype) -> HybridSR:
    model = HybridSR(config)
    model.load_state_dict(from_published(published_state(file), config))  # strict: every name and shape
    return model.to(dtype)


def run(file, config: ModelConfig, dtype: torch.dtype) -> Run:
    """Differentiate sum(output * cotangent); for Contrast-S the output is what enters the upsampler."""
    model = build(file, config, dtype)
    features: list[Tensor] = []
    model.upsampler.register_forward_pre_hook(lambda _, args: features.append(args[0].permute(0, 3, 1, 2)))
    x = torch.from_numpy(file["input.x"]).to(dtype).requires_grad_()
    y = model(x)
    if "omitted_state" in file.meta:
        y = features[0]
    (y * torch.from_numpy(file["input.cotangent"])).sum().backward()
    assert x.grad is not None
    grads = {k: p.grad for k, p in model.named_parameters()}
    published = {}
    for name in file.meta["parameter_grad_l2"]:
        (ours,) = from_published({name: torch.empty(0)}, config)
        grad = grads[ours]
        assert grad is not None, ours
        published[name] = grad
    return Run(y.detach(), x.grad, published)


def assert_close(name: str, ours: Tensor, reference: np.ndarray, tolerance: float) -> None:
    error = np.abs(ours.double().numpy() - reference).max()
    assert error <= tolerance, f"{name}: off by {error:.2e}, allowed {tolerance:.2e}"


def output_of(file) -> tuple[str, int]:
    """Return the name of the stored output and the stride it was kept with."""
    return ("output.features", 3) if "output.features" in file.arrays else ("output.y", 5)


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_reference(golden, case):
    """Everything to the last digits: the wrong epsilon, GELU or index order shows by 1e-5 or more."""
    file, config = golden(case), published_config(CASES[case])
    result = run(file, config, torch.float64)
    name, stride = output_of(file)
    assert_close(name, result.y[..., ::stride, ::stride], file[name], 1e-13)
    assert result.y.norm().item() == pytest.approx(file.meta["norm"][name], rel=1e-13)
    grad = file["grad.input"]
    assert_close("grad.input", result.input_grad[..., ::3, ::3], grad, 1e-12 * np.abs(grad).max())
    assert result.input_grad.norm().item() == pytest.approx(file.meta["norm"]["grad.input"], rel=1e-12)
    assert len(result.published) == sum(k.startswith("state.") and "relative_coords" not in k for k in file.arrays)
    for key, norm in file.meta["parameter_grad_l2"].items():
        if not key.endswith(NO_EFFECT):
            assert result.published[key].norm().item() == pytest.approx(norm, rel=1e-12), key
    check_whole_gradients(file, result, 1e-6)  # stored in float32


def check_whole_gradients(file, result: Run, relative: float) -> None:
    whole = file.under("grad.state.")
    assert whole
    for key, reference in whole.items():
        ours = result.published[key]
        if key.endswith("overlap_attn.relative_position_bias_table"):
            ours = ours.roll(-ROTATION, 0)
        ours = ours[::7] if "table" in key else ours
        assert_close(key, ours.reshape(reference.shape), reference, relative * np.abs(reference).max())


@pytest.mark.parametrize("case", CASES)
def test_float32_is_as_near_as_suggested(golden, case):
    file, config = golden(case), published_config(CASES[case])
    result = run(file, config, torch.float32)
    name, stride = output_of(file)
    allowed = file.meta["suggested_atol_float32"]
    body = allowed.get("mid.layers.0", 0.0)  # features are not scaled down to colours yet
    assert_close(name, result.y[..., ::stride, ::stride], file[name], allowed["output.y"] if stride == 5 else body)
    assert_close("grad.input", result.input_grad[..., ::3, ::3], file["grad.input"], allowed["grad.input"])
    check_whole_gradients(file, result, 2e-5)


def test_true_offsets_of_the_generated_bias(golden):
    """With true offsets the same Contrast-S weights give the numbers that the published code does not compute."""
    file = golden("sr-contrast-s")
    result = run(file, CASES["sr-contrast-s"], torch.float64)
    unrotated = file["output.features_unrotated_index"]
    assert_close("features", result.y[..., ::3, ::3], unrotated, 1e-13)
    assert np.abs(unrotated - file["output.features"]).max() > 0.1  # the two are far apart


def test_generated_bias_sees_the_published_coordinates(golden):
    """The coordinates that the published state dict stores are those that ours computes, to the bit."""
    file = golden("sr-contrast-s")
    stored = file["state.layers.0.residual_group.overlap_attn.relative_coords_table"].reshape(-1, 2)
    true = HybridSR(CASES["sr-contrast-s"]).get_buffer("groups.0.overlap.position.coordinates")
    rotated = HybridSR(published_config(CASES["sr-contrast-s"])).get_buffer("groups.0.overlap.position.coordinates")
    np.testing.assert_array_equal(true.numpy(), stored)
    np.testing.assert_array_equal(rotated.numpy()[ROTATION:], stored[:-ROTATION])


def test_learned_table_is_renumbered_by_true_offset(golden):
    """Row t of ours, looked up by true offset, is the row that the published index buffer names there."""
    file, index = golden("sr-baseline"), golden("position-indices")["state.relative_position_index_OCA"].astype(int)
    key = "layers.0.residual_group.overlap_attn.relative_position_bias_table"
    published = torch.from_numpy(file[f"state.{key}"])
    (ours,) = from_published({key: published}, CASES["sr-baseline"]).values()
    query, frame = torch.arange(16), torch.arange(24)
    offset = frame[None, :] - query[:, None] + 15  # 0 is an offset of -19
    true = (offset[:, None, :, None] * 39 + offset[None, :, None, :]).reshape(256, 576)
    torch.testing.assert_close(ours[true], published[torch.from_numpy(index)], rtol=0, atol=0)


@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_stepwise_upsampler_equals_plain_modules(scale):
    """The upsampler that the Contrast-S file leaves out, against torch's own layers in the published order."""
    config = ModelConfig(scale=scale, dim=6, depths=(1,), heads=2, window=8, upsampler="pixelshuffle", upsampler_dim=8)
    torch.manual_seed(0)
    model = HybridSR(config)
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(6, 8, 3, padding=1), torch.nn.LeakyReLU(0.01)]
    published = {"conv_before_upsample.0": layers[0]}
    for i, step in enumerate({2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]):
        layers += [torch.nn.Conv2d(8, 8 * step**2, 3, padding=1), torch.nn.PixelShuffle(step)]
        published[f"upsample.{2 * i}"] = layers[-2]
    layers.append(torch.nn.Conv2d(8, 3, 3, padding=1))
    published["conv_last"] = layers[-1]
    state = {f"{k}.{leaf}": p for k, layer in published.items() for leaf, p in layer.named_parameters()}
    renamed = {k.removeprefix("upsampler."): v for k, v in from_published(state, config).items()}
    model.upsampler.load_state_dict(renamed)
    x = torch.randn(2, 6, 5, 7)
    ours = model.upsampler(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, torch.nn.Sequential(*layers)(x), rtol=1e-5, atol=1e-6)
