"""The architectural experiments: squeeze-and-excitation, depthwise convolutions, attention reach, other SSMs."""

import pytest
import timm
import torch
import vim_compress.models  # noqa: F401  (registers the networks)
from ssm_kernels import ssd_bidirectional
from vim_compress.config import VimConfig
from vim_compress.info import model_info
from vim_compress.linear import Mamba2Scan
from vim_compress.mixer import VimMixer
from vim_compress.mobilenet import InvertedResidual
from vim_compress.squeeze import SqueezeTokens

VIM, HYBRID = "vim_test_patch4_16", "mambavision_test_32"


def make(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **options).eval()


def image(model, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 3, *model.config.image)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("place", "width"), [("output", 16), ("inner", 32)])
def test_squeeze_of_a_saturated_gate_is_the_plain_network(place, width):
    """Weights that make the gate exactly 1 give the base model bit by bit; without a class token, on one mean."""
    plain, squeezed = make(VIM), make(VIM, se=place, se_ratio=4)
    assert count(squeezed) - count(plain) == 2 * (2 * width * width // 4)
    missing, unexpected = squeezed.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".se_" in name for name in missing)
    one = torch.ones(())
    for block in squeezed.layers:
        gate = block.mixer.se_output or block.mixer.se_inner
        gate.forward = lambda x, skip=None: x * one
    assert torch.equal(squeezed(image(plain)), plain(image(plain)))


def test_squeeze_weights_can_saturate_the_gate():
    gate = SqueezeTokens(8, 2)
    with torch.no_grad():
        gate.squeeze.weight.fill_(10.0)
        gate.expand.weight.fill_(10.0)
    x = torch.rand(2, 5, 8) + 0.5
    assert torch.equal(gate(x), x)


def test_squeeze_does_not_depend_on_the_order_of_tokens():
    gate, x = SqueezeTokens(8, 2), torch.randn(2, 6, 8)
    order = torch.randperm(6)
    assert torch.allclose(gate(x)[:, order], gate(x[:, order]), atol=1e-6)


def test_squeeze_can_leave_the_class_token_out():
    gate, x = SqueezeTokens(8, 2), torch.randn(2, 5, 8)
    other = x.clone()
    other[:, 2] = 100.0
    kept = [0, 1, 3, 4]
    assert torch.allclose(gate(x, 2)[:, kept], gate(other, 2)[:, kept], atol=1e-5)
    assert not torch.allclose(gate(x)[:, kept], gate(other)[:, kept], atol=1e-2)
    model = make(VIM, se="output", se_class_token=False)
    assert model(image(model)).isfinite().all()


def test_convolution_on_the_grid_passes_the_class_token_by():
    mixer = VimMixer(8, inner=16, states=(2, 2), rank=1, token_conv="depthwise2d").eval()
    tokens = torch.randn(1, 13, 16, requires_grad=True)  # 3 x 4 patches and the class token at 6
    from vim_compress.mixer import convolve_grid

    y = convolve_grid(mixer.conv2d, tokens, (3, 4))
    assert torch.equal(y[:, 6], tokens[:, 6])
    seen = torch.autograd.grad(y[0, 0].sum(), tokens)[0][0].abs().sum(-1) > 0
    assert seen.nonzero().flatten().tolist() == [0, 1, 4, 5]  # itself and its neighbours in both directions
    assert mixer(torch.randn(1, 13, 8), (3, 4)).shape == (1, 13, 8)


@pytest.mark.parametrize(
    ("name", "options"),
    [(VIM, {"stem": "mobilenet"}), (VIM, {"token_conv": "depthwise2d"}), (HYBRID, {"conv_blocks": "separable"})],
)
def test_depthwise_convolutions_run_in_three_places(name, options):
    model = make(name, **options)
    assert model(image(model)).shape == (2, 3)


def test_separable_blocks_cost_less_and_a_convolutional_stem_more():
    from vim_compress.info import model_info
    from vim_compress.presets import preset

    def macs(name, **options):
        from dataclasses import replace

        return model_info(replace(preset(name), **options))["total_macs"]

    assert macs("mambavision_t", conv_blocks="separable") < 0.8 * macs("mambavision_t")
    assert macs("vim_tiny_patch16_224", stem="mobilenet") > macs("vim_tiny_patch16_224")


def test_inverted_residual_projects_linearly_and_skips():
    block = InvertedResidual(8, 8, 1).eval()
    x = torch.randn(1, 8, 4, 4)
    assert block.residual
    with torch.no_grad():
        block.layers[-2].weight.zero_()
    assert torch.equal(block(x), x)
    assert block.layers[-1].__class__.__name__ == "BatchNorm2d"  # no activation after the projection
    assert not InvertedResidual(8, 16, 2).residual


def test_batch_norm_in_the_stem_differs_between_training_and_evaluation():
    model = make(VIM, stem="mobilenet")
    x = image(model, batch=4)
    before = model(x)
    model.train()
    trained = model(x)
    assert not torch.allclose(before, trained, atol=1e-3)
    model.eval()
    assert not torch.allclose(before, model(x), atol=1e-4)  # the running statistics moved


