"""Export, quantisation and token merging compute what the network computes, or close to it."""

import numpy as np
import pytest
import timm
import torch
import vim_compress.models  # noqa: F401  (registers the networks)
from vim_compress.cli import main
from vim_compress.export import export
from vim_compress.merge import merge_around_middle, merge_half, merged_forward
from vim_compress.quantize import MULTIPLES, quantizable, quantize, two_of_four

NAMES = ["vim_test_patch4_16", "mambavision_test_32"]


def make(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


def image(model, batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, 3, *model.config.image)


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)])
def test_torch_export_with_any_batch(name, tmp_path):
    model = make(name)
    export(model, tmp_path / "m.pt2")
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    for batch in (1, 3):
        x = image(model, batch)
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_agrees(name, tmp_path):
    import onnxruntime

    model = make(name)
    export(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = image(model, batch)
        found = session.run(None, {"image": x.numpy()})[0]
        np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-4)


def test_export_verb_writes_weights_and_refuses_the_rest(tmp_path, capsys):
    make(NAMES[0]).save_pretrained(tmp_path / "model")
    out = tmp_path / "w.safetensors"
    assert main(["export", "--weights", str(tmp_path / "model"), "--out", str(out)]) == 0
    assert out.is_file()
    assert main(["export", "--weights", str(tmp_path / "model"), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", "--weights", str(tmp_path / "model"), "--out", str(tmp_path / "half")]) == 0
    from vim_compress.weights import load_model

    full, half = load_model(tmp_path / "model"), load_model(tmp_path / "half")
    size = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("model", "half")]
    assert size[1] < 0.6 * size[0]
    assert torch.allclose(full(image(full)), half(image(full)), atol=0.02)
    assert main(["export", "--weights", str(tmp_path / "model"), "--out", str(tmp_path / "w.tflite")]) == 2
    assert ".onnx" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8-weights", "int8"])
def test_int8_stays_close(kind):
    model = make(NAMES[0])
    x = image(model)
    truth = model(x)
    rates = {n: p.clone() for n, p in model.named_parameters() if n.endswith(("A_log", "dt_proj.weight"))}
    assert quantize(model, kind) == 2 * 4
    assert (model(x) - truth).norm() < 0.1 * truth.norm()
    left = dict(model.named_parameters())
    assert all(torch.equal(left[n], p) for n, p in rates.items())


def test_what_a_cpu_cannot_do_is_said():
    with pytest.raises(ValueError, match="a CUDA GPU"):
        quantize(make(NAMES[0]), "fp8")
    with pytest.raises(ValueError, match="one of int8-weights"):
        quantize(make(NAMES[0]), "int3")


@pytest.mark.parametrize(("kind", "layers"), [("int8", 4), ("fp8", 2), ("2:4", 1)])
def test_only_layers_that_the_kernels_take_are_counted(kind, layers):
    """torchao leaves others as they are without a word."""
    sizes = {"in_proj": (32, 64), "out_proj": (64, 48), "x_proj": (64, 44), "qkv": (8, 24), "head": (32, 32)}
    found = [quantizable(torch.nn.Linear(*size), f"layers.0.{name}", MULTIPLES[kind]) for name, size in sizes.items()]
    assert sum(found) == layers
    assert not found[-1]


def test_half_precision_is_close():
    from vim_compress.quantize import in_half

    model = make(NAMES[0])
    x = image(model)
    truth = model(x)
    assert (in_half(model)(x).float() - truth).norm() < 0.05 * truth.norm()


def test_two_of_four_keeps_the_largest():
    weight = torch.tensor([[1.0, -5.0, 0.5, 2.0, 0.0, 0.1, 0.2, 0.3]])
    assert two_of_four(weight).tolist() == [[False, True, False, True, False, False, True, True]]


def test_merging_keeps_order_sums_and_sizes():
    torch.manual_seed(0)
    tokens = torch.randn(2, 7, 4)
    tokens[:, 3] = tokens[:, 2]  # the most similar pair
    sizes = torch.ones(2, 7)
    merged, after = merge_half(tokens, sizes, 1)
    assert torch.equal(merged[:, 2], tokens[:, 2])
    assert torch.equal(merged[:, 3:], tokens[:, 4:])
    assert after.tolist() == [[1, 1, 2, 1, 1, 1]] * 2
    merged, after = merge_half(tokens, sizes, 3)
    assert torch.allclose((merged * after[..., None]).sum(1), tokens.sum(1), atol=1e-5)


@pytest.mark.parametrize("patches", [9, 16])
def test_class_token_stays_in_the_middle(patches):
    tokens = torch.randn(2, patches + 1, 4)
    token = tokens[:, patches // 2].clone()
    sizes = torch.ones(2, patches + 1)
    for _ in range(2):
        tokens, sizes = merge_around_middle(tokens, sizes, 0.3)
        assert torch.equal(tokens[:, (tokens.shape[1] - 1) // 2], token)
    assert sizes.sum() == 2 * (patches + 1)


def test_merging_runs_in_half_precision():
    """As a network quantised to fp8 or 2:4 is, whose pictures come in float32."""
    from vim_compress.arguments import EvaluateOptions
    from vim_compress.commands import _merging
    from vim_compress.quantize import in_half

    model = make(NAMES[0])
    x = image(model)
    truth = _merging(model, EvaluateOptions(merge=0.25))(x)
    in_half(model)
    assert (_merging(model, EvaluateOptions(merge=0.25))(x).float() - truth).norm() < 0.05 * truth.norm()


def test_merging_nothing_is_the_network_and_something_is_close():
    model = make(NAMES[0])
    x = image(model)
    assert torch.equal(merged_forward(model, x, layers=[0, 1], share=0.0), model(x))
    less = merged_forward(model, x, layers=[0], share=0.25)
    assert 0 < (less - model(x)).abs().max() < model(x).abs().max()
    with pytest.raises(ValueError, match="share"):
        merged_forward(model, x, layers=[0], share=0.9)
    with pytest.raises(ValueError, match="layers"):
        merged_forward(model, x, layers=[5], share=0.1)
