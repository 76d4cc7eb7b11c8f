"""Pages and files for others: the HTML report, ONNX and torch.export programs, half-precision weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from muse_mamba.cli import main
from muse_mamba.config import model_preset
from muse_mamba.export import export
from muse_mamba.model import TokenModel
from muse_mamba.tokenizer import VQTokenizer


def test_report_shows_pictures_and_every_step(capsys, weights, byte_encoder, tmp_path):
    page = tmp_path / "page.html"
    given = ("--model", weights[0], "--tokenizer", weights[1], "--text-encoder", byte_encoder, "--html", page)
    argv = [str(item) for item in ("report", "a <red> apple", *given, "--num", "2", "--steps", "3")]
    assert main(argv) == 0
    text = page.read_text()
    assert "<h2>a &lt;red&gt; apple</h2>" in text
    assert text.count("data:image/png;base64,") == 2 + 2 * 3
    assert "mamba-xattn" in text
    assert "http" not in text
    capsys.readouterr()
    assert main(argv) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert main([*argv[:-6], "--html", str(tmp_path / "page.txt")]) == 2
    assert "--html: must be a file ending in .html" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["model", "encoder", "decoder"])
def test_program_computes_what_the_network_computes(part, tmp_path):
    torch.manual_seed(0)
    if part == "model":
        network = TokenModel(replace(model_preset("tiny"), method="attn-xz")).eval()
        inputs = (torch.randint(33, (3, 16)), torch.randn(3, 6, 8), torch.rand(3, 6) < 0.7)
        expected = network(*inputs).logits
    else:
        network = VQTokenizer(tiny_tokenizer()).eval()
        inputs = (torch.rand(3, 3, 64, 64),) if part == "encoder" else (torch.randint(32, (3, 16, 16)),)
        expected = network.encode(*inputs) if part == "encoder" else network.decode(*inputs)
    export(network, part, tmp_path / "n.pt2")
    again = torch.export.load(tmp_path / "n.pt2").module()
    torch.testing.assert_close(again(*inputs), expected, rtol=1e-4, atol=1e-5)


def tiny_tokenizer():
    from muse_mamba.tokenizer import tokenizer_preset

    return tokenizer_preset("tiny")


@pytest.mark.parametrize("part", ["model", "decoder"])
def test_onnx_computes_what_the_network_computes(part, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    if part == "model":
        network = TokenModel(replace(model_preset("tiny"), depth=1)).eval()
        inputs = (torch.randint(33, (3, 16)), torch.randn(3, 6, 8), torch.rand(3, 6) < 0.7)
        expected = network(*inputs).logits
    else:
        network = VQTokenizer(tiny_tokenizer()).eval()
        inputs = (torch.randint(32, (3, 16, 16)),)
        expected = network.decode(*inputs)
    names, outputs = export(network, part, tmp_path / "n.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(outputs, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_export_verb(capsys, weights, tmp_path):
    given = ("--model", str(weights[0]), "--tokenizer", str(weights[1]))
    assert main(["export", "--out", str(tmp_path / "m.safetensors"), *given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["inputs"] == ["ids", "text", "mask"]
    from safetensors import safe_open

    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert json.loads(file.metadata()["config"])["method"] == "mamba-xattn"
        assert file.get_tensor("head.weight").dtype == np.float16
    for argv, message in (
        (["--out", str(tmp_path / "m.safetensors")], "exists; add --overwrite"),
        (["--out", str(tmp_path / "m.bin")], "must end in .onnx, .pt2 or .safetensors"),
        (["--out", str(tmp_path / "no" / "m.pt2")], "is no folder"),
        (["--out", str(tmp_path / "d.pt2"), "--part", "decoder", "--tokenizer", str(weights[0])], "holds a tokenizer"),
    ):
        assert main(["export", *argv]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
