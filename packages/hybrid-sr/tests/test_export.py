"""Networks for other programs: ONNX files upscale like PyTorch, weights go to published layouts, spandrel and back."""

import json

import numpy as np
import pytest
import torch
from hybrid_sr import cli
from hybrid_sr.config import ModelConfig, preset
from hybrid_sr.deduce import deduce_config
from hybrid_sr.export import export
from hybrid_sr.images import Picture, read_picture, write_picture
from hybrid_sr.keymap import from_published, overlap_index, published_config, to_published, window_index
from hybrid_sr.model import HybridSR
from hybrid_sr.onnxnet import OnnxNetwork
from hybrid_sr.spandrel_arch import register
from hybrid_sr.weights import load_model
from safetensors import safe_open
from spandrel import ArchRegistry, ModelLoader
from spandrel.architectures.HAT import HAT

SMALL = ModelConfig(scale=2, dim=12, depths=(1,), heads=2, window=8)
CASES = ("no-pe-no-cab", "mamba", "hat-light", "gcffn", "dwconv-ffn", "contrast-s", "baseline")


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network, its folder, and an ONNX file of open size."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    model = HybridSR(SMALL).eval()
    for x in model.parameters():
        torch.nn.init.normal_(x, std=0.2) if x.ndim > 1 else None  # an untrained one would hardly differ from bicubic
    model.save_pretrained(folder / "model")
    export(model, folder / "open.onnx")
    return model, folder


@pytest.fixture(scope="module")
def fixed(small):
    """An ONNX file for pictures of 64 x 64."""
    model, folder = small
    export(model, folder / "fixed.onnx", height=64, width=64)
    return folder / "fixed.onnx"


@pytest.mark.parametrize("size", ((64, 64), (75, 101), (30, 17)))
def test_upscaling_by_onnxruntime_gives_the_same_picture(small, tmp_path, size):
    """Any size from one file: padded to windows, cut, in tiles as by PyTorch; at most one grey level apart."""
    _, folder = small
    write_picture(Picture(picture(*size)), tmp_path / "a.png")
    common = ["upscale", str(tmp_path / "a.png"), "--scale", "2", "--tile", "64"]
    assert cli.main([*common, "--weights", str(folder / "model"), "--out", str(tmp_path / "torch.png")]) == 0
    runtime = ["--weights", str(folder / "open.onnx"), "--backend", "onnxruntime"]
    assert cli.main([*common, *runtime, "--out", str(tmp_path / "ort.png")]) == 0
    ours, theirs = (read_picture(tmp_path / name).pixels.astype(int) for name in ("torch.png", "ort.png"))
    assert ours.shape == (2 * size[0], 2 * size[1], 3)
    assert ours.std() > 10  # a picture, not a constant
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.slow
def test_fixed_files_take_their_size_and_are_filled_below(small, fixed):
    model, _ = small
    network = OnnxNetwork(fixed, threads=1)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), rtol=1e-5, atol=1e-5)
    assert network(x[:, :, :50, :41]).shape == (1, 3, 100, 82)
    with pytest.raises(ValueError, match="tile must be at most 64x64, the size in the file, got 72x64; add --tile 64"):
        network(torch.rand(1, 3, 64, 65))


@pytest.mark.slow
def test_fixed_files_choose_the_tile(fixed, tmp_path):
    write_picture(Picture(picture(100, 70)), tmp_path / "a.png")
    runtime = ["--weights", str(fixed), "--backend", "onnxruntime"]
    assert cli.main(["upscale", str(tmp_path / "a.png"), "--scale", "2", *runtime]) == 0
    assert read_picture(tmp_path / "a_x2.png").height == 200


def test_torch_export_program(small, tmp_path):
    model, _ = small
    export(model, tmp_path / "net.pt2", height=16, width=24)
    program = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["--backend", "onnxruntime"], "weights must be an .onnx file for --backend onnxruntime"),
        (["--backend", "onnxruntime", "--precision", "bf16"], "--backend onnxruntime: runs in fp32 on the CPU"),
        (["--backend", "onnxruntime", "--weights", "text.onnx"], "is no network written by `hybrid-sr export`"),
    ),
)
def test_mistakes_with_onnx_files(tmp_path, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    write_picture(Picture(picture(16, 16)), tmp_path / "a.png")
    assert cli.main(["upscale", "a.png", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_export_verb(small, tmp_path, capsys):
    _, folder = small
    base = ["--weights", str(folder / "model"), "--scale", "2"]
    for name in ("net.safetensors", "net.pth", "half"):
        assert cli.main(["export", str(tmp_path / name), *base, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["config"]["dim"] == 12
        assert load_model(tmp_path / name, scale=2).config == SMALL  # no flags: the file knows
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as file:
        assert file.get_tensor("stem.weight").dtype == torch.float16
    assert cli.main(["export", str(tmp_path / "net.pth"), *base]) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "net.tflite"), *base]) == 2
    assert "must be one ending in .onnx, .pt2, .safetensors, .pth, or a folder" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "n.onnx"), *base, "--height", "20", "--width", "16"]) == 2
    assert "height must be a multiple of 8, got 20; try 16 or 24" in capsys.readouterr().err
    assert not (tmp_path / "n.onnx").exists()


