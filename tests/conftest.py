"""Fixtures for the tests across packages; TRAINERS is what the trainer contract is run on."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def _run(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def workspace() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def uv():
    """Call uv offline: uv("pip", "install", ..., env={...}) returns its standard output and fails on an error."""

    from uv import find_uv_bin  # not at the top: a bare GPU machine collects this folder without it

    def call(*arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
        return _run([find_uv_bin(), "--offline", "--quiet", *arguments], cwd, env or {})

    return call


@pytest.fixture(scope="session")
def wheels(uv, tmp_path_factory) -> Path:
    """All five packages as wheels in one folder."""
    dist = tmp_path_factory.mktemp("dist")
    uv("build", "--all-packages", "--wheel", "--out-dir", str(dist))
    return dist


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What the suite has to know about a package.

    Attributes:
        module: Its trainer, run as `python -m module`.
        arguments: Preset and sizes, with which the data are four steps an epoch at a batch of 2.
        make_data: Writes real-looking training data into a folder: four steps an epoch.
        spoil: Adds one file to that folder that cannot be read, and returns its name.
        load: Loads `model/` without flags and returns the module.
    """

    module: str
    arguments: tuple[str, ...]
    make_data: Callable[[Path], None]
    spoil: Callable[[Path], str]
    load: Callable[[Path], Any]


def photos(folder: Path) -> None:
    """Two pictures of smooth shapes with edges: (2 x 2) cells of 8 low-resolution pixels each at x2."""
    from PIL import Image

    y, x = np.mgrid[:32, :32] / 32
    for number in range(2):
        waves = [np.sin((9 + 4 * c) * x + (5 + number) * y * y * 3) > 0.2 * c for c in range(3)]
        Image.fromarray((np.stack(waves, -1) * 170 + 40).astype(np.uint8)).save(folder / f"photo{number}.png")


def broken_photo(folder: Path) -> str:
    (folder / "broken.png").write_bytes((folder / "photo0.png").read_bytes()[:200])
    return "broken.png"


def load_hybrid_sr(folder: Path) -> Any:
    from hybrid_sr.model import HybridSR

    return HybridSR.from_pretrained(folder)


def load_muse_tokenizer(folder: Path) -> Any:
    from muse_mamba.tokenizer import VQTokenizer

    return VQTokenizer.from_pretrained(folder)


def load_mamba_diffusion(folder: Path) -> Any:
    from mamba_diffusion.model import SparseField

    return SparseField.from_pretrained(folder)


def classes(folder: Path) -> None:
    """The same two pictures, one a third as bright, each a class of its own."""
    from PIL import Image

    photos(folder)
    for number in range(2):
        (folder / f"class{number}").mkdir()
        file = folder / f"photo{number}.png"
        darker = np.asarray(Image.open(file)) // (1 + 2 * number)
        Image.fromarray(darker).save(folder / f"class{number}" / file.name)
        file.unlink()


def broken_class(folder: Path) -> str:
    (folder / "class0" / "broken.png").write_bytes((folder / "class0" / "photo0.png").read_bytes()[:200])
    return "broken.png"


def load_vim(folder: Path) -> Any:
    from vim_compress.vim import VisionMamba

    return VisionMamba.from_pretrained(folder)


def captioned_photos(folder: Path) -> None:
    """Two pictures with captions, the captions as vectors, and a tokenizer with random weights."""
    import torch
    from muse_mamba.text import TextCache
    from muse_mamba.tokenizer import VQTokenizer, tokenizer_preset

    photos(folder)
    captions = ["a wave", "another wave"]
    rows = [{"file_name": f"photo{number}.png", "text": text} for number, text in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = np.random.default_rng(0).integers(-127, 128, (5, 8), dtype=np.int8)
    scales = np.full(5, 0.01, np.float16)
    TextCache(values, scales, np.array([0, 2, 5]), captions, "random").save(folder / "text.safetensors")
    torch.manual_seed(0)
    VQTokenizer(tokenizer_preset("tiny")).save_pretrained(folder / "tokenizer")


def load_muse_mamba(folder: Path) -> Any:
    from muse_mamba.model import TokenModel

    return TokenModel.from_pretrained(folder)


TRAINERS = {
    "hybrid-sr": Trainer(
        module="hybrid_sr.train",
        arguments=("tiny", "--scale", "2", "--patch", "8", "--min_contrast", "0"),
        make_data=photos,
        spoil=broken_photo,
        load=load_hybrid_sr,
    ),
    "muse-mamba-tokenizer": Trainer(
        module="muse_mamba.tokenizer.train",
        arguments=(
            *("tiny", "--size", "16", "--repeats", "4", "--lr", "0.02"),
            *("--discriminator_layers", "2", "--adversarial_start", "4", "--adversarial_warmup", "2"),
        ),
        make_data=photos,
        spoil=broken_photo,
        load=load_muse_tokenizer,
    ),
    "muse-mamba": Trainer(
        module="muse_mamba.train",
        arguments=("tiny", "--method", "attn-xz", "--repeats", "4", "--lr", "0.02"),
        make_data=captioned_photos,
        spoil=broken_photo,
        load=load_muse_mamba,
    ),
    "mamba-diffusion": Trainer(
        module="mamba_diffusion.train",
        arguments=("tiny-v2", "--model.standardise", "false", "--lr", "0.02"),
        make_data=photos,
        spoil=broken_photo,
        load=load_mamba_diffusion,
    ),
    "vim-compress": Trainer(
        module="vim_compress.train",
        arguments=(
            *("tiny", "--repeats", "4", "--lr", "0.005", "--flip", "0"),
            *("--sparsity.score", "taylor", "--sparsity.final", "0.2", "--sparsity.end", "6"),
            *("--sparsity.update_every", "2"),
        ),
        make_data=classes,
        spoil=broken_class,
        load=load_vim,
    ),
}


@pytest.fixture(scope="session", params=list(TRAINERS))
def trainer(request: pytest.FixtureRequest) -> Trainer:
    return TRAINERS[request.param]


@pytest.fixture(scope="session")
def data(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    trainer.make_data(folder)
    return folder
