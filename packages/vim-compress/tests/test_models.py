"""timm's whole interface on both families, exact sizes, and published checkpoints."""

import subprocess
import sys

import pytest
import timm
import timm.optim
import torch
from torch import nn
from vim_compress import models
from vim_compress.config import MambaVisionConfig, VimConfig, config_from_dict
from vim_compress.keymap import filter_published, unwrap
from vim_compress.mambavision import MambaVision
from vim_compress.presets import PRESETS, preset
from vim_compress.vim import VisionMamba

PARAMETERS = {  # and numbers in the state dict
    "vim_tiny_patch16_224": (7_148_008, 415),
    "vim_small_patch16_224": (25_796_584, 415),
    "vim_base_patch16_224": (97_598_440, 415),
    "vim_tiny_patch16_stride8_224": (7_250_344, 415),
    "vim_small_patch16_stride8_224": (26_001_256, 415),
    "mambavision_t": (31_794_248, 252),
    "mambavision_t2": (35_104_008, 298),
    "mambavision_s": (50_140_584, 285),
    "mambavision_b": (97_685_288, 356),
    "mambavision_l": (227_961_048, 356),
    "mambavision_l2": (241_554_824, 389),
}
SMALL = ["vim_test_patch4_16", "mambavision_test_32"]


def image(model: nn.Module, batch: int = 2, **size: int) -> torch.Tensor:
    config = model.config
    torch.manual_seed(0)
    return torch.randn(batch, config.channels, size.get("height", config.image[0]), size.get("width", config.image[1]))


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PARAMETERS[name]


@pytest.mark.parametrize(("classes", "parameters"), [(10, 6_956_938), (100, 6_974_308), (200, 6_993_608)])
def test_heads(classes, parameters):
    with torch.device("meta"):
        model = timm.create_model("vim_tiny_patch16_224", num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_every_preset_is_registered_under_its_short_name():
    assert set(PRESETS) <= set(timm.list_models(module="models"))
    assert timm.list_models("vim_*") == sorted(n for n in PRESETS if n.startswith("vim_"))


def test_published_keys_of_vim():
    """The list that published checkpoints have; a missing or new name would make them fail to load."""
    with torch.device("meta"):
        keys = set(timm.create_model("vim_tiny_patch16_224").state_dict())
    mixer = ["in_proj.weight", "out_proj.weight", "A_log", "A_b_log", "D", "D_b"]
    for suffix in ("", "_b"):
        mixer += [f"conv1d{suffix}.weight", f"conv1d{suffix}.bias", f"x_proj{suffix}.weight"]
        mixer += [f"dt_proj{suffix}.weight", f"dt_proj{suffix}.bias"]
    wanted = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "head.weight", "head.bias"}
    wanted |= {"norm_f.weight", *(f"layers.{i}.norm.weight" for i in range(24))}
    assert keys == wanted | {f"layers.{i}.mixer.{key}" for i in range(24) for key in mixer}


