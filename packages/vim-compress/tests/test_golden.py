"""Outputs and gradients equal the reference implementations' in float64."""

import pytest
import torch
from vim_compress.config import MambaVisionConfig, VimConfig
from vim_compress.hybrid import ScanMixer
from vim_compress.mambavision import MambaVision
from vim_compress.mixer import VimMixer
from vim_compress.saved import freeze
from vim_compress.vim import VisionMamba, resize_positions


def close(found, wanted, bound=1e-10):
    """Compare with the size of the largest number as the unit."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= bound * wanted.abs().max()


def check_gradients(module, case, output, gradient):
    """The given gradient of the output leads to the stored ones of the inputs and parameters."""
    parameters = dict(module.named_parameters())
    wanted = {k: v for k, v in case.part("grad.state.").items() if k in parameters}
    found = torch.autograd.grad(output, [parameters[k] for k in wanted], gradient.double())
    for name, value in zip(wanted, found, strict=True):
        bound = 1e-9 if wanted[name].dtype == torch.float64 else 1e-6
        assert (value - wanted[name]).abs().max() <= bound * wanted[name].abs().max() + 1e-12, name


@pytest.mark.parametrize("name", ["vim_mixer_bimamba_v2", "vim_mixer_layer_scale"])
def test_vim_mixer_runs_both_directions(golden, name):
    case = golden(name)
    config, scaled = case.config, "layer_scale" in name
    mixer = VimMixer(
        config["d_model"],
        inner=2 * config["d_model"],
        states=(config["d_state"], config["d_state"]),
        d_conv=config["d_conv"],
        rank=config["dt_rank"],
        bias=scaled,
        layer_scale=scaled,
    ).double()
    mixer.load_state_dict(case.double_state())
    y = mixer(case.tensors["input.x"].double())
    close(y, case.tensors["output.y"])
    check_gradients(mixer, case, y, case.tensors["grad.output.y"])
    if "output.y_sum_not_divided" in case.tensors:
        mixer.average = False
        close(mixer(case.tensors["input.x"].double()), case.tensors["output.y_sum_not_divided"])


def vim_of(case):
    config, image = case.config, case.config["img_size"]
    return VimConfig(
        image=(image, image) if isinstance(image, int) else tuple(image),
        patch=config["patch_size"],
        stride=config["stride"],
        dim=config["embed_dim"],
        depth=config["depth"],
        classes=config["num_classes"],
        d_state=config["d_state"],
    )


@pytest.mark.parametrize("name", ["vim_model_odd", "vim_model_nonsquare"])
def test_whole_vim(golden, name):
    case = golden(name)
    model = VisionMamba(vim_of(case)).double().eval()
    model.load_state_dict(case.double_state())
    x = case.tensors["input.x"].double()
    close(model.forward_head(model.forward_features(x), pre_logits=True), case.tensors["output.features"])
    logits = model(x)
    close(logits, case.tensors["output.logits"])
    with torch.no_grad():
        close(freeze(model)(x), case.tensors["output.logits"])
    check_gradients(model, case, logits, case.tensors["grad.output.logits"])


def test_whole_vim_in_single_precision(golden):
    case = golden("vim_model_odd")
    model = VisionMamba(vim_of(case)).eval()
    model.load_state_dict(case.part("state."))
    with torch.no_grad():
        assert (model(case.tensors["input.x"]) - case.tensors["output.logits"]).abs().max() <= 1e-5


def test_mambavision_mixer_adds_the_steps_bias_twice_or_once(golden):
    case = golden("mambavision_mixer")
    dim = case.config["d_model"]
    mixer = ScanMixer(dim, x=dim // 2, z=dim // 2, d_state=case.config["d_state"], rank=case.config["dt_rank"]).double()
    mixer.load_state_dict(case.double_state())
    x = case.tensors["input.x"].double()
    y = mixer(x)
    close(y, case.tensors["output.y"])
    check_gradients(mixer, case, y, case.tensors["grad.output.y"])
    mixer.bias_twice = False
    close(mixer(x), case.tensors["output.y_dt_bias_once"])


def test_whole_mambavision_with_padded_windows(golden):
    case = golden("mambavision_net_padded")
    config = case.config
    model = MambaVision(
        MambaVisionConfig(
            dim=config["dim"],
            in_dim=config["in_dim"],
            depths=tuple(config["depths"]),
            heads=tuple(config["num_heads"]),
            windows=tuple(config["window_size"]),
            classes=config["num_classes"],
        )
    )
    model = model.double().eval()
    model.load_state_dict(case.double_state())
    x = case.tensors["input.x"].double()
    with torch.no_grad():
        close(model.forward_head(model.forward_features(x), pre_logits=True), case.tensors["output.features"])
        close(model(x), case.tensors["output.logits"])


@pytest.mark.parametrize(("name", "grid"), [("up", (6, 6)), ("down", (3, 3)), ("nonsquare", (5, 7))])
def test_positions_are_resized_around_the_middle_class_row(golden, name, grid):
    case = golden("vim_pos_embed_resize")
    found = resize_positions(case.tensors["input.pos_embed"], (4, 4), grid)
    assert (found - case.tensors[f"output.middle_aware_{name}"]).abs().max() < 1e-5


def test_published_rule_for_positions_differs(golden):
    """The rule that takes row 0 for the class token shifts every patch: the test above would notice."""
    case = golden("vim_pos_embed_resize")
    found = resize_positions(case.tensors["input.pos_embed"], (4, 4), (6, 6))
    assert (found - case.tensors["output.upstream_up"]).abs().max() > 0.1


def test_golden_files_name_their_configuration(golden, request):
    files = list((request.path.parent / "data").glob("*.xz"))
    assert files
    for file in files:
        assert golden(file.name.removesuffix(".safetensors.xz")).config, file