@pytest.mark.parametrize("kind", ["shifted", "band", "neighbourhood"])
def test_reach_that_covers_the_map_is_full_attention(kind):
    """At the size where one window is the whole map, all kinds are the published attention."""
    plain, other = make(HYBRID), make(HYBRID, attention=kind, reach=15)
    other.load_state_dict(plain.state_dict())
    x = image(plain)
    assert torch.allclose(other(x), plain(x), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reach", "seen"),
    [
        ("neighbourhood", 3, {(i, j) for i in (2, 3, 4) for j in (2, 3, 4)}),
        ("band", 2, {(3, 1), (3, 2), (3, 3), (3, 4), (3, 5)}),
    ],
)
def test_reach_of_one_token(kind, reach, seen):
    """By gradients: token (3, 3) of an 8 x 8 map sees exactly what it should, across the borders of 4 x 4 windows."""
    from vim_compress.sliding import SlidingAttention

    attention = SlidingAttention(8, heads=2, head_dim=4, gates=False, kind=kind, window=4, shift=0, reach=reach)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    y = attention.merge(attention.attend(x))
    found = torch.autograd.grad(y[0, 3, 3].sum(), x)[0][0].abs().sum(-1) > 0
    assert {tuple(p) for p in found.nonzero().tolist()} == seen


def test_shifted_windows_talk_to_their_neighbours():
    """A token at a window's corner sees the next window by the second attention block; with plain windows not."""
    reached = {}
    for kind in ("window", "shifted"):
        model = make(HYBRID, depths=(1, 1, 4, 2), attention=kind, windows=(4, 4, 4, 2))
        stage = model.levels[2]
        x = torch.randn(1, 32, 8, 8, requires_grad=True)
        seen = torch.autograd.grad(stage.run_blocks(x)[0, :, 3, 3].sum(), x)[0].abs().sum((0, 1)) > 0
        reached[kind] = bool(seen[4:, 4:].any())
    assert reached == {"window": False, "shifted": True}


@pytest.mark.parametrize("kind", ["band", "neighbourhood"])
def test_padding_of_windows_does_not_leak(kind):
    """On a 6 x 7 map in windows of 4, values in the padding do not change what real tokens get."""
    from vim_compress.sliding import SlidingAttention
    from vim_compress.windows import crop, join_windows, pad_to_windows, split_windows

    attention = SlidingAttention(8, heads=2, head_dim=4, gates=False, kind=kind, window=4, shift=0, reach=3)
    x = pad_to_windows(torch.randn(1, 6, 7, 8), 4)
    spoiled = x.clone()
    spoiled[:, 6:] = 50.0
    spoiled[:, :, 7:] = 50.0
    place = (2, 2, 6, 7)
    results = [crop(join_windows(attention(split_windows(v, 4), place), 4, (2, 2)), 6, 7) for v in (x, spoiled)]
    assert torch.equal(*results)


@pytest.mark.parametrize("mixer", ["mamba2", "s4", "s4d", "s5"])
@pytest.mark.parametrize("name", [VIM, HYBRID])
def test_other_state_space_models_run_and_train(name, mixer):
    model = make(name, mixer=mixer)
    y = model.train()(image(model, 4))
    assert y.shape == (4, 3)
    gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()), allow_unused=True)
    dead = [n for (n, _), g in zip(model.named_parameters(), gradients, strict=True) if g is None]
    assert dead == []
    found = model_info(model.config)  # which builds it without numbers
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["total_macs"] > 0
    assert {n for n, _ in model.named_parameters() if n.endswith(("log_step", "A_log", "log_A_real"))} <= (
        model.no_weight_decay()
    )


@pytest.mark.parametrize("mixer", ["mamba2", "s4", "s4d", "s5"])
def test_other_models_see_both_ends_in_vim(mixer):
    block = make(VIM, mixer=mixer).layers[0].mixer
    x = torch.randn(1, 17, 16, requires_grad=True)
    y = block(x)
    for by, of in ((0, 16), (16, 0)):
        assert torch.autograd.grad(y[0, by].sum(), x, retain_graph=True)[0][0, of].abs().max() > 0


def test_mamba2_averages_both_directions_and_gates_them():
    """Against the operator that runs both ends; the scan halves B and D in place of the sum."""
    torch.manual_seed(0)
    scan = Mamba2Scan(8, 4, bidirectional=True).double()
    x, z = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    ends = []
    for suffix in ("", "_b"):
        B, C, dt = (x @ scan.get_parameter(f"proj{suffix}.weight").mT).split([4, 4, 1], -1)
        A, D, bias = (scan.get_parameter(f"{name}{suffix}") for name in ("A_log", "D", "dt_bias"))
        ends += [x[:, :, None], dt, -A.exp(), B[:, :, None], C[:, :, None], D, bias]
    expected = ssd_bidirectional(*ends, z=z[:, :, None], average=True).flatten(2)
    torch.testing.assert_close(scan(x, z=z), expected)


@pytest.mark.parametrize("mixer", ["s4", "s4d", "s5"])
def test_scaling_the_step_is_another_resolution(mixer):
    """A smooth signal sampled twice as finely, with half the step, gives the same output at the same places."""
    from vim_compress.linear import make_ssm

    torch.manual_seed(0)
    ssm = make_ssm(mixer, 4, 8, bidirectional=True)
    t = torch.linspace(0, 1, 128)[None, :, None]
    wave = torch.sin(6 * t + torch.arange(4.0))
    coarse, fine = ssm(wave[:, ::2]), ssm(wave, step_scale=0.5)
    wrong = ssm(wave)
    error = (fine[:, ::2] - coarse)[:, 8:-8].abs().mean()
    assert error < 0.35 * (wrong[:, ::2] - coarse)[:, 8:-8].abs().mean()


def test_only_the_selective_scan_takes_the_other_options():
    with pytest.raises(ValueError, match="mixer must be 'mamba'"):
        VimConfig(mixer="s4d", token_conv="depthwise2d")