def test_published_keys_of_mambavision():
    with torch.device("meta"):
        keys = set(timm.create_model("mambavision_b").state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    wanted = {"patch_embed.conv_down.0.weight", "patch_embed.conv_down.3.weight", "head.weight", "head.bias"}
    wanted |= {f"patch_embed.conv_down.{i}.{key}" for i in (1, 4) for key in norm} | {f"norm.{key}" for key in norm}
    wanted |= {f"levels.{s}.downsample.reduction.0.weight" for s in range(3)}
    for stage, depth in enumerate((3, 3, 10, 5)):
        for block in range(depth):
            at = f"levels.{stage}.blocks.{block}."
            if stage < 2:
                wanted |= {f"{at}{conv}.{key}" for conv in ("conv1", "conv2") for key in ("weight", "bias")}
                wanted |= {f"{at}{bn}.{key}" for bn in ("norm1", "norm2") for key in norm}
                continue
            linear = ["norm1", "norm2", "mlp.fc1", "mlp.fc2"]
            if block >= (depth + 1) // 2:
                linear += ["mixer.qkv", "mixer.proj"]
            else:
                alone = ["in_proj.weight", "x_proj.weight", "A_log", "D", "out_proj.weight"]
                linear += ["mixer.dt_proj"]
                wanted |= {f"{at}mixer.{key}" for key in [*alone, "conv1d_x.weight", "conv1d_z.weight"]}
            wanted |= {f"{at}{part}.{key}" for part in linear for key in ("weight", "bias")} | {f"{at}gamma_1"}
            wanted |= {f"{at}gamma_2"}
    assert keys == wanted


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "ema", "prefixed"])
def test_published_wrappers_and_prefixes_load(name, model, wrap, tmp_path):
    """A pickle is read with weights_only, as timm does by default."""
    state = model.state_dict()
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    wrapped = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": state, "arch": "x"},
        "ema": {"model": other, "model_ema": state, "epoch": 1},
        "prefixed": {"state_dict": {f"module.encoder.{key}": value for key, value in state.items()}},
    }[wrap]
    torch.save(wrapped, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    loaded = timm.create_model(name, pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay).eval()
    x = image(model)
    assert torch.equal(loaded(x), model(x))


def test_averaged_weights_can_be_chosen():
    plain, averaged = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    both = {"model": plain, "model_ema": averaged}
    assert unwrap(both)["a"] == 1
    assert unwrap(both, ema=False)["a"] == 0
    with pytest.raises(ValueError, match="must hold weights"):
        unwrap({"epoch": 1})


def test_checkpoint_of_another_size_is_resampled():
    small = timm.create_model("vim_test_patch4_16", num_classes=5)
    large = timm.create_model("vim_test_patch4_16", num_classes=5, img_size=24)
    large.load_state_dict(filter_published(small.state_dict(), large))
    assert large.pos_embed.shape == (1, 37, 16)
    assert torch.equal(large.pos_embed[:, 18], small.pos_embed[:, 8])


def test_head_and_features_make_the_output(model):
    x = image(model)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model(x).shape == (2, 5)


def test_reset_classifier(model):
    x = image(model)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert (model.num_classes, model.config.classes) == (3, 3)
    model.reset_classifier(4, "avg")
    assert model.get_classifier().out_features == 4
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


def test_other_channels_and_rates(name):
    model = timm.create_model(name, in_chans=1, num_classes=2, drop_path_rate=0.5, drop_rate=0.1)
    assert model(image(model)).shape == (2, 2)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == 0.5
    assert len(model.config.mean) == 1


def test_intermediates_are_the_maps_of_blocks_or_stages(model):
    x = image(model)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[0])
    side = model.config.image[0]
    assert [side // m.shape[2] for m in maps] == [info["reduction"] for info in model.feature_info]


def test_intermediates_refuse_what_is_not_there(model):
    with pytest.raises(ValueError, match="indices"):
        model.forward_intermediates(image(model), indices=[9])
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(image(model), output_fmt="NHWC")


def test_last_intermediate_of_vim_is_the_sequence_without_class_token():
    model = timm.create_model("vim_test_patch4_16").eval()
    final, found = model.forward_intermediates(
        image(model), indices=1, norm=True, output_fmt="NLC", return_prefix_tokens=True
    )
    patches, token = found[0]
    assert torch.equal(torch.cat([patches[:, :8], token, patches[:, 8:]], 1), final)


def test_features_only(name):
    model = timm.create_model(name, features_only=True, out_indices=(0, 1)).eval()
    assert model.feature_info.channels() == [x["num_chs"] for x in model.feature_info.get_dicts()]
    size = model.model.config.image
    maps = model(torch.randn(1, 3, *size))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [size[0] // m.shape[2] for m in maps] == model.feature_info.reduction()
    assert "head" not in dict(model.named_parameters())


@pytest.mark.parametrize(("height", "width"), [(24, 24), (16, 40), (33, 17)])
def test_other_sizes(name, height, width):
    model = timm.create_model(name, img_size=(height, width)).eval()
    assert model(image(model, height=height, width=width)).isfinite().all()


def test_set_input_size_keeps_what_was_learned():
    model = timm.create_model("vim_test_patch4_16").eval()
    token = model.pos_embed[:, 8].clone()
    model.set_input_size((24, 32))
    assert model.config.image == (24, 32)
    assert torch.equal(model.pos_embed[:, 24], token)
    assert model(image(model)).shape == (2, 1000)
    with pytest.raises(ValueError, match="patch_size"):
        model.set_input_size(32, patch_size=8)
    with pytest.raises(ValueError, match="at least one patch"):
        model.set_input_size(2)


def test_dynamic_size_equals_set_size():
    torch.manual_seed(0)
    model = timm.create_model("vim_test_patch4_16", dynamic_img_size=True).eval()
    x = image(model, height=20, width=28)
    free = model(x)
    model.set_input_size((20, 28))
    assert torch.allclose(free, model(x), atol=1e-6)


def test_wrong_pictures_are_named():
    model = timm.create_model("vim_test_patch4_16")
    with pytest.raises(ValueError, match="16 x 16 pixels"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        model(torch.zeros(1, 3, 3, 16))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        timm.create_model("mambavision_test_32")(torch.zeros(1, 1, 32, 32))


def test_rates_and_scales_do_not_decay(model):
    kept = model.no_weight_decay()
    assert {key for key, _ in model.named_parameters() if key.endswith(("A_log", "A_b_log", ".D", ".D_b"))} <= kept
    groups = timm.optim.param_groups_weight_decay(model, 0.1, no_weight_decay_list=kept)
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    assert not {id(p) for key, p in model.named_parameters() if key in kept} & decayed
    assert any(key.endswith("in_proj.weight") and id(p) in decayed for key, p in model.named_parameters())


def test_layer_groups_cover_every_parameter(model):
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher())
    assert sorted(k for names in groups.values() for k in names) == sorted(k for k, _ in model.named_parameters())
    assert len(timm.optim.param_groups_layer_decay(model, layer_decay=0.8)) > 3


def test_checkpointing_changes_neither_output_nor_gradient(model):
    x = image(model)
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    cheap = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, cheap, strict=True))


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(image(model)), model(image(model)))
    assert not loaded.training