def test_index_tables_are_the_published_ones(golden):
    stored = golden("position-indices").under("state.")
    np.testing.assert_array_equal(window_index(16), stored["relative_position_index_SA"])
    np.testing.assert_array_equal(overlap_index(16, 24), stored["relative_position_index_OCA"])


@pytest.mark.parametrize("case", CASES)
def test_published_weights_come_back_as_they_were(golden, case):
    """Into our names and layout and back: every published name, every bit, the rotated table included."""
    file = golden(f"sr-{case}")
    state = {k: torch.from_numpy(v.copy()) for k, v in file.under("state.").items()}
    state |= {k: torch.randn(shape) for k, shape in file.meta.get("omitted_state", {}).items()}
    config = published_config(deduce_config(state))
    ours = from_published(state, config)
    HybridSR(config).load_state_dict(ours)
    back = to_published(ours, config)
    for name, tensor in state.items():
        if not name.endswith("relative_coords_table"):
            assert torch.equal(back[name], tensor), name
    assert {name for name in back if name not in state} <= {"relative_position_index_SA", "relative_position_index_OCA"}


@pytest.mark.parametrize(
    "name", ("contrast-baseline", "mamba", "hat-light", "contrast-s", "contrast-dwconv", "contrast-gcffn")
)
def test_configurations_are_deduced_from_shapes(name):
    """Of every preset at every scale, from its published state dict alone."""
    for scale in (2, 3, 4):
        config = published_config(preset(name, scale))
        with torch.device("meta"):
            published = to_published(HybridSR(config).state_dict(), config)
        assert published_config(deduce_config(published)) == config


def hat(**changes):
    torch.manual_seed(3)
    sizes = {"embed_dim": 36, "depths": [2, 3], "num_heads": [6, 6], "window_size": 16, "compress_ratio": 3}
    more = {"squeeze_factor": 30, "mlp_ratio": 2, "upscale": 4, "num_feat": 16, "overlap_ratio": 0.5}
    net = HAT(in_chans=3, img_size=64, upsampler="pixelshuffle", **{**sizes, **more, **changes}).eval()
    for x in net.parameters():
        if x.ndim == 1:
            torch.nn.init.normal_(x, std=0.1)  # biases and norms of an untrained network would hide mistakes
    return net


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of spandrel's HAT
@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"window_size": 8, "num_heads": [4], "depths": [2], "embed_dim": 32, "upscale": 3, "num_feat": 64},
        {"compress_ratio": 24, "squeeze_factor": 24, "embed_dim": 48, "depths": [1], "num_heads": [6], "upscale": 2},
    ),
)
def test_hat_checkpoints_load_and_compute_the_same(tmp_path, changes):
    """HAT as spandrel implements it, of sizes that no preset of ours has, read from a .pth as its authors write it."""
    theirs = hat(**changes)
    torch.save({"params_ema": theirs.state_dict(), "params": theirs.state_dict()}, tmp_path / "HAT.pth")
    ours = load_model(tmp_path / "HAT.pth", scale=changes.get("upscale", 4))
    x = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_our_window_attention_loads_as_hat(tmp_path):
    """A network of ours with HAT's upsampler, exported under published names, is a HAT for who knows HAT."""
    torch.manual_seed(0)
    config = ModelConfig(
        **{
            **preset("hat-light", 2).to_dict(),
            "upsampler": "pixelshuffle",
            "upsampler_dim": 16,
            "depths": (2,),
            "rgb_mean": (0.4488, 0.4371, 0.404),
        }
    )
    ours = HybridSR(config).eval()
    export(ours, tmp_path / "hat.pth", layout="published")
    theirs = ModelLoader().load_from_file(tmp_path / "hat.pth").eval()
    assert theirs.architecture.id == "HAT" and theirs.scale == 2
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.model(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("suffix", (".safetensors", ".pth"))
def test_spandrel_loads_our_files(small, tmp_path, suffix):
    model, _ = small
    export(model, tmp_path / f"net{suffix}")
    registry = ArchRegistry()
    register(registry)
    register(registry)
    loaded = ModelLoader(registry=registry).load_from_file(tmp_path / f"net{suffix}")
    assert (loaded.architecture.id, loaded.scale, loaded.input_channels) == ("hybrid-sr", 2, 3)
    x = torch.rand(1, 3, 21, 33)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x).clamp(0, 1))


def test_networks_that_the_published_code_lacks_are_refused():
    for field, value, message in (
        ("residual_scale", 0.2, "residual_scale must be 1.0, as the published code has it, got 0.2"),
        ("ffn", "geglu", "as the published code has it, got"),
    ):
        config = ModelConfig(**{**SMALL.to_dict(), "window": 16, "heads": 6, field: value})
        with pytest.raises(ValueError, match=message):
            to_published(HybridSR(config).state_dict(), config)
    config = ModelConfig(**{**preset("contrast-s", 2).to_dict(), "depths": (1,)})
    with pytest.raises(ValueError, match="rotated_overlap_index must be True"):
        to_published(HybridSR(config).state_dict(), config)
