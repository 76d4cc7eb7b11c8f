"""The network: exact sizes, padding, saving and loading, compilation, recomputation."""

import json
from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing
from hybrid_sr.blocks import DynamicPositionBias, GatedConvMlp, SpatialGateMlp, overlap_index_rotation
from hybrid_sr.config import PRESETS, ModelConfig, preset
from hybrid_sr.model import HybridSR, pad_to_multiple
from hybrid_sr.recompute import _GeluLinear, gelu_linear
from hybrid_sr.weights import load_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

TOTALS = {  # preset -> parameters at x2, x3, x4
    "contrast-baseline": (729_984, 736_479, 745_572),
    "contrast-no-pe": (702_606, 709_101, 718_194),
    "contrast-no-pe-no-cab": (746_670, 753_975, 764_202),
    "mamba": (739_632, 747_747, 759_108),
    "hat-light": (755_511, 762_006, 771_099),
    "contrast-s": (7_402_295, 7_586_935, 7_550_007),
    "contrast-dwconv": (776_910, 784_215, 794_442),
    "contrast-gcffn": (943_122, 950_427, 960_654),
}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(config: ModelConfig) -> HybridSR:
    with torch.device("meta"):
        return HybridSR(config)


@pytest.fixture
def tiny() -> HybridSR:
    torch.manual_seed(0)
    return HybridSR(preset("tiny", 2)).eval()


@pytest.mark.parametrize("name", TOTALS)
def test_parameter_totals(name):
    assert tuple(count(on_meta(preset(name, scale))) for scale in (2, 3, 4)) == TOTALS[name]


def test_every_preset_but_tiny_has_a_published_total():
    assert set(PRESETS) - {"tiny"} == set(TOTALS)


@pytest.mark.parametrize(
    ("changes", "total"),
    [  # the paired ablations of the Contrast repository: 120 channels, 6 groups, GCFFN
        ({}, 6_853_179),
        ({"final_norm": False}, 6_852_939),
        ({"final_norm": False, "upsampler": "direct"}, 6_538_488),
        ({"dim": 114, "depths": (6,) * 8, "ffn": "mlp", "final_norm": False}, 6_568_245),
    ],
)
def test_totals_of_other_published_configurations(changes, total):
    config = replace(preset("contrast-gcffn", 4), dim=120, depths=(6,) * 6, upsampler="pixelshuffle", final_norm=True)
    assert count(on_meta(replace(config, **changes))) == total


@pytest.mark.parametrize(
    ("name", "expected"),  # mixer, CAB, feed-forward, block, overlapping attention, first group
    [
        ("contrast-baseline", (7_296, 14_033, 9_360, 30_881, 28_086, 234_156)),
        ("contrast-no-pe", (7_296, 14_033, 9_360, 30_881, 18_960, 225_030)),
        ("contrast-no-pe-no-cab", (9_288, None, 11_826, 21_330, 23_922, 178_200)),
        ("mamba", (11_040, None, 14_580, 25_860, None, 161_760)),
        ("hat-light", (15_174, 14_033, 9_360, 38_759, 28_086, 242_665)),
        ("contrast-s", (61_800, None, 69_750, 132_150, 164_323, 1_159_873)),
    ],
)
def test_sub_totals(name, expected):
    mixer, cab, ffn, block, overlap, group = expected
    model = on_meta(preset(name, 4))
    first = model.get_submodule("groups.0")
    parts = dict(first.get_submodule("blocks.0").named_children())
    assert count(parts["mixer"]) == mixer
    assert (count(parts["channel_attention"]) if "channel_attention" in parts else None) == cab
    assert count(parts["ffn"]) == ffn
    assert count(first.get_submodule("blocks.0")) == block
    assert ("overlap" in dict(first.named_children())) == (overlap is not None)
    if overlap is not None:
        assert count(first.get_submodule("overlap")) == overlap
    assert count(first) == group
    dim = model.config.dim
    assert count(model.stem) == 28 * dim
    assert count(model.body_conv) == 9 * dim * dim + dim


def test_closed_forms_of_the_feed_forward_parts():
    for dim in (54, 150):
        assert count(SpatialGateMlp(dim, 2 * dim)) == 3 * dim**2 + 15 * dim
        assert count(GatedConvMlp(dim, 2 * dim)) == 6 * dim**2 + 25 * dim
    assert count(DynamicPositionBias(150, 6, 16, 24, False)) == 3_373
    assert overlap_index_rotation(16, 24) == 880


