"""Fixtures of the tests of muse-mamba: a small set of captioned pictures, and tiny weights."""

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four captioned pictures of 32 pixels in a folder."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:32, :32] - 15.5
    shapes = {"circle": x * x + y * y < 120, "bar": abs(x) < 5, "square": abs(x) + 0 * y < 9, "cross": abs(x * y) < 20}
    rows = []
    for number, (name, inside) in enumerate(shapes.items()):
        pixels = np.where(inside[..., None], [60 * number, 200 - 50 * number, 90], [250, 250, 240]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "text": [f"a {name}", name]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def byte_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ByT5's tokenizer, which needs no file, and a tiny T5 encoder of width 8 with random weights."""
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, is_encoder_decoder=False)
    T5EncoderModel(config).eval().save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a token model (text of width 8) and a tokenizer with random weights."""
    import torch
    from muse_mamba.config import model_preset
    from muse_mamba.model import TokenModel
    from muse_mamba.tokenizer import VQTokenizer, tokenizer_preset

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    TokenModel(model_preset("tiny")).save_pretrained(folder / "model")
    VQTokenizer(tokenizer_preset("tiny")).save_pretrained(folder / "tokenizer")
    return folder / "model", folder / "tokenizer"


@pytest.fixture(scope="session")
def packed(
    pictures: Path, byte_encoder: Path, weights: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A packed folder with a tokenizer in it: one picture held out, one for validation, two to learn from."""
    from muse_mamba.packed import pack

    out = tmp_path_factory.mktemp("packed") / "p"
    summary = pack(
        out,
        data=str(pictures),
        size=32,
        root=Path("/"),
        encoder=str(byte_encoder),
        length=6,
        tokenizer=weights[1],
        perceptual=False,
    )
    assert (summary["pictures"], summary["captions"]) == (4, 8)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["rows"][0]["split"], manifest["rows"][1]["split"] = "held-out", "validation"
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture(scope="session")
def vgg16_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights under the names of torchvision's vgg16."""
    import torch
    from muse_mamba.backbones import VGG16

    torch.manual_seed(0)
    state, width, place = {}, 3, 0
    for channels in VGG16:
        if channels:
            state[f"features.{place}.weight"] = torch.randn(channels, width, 3, 3) * (2 / 9 / width) ** 0.5
            state[f"features.{place}.bias"] = torch.zeros(channels)
            width = channels
        place += 2 if channels else 1
    file = tmp_path_factory.mktemp("vgg16") / "vgg16.pth"
    torch.save(state, file)
    return file
