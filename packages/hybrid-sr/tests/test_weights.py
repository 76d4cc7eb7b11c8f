"""Where weights come from: folders, files, published checkpoints under their own names; and what is refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hybrid_sr import cli
from hybrid_sr import weights as weights_module
from hybrid_sr.config import PRESETS, ModelConfig, preset
from hybrid_sr.keymap import fitting_presets, from_published, is_published, published_config, unwrap
from hybrid_sr.model import HybridSR
from hybrid_sr.weights import load_model, shipped, shipped_models, start_from
from safetensors.torch import load_file, save_file

SMALL = ModelConfig(scale=2, dim=36, depths=(2,), channel_attention=True, position="table")


@pytest.fixture
def small(monkeypatch):
    """A preset of the size of the golden baseline, at every scale."""
    monkeypatch.setitem(PRESETS, "small", lambda scale: replace(SMALL, scale=scale))
    return "small"


def published_state(golden):
    return {k: torch.from_numpy(v.copy()) for k, v in golden("sr-baseline").under("state.").items()}


@pytest.fixture
def published(golden):
    return published_state(golden)


@pytest.fixture
def saved(tmp_path):
    """A tiny x2 model in a folder."""
    torch.manual_seed(0)
    HybridSR(preset("tiny", 2)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("wrapper", (None, "params", "params_ema", "state_dict"))
@pytest.mark.parametrize("name", ("small", None))
@pytest.mark.usefixtures("small")
def test_published_checkpoint(tmp_path, golden, wrapper, name):
    """With and without a name: the network is found by its shapes."""
    file, published = tmp_path / "net.pth", published_state(golden)
    torch.save(published if wrapper is None else {wrapper: published, "iter": 5}, file)
    model = load_model(file, preset=name, scale=2, dtype=torch.float64)
    reference = golden("sr-baseline")
    with torch.no_grad():
        y = model(torch.from_numpy(reference["input.x"]).double())
    np.testing.assert_allclose(y[..., ::5, ::5].numpy(), reference["output.y"], rtol=0, atol=1e-13)
    assert not model.training


def test_average_is_preferred(published):
    other = {k: v + 1 for k, v in published.items()}
    assert unwrap({"params": published, "params_ema": other})["conv_first.bias"] is other["conv_first.bias"]


def test_published_safetensors_and_parallel_prefix(tmp_path, published, small):
    save_file(published, tmp_path / "net.safetensors")
    torch.save({f"module.{k}": v for k, v in published.items()}, tmp_path / "net.pt")
    one, two = (load_model(tmp_path / f, preset=small, scale=2) for f in ("net.safetensors", "net.pt"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_buffers_of_the_published_code_may_be_there(golden, published):
    """Index tables and masks are part of original state dicts; ours computes them."""
    tables = golden("position-indices").under("state.")
    full = published | {k: torch.from_numpy(v.astype(np.int64)) for k, v in tables.items()}
    full |= {"layers.0.residual_group.blocks.1.attn_mask": torch.zeros(4, 256, 256)}
    assert from_published(full, SMALL).keys() == from_published(published, SMALL).keys()


@pytest.mark.parametrize("case", ("no-pe-no-cab", "mamba", "hat-light", "gcffn", "dwconv-ffn", "contrast-s"))
def test_published_names_are_recognised(golden, case):
    state = {k: torch.from_numpy(v.copy()) for k, v in golden(f"sr-{case}").under("state.").items()}
    assert is_published(state)
    renamed = from_published(state, preset("contrast-s" if case == "contrast-s" else "hat-light", 4))
    assert not is_published(renamed)
    assert all(v.ndim != 4 or v.shape[-1] == 3 for v in renamed.values())  # 1 x 1 convolutions are matrices


def test_foreign_keys_are_named(published):
    with pytest.raises(ValueError, match=r"the key 'encoder\.0\.weight'"):
        from_published(published | {"encoder.0.weight": torch.zeros(1)}, SMALL)
    with pytest.raises(ValueError, match=r"upsampler='direct', got the key 'conv_last.weight'"):
        from_published(published | {"conv_last.weight": torch.zeros(1)}, SMALL)


def test_generated_bias_of_published_weights_is_rotated():
    assert published_config(preset("contrast-s", 4)).rotated_overlap_index
    assert not published_config(preset("hat-light", 4)).rotated_overlap_index


def test_missing_and_unexpected_keys_are_named(tmp_path, published, small):
    del published["norm.bias"]
    published["layers.1.conv.bias"] = torch.zeros(36)
    torch.save(published, tmp_path / "net.pth")
    message = r"1 missing final_norm.bias; 1 unexpected groups.1.conv.bias; no preset fits it"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "net.pth", preset=small, scale=2)


def test_wrong_preset_says_what_fits(tmp_path, published, small):
    torch.save(published, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"does not fit contrast-no-pe at scale 2: .*; it fits small"):
        load_model(tmp_path / "net.pth", preset="contrast-no-pe", scale=2)
    with pytest.raises(ValueError, match=r"scale 4: 2 of another shape.*it fits small at scale 2"):
        load_model(tmp_path / "net.pth", preset=small, scale=4)
    with pytest.raises(ValueError, match=r"scale must be 2, which .* was trained for, got 3"):
        load_model(tmp_path / "net.pth", scale=3)
    with pytest.raises(ValueError, match="unknown name 'smal'"):
        load_model(tmp_path / "net.pth", preset="smal", scale=2)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_shapes_tell_the_presets_apart(name):
    with torch.device("meta"):
        state = HybridSR(preset(name, 2)).state_dict()
    assert fitting_presets(state, 2) == [name]


def test_folder_file_and_dtype(saved):
    for path in (saved, saved / "model.safetensors", str(saved)):
        model = load_model(path, scale=2, dtype=torch.bfloat16)
        assert model.config == preset("tiny", 2)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_lone_file_of_ours(saved, tmp_path):
    os.rename(saved / "model.safetensors", tmp_path / "lone.safetensors")
    assert load_model(tmp_path / "lone.safetensors", scale=2).config == preset("tiny", 2)


def test_scale_must_be_that_of_the_weights(saved):
    with pytest.raises(ValueError, match=r"scale must be 2, which .* was trained for, got 4; use --scale 2"):
        load_model(saved, scale=4)


def test_bad_files(tmp_path, saved):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "a.onnx").write_text("hello")
    (tmp_path / "empty").mkdir()
    torch.save({"params": {"a": 1}}, tmp_path / "numbers.pth")
    state = load_file(saved / "model.safetensors")
    save_file({k: v for k, v in state.items() if "stem" not in k}, saved / "model.safetensors")
    for name, message in (
        ("missing.pth", "does not exist"),
        ("text.pth", "cannot be read as weights"),
        ("text.safetensors", "cannot be read as weights"),
        ("a.onnx", "a folder, .safetensors, .pth"),
        ("empty", "without config.json"),
        ("numbers.pth", r"\['a'\] that hold none"),
        ("model", "does not hold what its config.json says"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / name, preset="tiny", scale=2)


class Harmful:
    """Runs when a pickle is opened without care."""

    def __reduce__(self):
        return (os.mkdir, ("harmed",))


def test_pickles_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"params": Harmful()}, "net.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_model("net.pth", preset="tiny", scale=2)
    assert not (tmp_path / "harmed").exists()


def test_shipped_weights(monkeypatch, tmp_path, saved):
    monkeypatch.setattr(weights_module, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="one of: model, got contrast-no-pe-no-cab-x2"):
        load_model(scale=2)
    saved.rename(tmp_path / "tiny-x2")
    assert shipped_models() == ["tiny-x2"]
    assert shipped("tiny", 2) == tmp_path / "tiny-x2"
    assert load_model(preset="tiny", scale=2).config == preset("tiny", 2)
    with pytest.raises(ValueError, match="one of: tiny-x2, got tiny-x3; train it"):
        shipped("tiny", 3)


def test_everything_that_ships_loads():
    for name in shipped_models():
        kind, _, scale = name.rpartition("-x")
        assert load_model(preset=kind, scale=int(scale)).config == preset(kind, int(scale))


def test_start_from_takes_what_fits_and_names_the_rest(tmp_path):
    """Fine-tuning to another scale keeps the body; only the upsampler starts anew."""
    old, new = HybridSR(preset("tiny", 2)), HybridSR(preset("tiny", 4))
    before = {name: x.clone() for name, x in new.named_parameters()}
    old.save_pretrained(tmp_path / "model")
    anew = start_from(new, tmp_path / "model")
    assert anew == ["upsampler.conv.weight", "upsampler.conv.bias"]
    theirs = dict(old.named_parameters())
    for name, x in new.named_parameters():
        assert torch.equal(x, before[name] if name in anew else theirs[name]), name


def test_start_from_refuses_what_is_unrelated(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="init must be weights of a related network"):
        start_from(HybridSR(preset("tiny", 2)), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="init must be a model/ folder"):
        start_from(HybridSR(preset("tiny", 2)), tmp_path / "nothing")


def test_info_reports_every_name_of_a_file(tmp_path, published, small, capsys):
    """All of them, not the first few, and what happened to the overlapping attention's table."""
    torch.save({"params_ema": published | {"relative_position_index_OCA": torch.zeros(1)}}, tmp_path / "good.pth")
    assert cli.main(["info", "--weights", str(tmp_path / "good.pth"), "--scale", "2"]) == 0
    text = capsys.readouterr().out
    for line in ("small x2, published names", "renumbered from rotated", "computed here: relative_position_index_OCA"):
        assert line in text
    gone = [name for name in published if ".mlp.fc2." in name]
    for name in gone:
        del published[name]
    published |= {"encoder.weight": torch.zeros(3), "conv_first.bias": torch.zeros(35)}
    torch.save(published, tmp_path / "bad.pth")
    assert cli.main(["info", "--weights", str(tmp_path / "bad.pth"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["missing"]) == len(gone) > 3
    assert report["unexpected"] == ["encoder.weight"]
    assert report["shapes"] == {"stem.bias": {"found": [35], "wanted": [36]}}
    assert not report["fits"]
    assert cli.main(["info", "--weights", "nothing.pth"]) == 2
    assert "nothing.pth is no file" in capsys.readouterr().err