@pytest.mark.parametrize("name", ("contrast-no-pe-no-cab", "contrast-dwconv", "contrast-gcffn", "contrast-s"))
def test_final_norm_costs_two_parameters_a_channel(name):
    """And it is the only difference: every other name and shape stays."""
    config = preset(name, 4)
    with_norm, without = (on_meta(replace(config, final_norm=on)).state_dict() for on in (True, False))
    assert set(with_norm) - set(without) == {"final_norm.weight", "final_norm.bias"}
    assert {k: v.shape for k, v in without.items()} == {k: with_norm[k].shape for k in without}
    assert config.final_norm == (name in ("contrast-no-pe-no-cab", "contrast-dwconv"))


def test_final_norm_acts(tiny):
    x = torch.rand(1, 3, 8, 8)
    bare = HybridSR(replace(tiny.config, final_norm=False))
    bare.load_state_dict({k: v for k, v in tiny.state_dict().items() if not k.startswith("final_norm")})
    assert (tiny(x) - bare(x)).abs().max() > 1e-3


@pytest.mark.parametrize("size", ((8, 16), (1, 1), (7, 9), (3, 20), (17, 8), (1, 12)))
@pytest.mark.parametrize("scale", (1, 2, 3))
def test_padding_equals_manual_padding_and_crop(size, scale):
    torch.manual_seed(1)
    model = HybridSR(preset("tiny", scale)).eval()
    x = torch.rand(2, 3, *size)
    padded = x
    for axis, dim in ((2, (0, 0, 0, 1)), (3, (0, 1, 0, 0))):
        missing = -size[axis - 2] % 8
        mode = "reflect" if missing < size[axis - 2] else "replicate"
        if missing:
            padded = F.pad(padded, tuple(missing * d for d in dim), mode=mode)
    with torch.no_grad():
        whole, ours = model(padded), model(x)
    assert ours.shape == (2, 3, scale * size[0], scale * size[1])
    torch.testing.assert_close(ours, whole[..., : scale * size[0], : scale * size[1]], rtol=0, atol=1e-6)


def test_multiples_are_not_padded():
    x = torch.rand(1, 3, 16, 32)
    assert pad_to_multiple(x, 16) is x


@pytest.mark.parametrize("shape", ((3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (1, 8, 8, 3)))
def test_wrong_shapes_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"HybridSR: x must be \(B, 3, H, W\) with H, W >= 1"):
        tiny(torch.zeros(shape))


def test_mean_is_taken_off_and_put_back(tiny):
    """With all weights zero the picture is the mean colour, whatever comes in."""
    for p in tiny.parameters():
        torch.nn.init.zeros_(p)
    out = tiny(torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.4488, 0.4371, 0.4040]))
    assert "rgb_mean" not in tiny.state_dict()


@pytest.mark.parametrize("name", ("tiny", "hat-light"))
def test_save_and_load(tmp_path, name):
    config = replace(preset(name, 2), dim=12, depths=(2,), heads=2, window=8, squeeze_factor=6)
    model = HybridSR(config).eval()
    model.save_pretrained(tmp_path)
    assert ModelConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == config
    again = HybridSR.from_pretrained(tmp_path)
    assert again.config == config
    assert not again.training
    x = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_loading_says_nothing(tmp_path, tiny, capsys):
    """Commands print JSON on stdout."""
    tiny.save_pretrained(tmp_path)
    HybridSR.from_pretrained(tmp_path)
    assert capsys.readouterr().out == ""


def test_half_precision_files_load_as_float32(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(file).items()}, file)
    again = HybridSR.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for ours, theirs in zip(again.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_loading_is_strict(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "stem_norm" not in k}, file)
    with pytest.raises(RuntimeError, match="stem_norm"):
        HybridSR.from_pretrained(tmp_path)


@pytest.fixture
def shallow() -> HybridSR:
    """One block: compilation takes its time by the layer."""
    torch.manual_seed(0)
    return HybridSR(replace(preset("tiny", 2), depths=(1,))).eval()


