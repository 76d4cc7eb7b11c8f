"""A cut network computes what the full one computes with the same units masked, and saves and loads like any other."""

import pytest
import timm
import torch
import vim_compress.models  # noqa: F401  (registers the networks)
from vim_compress.axes import AXES, find_axes
from vim_compress.cut import (
    cut,
    cut_residual,
    direction_tensors,
    fold_gates,
    mask,
    remove_blocks,
    remove_direction,
    residual_tensors,
)
from vim_compress.weights import load_model

NAMES = ["vim_test_patch4_16", "mambavision_test_32"]


def disturb(model):
    """Give every parameter and statistic a value of its own, so that nothing hides behind a zero or a one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(torch.rand_like(buffer))
            elif name.endswith("running_mean"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    return model.double().eval()


def network(name, **options):
    torch.manual_seed(0)
    return disturb(timm.create_model(name, num_classes=5, **options))


def image(model):
    torch.manual_seed(2)
    return torch.randn(2, 3, *model.config.image, dtype=torch.float64)


def some(axis, share=0.6):
    """Keep about this share of the units, by chance."""
    generator = torch.Generator().manual_seed(axis.size)
    count = max(1, round(share * axis.size))
    return sorted(torch.randperm(axis.size, generator=generator)[:count].tolist())


def assert_same(a, b):
    with torch.no_grad():
        x = image(a)
        truth = b(x)
        assert (a(x) - truth).abs().max() < 1e-9 * truth.abs().max() + 1e-12


CASES = [(name, kind, {}) for name in NAMES for kind in AXES[name.partition("_")[0]]]
CASES += [("mambavision_test_32", "inner", {"conv_blocks": "separable"})]
CASES += [("vim_test_patch4_16", "inner", {"token_conv": "depthwise2d"})]
CASES += [(name, "gates", {"gates": True}) for name in NAMES]


@pytest.mark.parametrize(("name", "kind", "options"), CASES)
def test_masked_is_cut(name, kind, options, tmp_path):
    model = network(name, **options)
    kinds = AXES[model.config.family] if kind == "gates" else (kind,)
    kept = {axis.name: some(axis) for axis in find_axes(model, kinds)}
    assert kept
    full = sum(p.numel() for p in model.parameters())
    small = cut(model, kept)
    mask(model, kept)
    assert_same(small, model)
    assert sum(p.numel() for p in small.parameters()) < full
    small.float().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == small.config
    with torch.no_grad():
        x = image(small).float()
        assert torch.equal(loaded(x), small(x))


def test_masking_changes_something():
    """The oracle above would be empty if masks did nothing."""
    model = network("vim_test_patch4_16")
    x = image(model)
    before = model(x)
    mask(model, {"layers.0.inner": range(10)})
    assert (model(x) - before).abs().max() > 1e-3


def test_half_of_the_inner_channels_of_published_sizes():
    """Parameters at 50 % of d_inner: T 3.77 M, S 13.28 M, B 49.57 M."""
    from vim_compress.config import VimConfig
    from vim_compress.models import make_network

    for dim, wanted in ((192, 3.77), (384, 13.28), (768, 49.57)):
        widths = {f"layers.{i}.inner": dim for i in range(24)}
        with torch.device("meta"):
            model = make_network(VimConfig(dim=dim, widths=widths))
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - wanted) < 0.01


def test_removed_blocks_are_blocks_without_output():
    model = network("vim_test_patch4_16", depth=3, widths={"layers.2.inner": 20})
    small = remove_blocks(model, [1])
    with torch.no_grad():
        model.layers[1].mixer.out_proj.weight.zero_()
    assert_same(small, model)
    assert small.config.depth == 2
    assert small.config.inner(1) == 20
    with pytest.raises(ValueError, match="not all"):
        remove_blocks(model, [0, 1, 2])


@pytest.mark.parametrize("backward", [True, False])
def test_removed_direction_is_a_direction_without_output(backward):
    model = network("vim_test_patch4_16")
    small = remove_direction(model, 1, backward=backward)
    mixer, s = model.layers[1].mixer, "_b" if backward else ""
    with torch.no_grad():
        mixer.get_parameter(f"D{s}").zero_()
        mixer.get_parameter(f"x_proj{s}.weight")[model.config.rank :].zero_()
    assert_same(small, model)
    gone = set(model.state_dict()) - set(small.state_dict())
    assert gone == {f"layers.1.mixer.{n}" for n in direction_tensors(backward) if "conv2d" not in n}
    with pytest.raises(ValueError, match="two directions"):
        remove_direction(small, 1, backward=not backward)


@pytest.mark.parametrize("stem", ["patch", "mobilenet"])
def test_cut_residual_stream_is_a_masked_one(stem):
    model = network("vim_test_patch4_16", stem=stem)
    kept = [0, 1, 2, 5, 7, 8, 9, 12, 15]
    small = cut_residual(model, kept)
    tensors = dict(model.named_parameters())
    gone = [i for i in range(16) if i not in kept]
    with torch.no_grad():
        for name, dim in residual_tensors(model.state_dict()).items():
            tensors[name].index_fill_(dim, torch.tensor(gone), 0.0)
    assert_same(small, model)
    assert (small.config.dim, small.config.rank, small.config.inner(0)) == (9, 1, 32)
    fewer = cut_residual(remove_blocks(small, [1]), range(7))
    assert fewer(image(model)).isfinite().all()


def test_squeezed_output_keeps_the_residual_stream_whole():
    with pytest.raises(ValueError, match="squeeze-and-excitation of the output"):
        cut_residual(network("vim_test_patch4_16", se="output"), range(9))


def test_cuts_can_follow_one_another():
    model = network("vim_test_patch4_16", depth=3)
    small = cut(model, {"layers.0.inner": range(8), "layers.2.state": [0, 2]})
    small = remove_blocks(small, [1])
    small = cut(small, {"layers.1.inner": range(5)})
    small = cut_residual(small, range(12))
    assert small.config.inner(0) == 8
    assert small.config.inner(1) == 5
    assert small.config.state(1) == (2, 4)
    assert small(image(model)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_folded_gates_compute_the_same(name):
    model = network(name, gates=True)
    folded = fold_gates(model)
    assert not [n for n in folded.state_dict() if "gate" in n]
    assert_same(folded, model)


def test_bad_cuts_are_named():
    model = network("vim_test_patch4_16")
    with pytest.raises(ValueError, match=r"axes of this network"):
        cut(model, {"layers.9.inner": [0]})
    with pytest.raises(ValueError, match="at least one of 0 to 31"):
        cut(model, {"layers.0.inner": []})
    with pytest.raises(ValueError, match="inner, state for vim"):
        find_axes(model, ("heads",))
    with pytest.raises(ValueError, match="'inner'"):
        find_axes(network("vim_test_patch4_16", se="inner"))