def test_first_steps_of_the_backward_scan():
    """Vim's own initialisation leaves the backward bias at 0: softplus(0) = 0.69 instead of 0.001 to 0.1."""

    def steps(init):
        mixer = VisionMamba(VimConfig(image=(16, 16), patch=4, stride=4, dim=32, depth=1, init=init)).layers[0].mixer
        return nn.functional.softplus(mixer.dt_proj_b.bias), nn.functional.softplus(mixer.dt_proj.bias)

    back, ahead = steps("official")
    assert torch.allclose(back, torch.tensor(0.6931), atol=1e-3)
    assert (ahead >= 1e-4).all() and (ahead <= 0.101).all()
    back, _ = steps("fixed")
    assert (back >= 1e-4).all() and (back <= 0.101).all()


def test_first_output_projections_shrink_with_depth():
    torch.manual_seed(0)
    out = VisionMamba(preset("vim_tiny_patch16_224")).layers[5].mixer.out_proj.weight
    assert abs(out.std().item() - 0.0060) < 2e-4
    assert abs(out.abs().max().item() - 0.0104) < 2e-4


def test_both_directions_see_everything():
    """On every path: the first token's output depends on the last token and the other way round."""
    model = timm.create_model("vim_test_patch4_16").eval()
    x = torch.randn(1, 17, 16, requires_grad=True)
    y = model.layers[0].mixer(x)
    for seen, by in ((0, 16), (16, 0)):
        assert torch.autograd.grad(y[0, by].sum(), x, retain_graph=True)[0][0, seen].abs().max() > 0


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_patches_as_one_product_are_the_convolution(memory):
    """Also where pixels are left over at the right and at the bottom."""
    embed = VisionMamba(VimConfig(image=(18, 23), patch=4, stride=4, dim=8, depth=1)).patch_embed.double()
    x = torch.randn(3, 3, 18, 23, dtype=torch.float64).to(memory_format=memory)
    torch.testing.assert_close(embed.product(x), embed(x))


def test_blocks_add_what_the_block_before_them_made():
    """Not yet added changes are no part of the stream that a block returns."""
    model = timm.create_model("vim_test_patch4_16").eval()
    tokens, grid = model.tokens(image(model))
    residual, change = model.run_block(0, tokens, None, grid)
    assert torch.equal(residual, tokens)
    summed, other = model.run_block(1, residual, change, grid)
    assert torch.equal(summed, residual + change)
    torch.testing.assert_close(model.run_block(1, residual + change, None, grid)[1], other)
    model.prune_intermediate_layers(1, prune_norm=True)
    assert torch.equal(model.finished(residual, change), summed)
    model.norm_f = torch.nn.LayerNorm(model.embed_dim)
    assert torch.equal(model.finished(residual, change), model.norm_f(summed))