@pytest.mark.slow  # symbolic sizes cost the compiler ten seconds
def test_compiles_whole_and_once_for_all_sizes(shallow):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(shallow, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    with torch.no_grad():
        for size in ((16, 24), (8, 40), (32, 32)):
            x = torch.rand(2, 3, *size)
            torch.testing.assert_close(compiled(x), shallow(x), rtol=1e-5, atol=1e-6)
            counts.append(counter.frame_count)
    assert counts[0] == counts[-1]  # nothing was compiled again


def test_compiles_whole_with_padding(shallow):
    torch._dynamo.reset()
    x = torch.rand(1, 3, 9, 3)
    compiled = torch.compile(shallow, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), shallow(x), rtol=1e-5, atol=1e-6)


def test_exports_with_free_sizes(shallow):
    dim = torch.export.Dim
    free = {"x": {0: dim("batch", max=64), 2: 8 * dim("rows", max=100), 3: 8 * dim("columns", max=100)}}
    program = torch.export.export(shallow, (torch.rand(2, 3, 16, 24),), dynamic_shapes=free)
    x = torch.rand(3, 3, 32, 16)
    torch.testing.assert_close(program.module()(x), shallow(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", (False, True))
def test_recomputation_changes_nothing(tiny, autocast):
    x = torch.rand(1, 3, 8, 8)
    grads = []
    for checkpointing in (False, True):
        tiny.checkpointing = checkpointing
        tiny.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = tiny(x)
        y.float().abs().mean().backward()
        grads.append([p.grad.clone() for p in tiny.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.isfinite(plain).all()
        assert torch.equal(plain, recomputed)


def test_recomputation_keeps_fewer_activations(tiny):
    kept = []
    for checkpointing in (False, True):
        tiny.checkpointing = checkpointing
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            tiny(torch.rand(1, 3, 16, 16))
        kept.append(sum(sizes))
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_gets_a_gradient(name):
    """Distributed training stops at a parameter that takes no part."""
    config = replace(preset(name, 2), dim=12, heads=2, depths=(2,), window=8, squeeze_factor=6)
    model = HybridSR(config)
    model(torch.rand(1, 3, 8, 8)).square().mean().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
def test_other_dtypes(tiny, dtype):
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        wide, out = tiny(x), tiny.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert (out - wide).abs().max() < 0.02


def test_autocast_does_not_round_pixels():
    """In grey levels; 0.24 with the first and the last convolution in bfloat16."""
    model = load_model(scale=4)
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    picture = torch.stack([0.4 + 0.5 * x, 0.9 - 0.3 * y * x, 0.5 + 0.4 * y])[None]
    with torch.inference_mode():
        exact = model(picture)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(picture)
    assert half.dtype == torch.float32
    assert 255 * (half - exact).square().mean().sqrt() < 0.17


def test_initial_weights_follow_the_published_rules():
    torch.manual_seed(0)
    model = HybridSR(preset("contrast-no-pe-no-cab", 2))
    block = model.get_submodule("groups.0.blocks.0")
    for name in ("mixer.in_proj", "mixer.out_proj", "ffn.expand", "ffn.reduce"):
        layer = block.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.bias is None or not layer.bias.any()
    assert (block.get_submodule("mixer").Ds == 1).all()


@pytest.mark.parametrize("bias", [True, False])
def test_recomputed_activation_has_the_same_gradients(bias):
    """What a GPU keeps of a feed-forward part in training: outputs and gradients as without, in float64."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4, bias=bias).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_GeluLinear.apply, (x, layer.weight, layer.bias))
    torch.testing.assert_close(_GeluLinear.apply(x, layer.weight, layer.bias), gelu_linear(x, layer))
    with torch.autocast("cpu", torch.bfloat16):
        y = _GeluLinear.apply(x.float(), layer.weight.float(), None)
    assert y is not None and y.dtype == torch.bfloat16
    y.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ("contrast-no-pe-no-cab", "contrast-s", "hat-light"))
def test_gpu_equals_cpu(name):
    torch.manual_seed(0)
    model = HybridSR(replace(preset(name, 2), depths=(2,))).eval()
    x = torch.rand(1, 3, 40, 32)
    with torch.no_grad():
        cpu = model(x)
        gpu = model.cuda()(x.cuda()).cpu()
    assert (cpu - gpu).abs().max() < 1e-3