@pytest.mark.gpu
def test_vim_on_a_gpu_is_the_one_on_the_processor():
    """With its own kernels for sum and norm, and patches as a product."""
    torch.manual_seed(0)
    model = timm.create_model("vim_test_patch4_16").eval()
    x = image(model, batch=3)
    with torch.no_grad():
        wanted = model(x)
        found = model.cuda()(x.cuda()).cpu()
        half = torch.autocast("cuda", torch.bfloat16)
        with half:
            rough = model(x.cuda()).float().cpu()
    assert (found - wanted).norm() <= 1e-3 * wanted.norm()
    assert (rough - wanted).norm() <= 5e-2 * wanted.norm()


def test_single_directions_see_one_side():
    from vim_compress.mixer import VimMixer

    for states, blind in (((4, 0), (0, 9)), ((0, 4), (9, 0))):
        mixer = VimMixer(8, inner=16, states=states, rank=1)
        x = torch.randn(1, 10, 8, requires_grad=True)
        by, seen = blind
        assert torch.autograd.grad(mixer(x)[0, by].sum(), x)[0][0, seen].abs().max() == 0


def test_windows_do_not_talk_unless_the_map_is_one_window():
    model = MambaVision(MambaVisionConfig(**{**preset("mambavision_test_32").to_dict(), "windows": [4, 4, 4, 2]}))
    stage = model.eval().levels[2]
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    seen = torch.autograd.grad(stage.run_blocks(x)[0, :, 0, 0].sum(), x)[0].abs().sum((0, 1))
    assert seen[:4, :4].min() > 0
    assert seen[4:].max() == 0
    assert seen[:, 4:].max() == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"family": "vit"}, "family must be one of"),
        ({"family": "vim", "dims": 3}, "did you mean dim"),
        ({"family": "vim", "dim": 0}, "dim must be a whole number"),
        ({"family": "vim", "classes": 3, "labels": ["a"]}, "3 names, as the head has outputs, got 1 names"),
        ({"family": "vim", "widths": {"layers.99.inner": 3}}, "names of this network's axes"),
        ({"family": "vim", "widths": {"layers.0.inner": 0}}, "at least 1"),
        ({"family": "vim", "widths": {"layers.0.state": 0, "layers.0.state_b": 0}}, "one direction of block 0"),
        ({"family": "vim", "image": [8, 8]}, "at least one patch"),
        ({"family": "mambavision", "heads": [3, 3, 3, 3]}, "divisors of the stages' widths"),
        ({"family": "mambavision", "attention": "global"}, "one of window, shifted"),
        ({"family": "mambavision", "depths": [1, 1]}, "four whole numbers"),
    ],
)
def test_bad_configurations_are_one_line(values, said):
    with pytest.raises(ValueError, match=said) as error:
        config_from_dict(values)
    assert "\n" not in str(error.value)


def test_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="vim_tiny_patch16_224"):
        preset("vim-tiny-224")


def test_half_precision_keeps_the_recurrence_in_single(model):
    from vim_compress.saved import keep_single

    x = image(model)
    truth = model(x)
    keep_single(model, torch.bfloat16)
    kinds = {key.rpartition(".")[2]: p.dtype for key, p in model.named_parameters()}
    assert kinds["A_log"] == kinds["D"] == torch.float32
    low = model(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - truth).abs().max() < 0.1 * truth.abs().max() + 0.05


def test_what_is_frozen_is_used_for_inference_only_and_forgotten_with_the_weights():
    from vim_compress.mixer import VimMixer
    from vim_compress.saved import freeze

    def derived(mixer):
        return bool(mixer._frozen)

    torch.manual_seed(0)
    mixer = VimMixer(16, inner=32, states=(4, 6), rank=3).double().eval()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    truth = mixer(x)
    freeze(mixer)
    saved = mixer.state_dict()
    torch.nn.init.zeros_(mixer.x_proj.weight)
    with torch.no_grad():
        assert torch.allclose(mixer(x), truth, rtol=1e-9), "derived before the weight changed"
    assert not torch.allclose(mixer(x), truth, rtol=1e-6), "gradients want the weights themselves"
    for undo in (mixer.train, mixer.float, lambda: mixer.load_state_dict(saved)):
        assert derived(freeze(mixer))
        undo()
        assert not derived(mixer)
    assert derived(freeze(mixer).eval())


def test_importing_the_package_registers_nothing_and_is_light():
    code = "import sys, vim_compress, vim_compress.config, vim_compress.presets; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_entry_points_are_plain_functions_of_the_module():
    assert models.vim_tiny_patch16_224.__doc__ == PRESETS["vim_tiny_patch16_224"].__doc__
