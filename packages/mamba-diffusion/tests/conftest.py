"""Fixtures of the tests of mamba-diffusion: golden numbers, pictures, a tiny trained-looking model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Golden:
    """Arrays and metadata of one file; `data/README.md` says what they are."""

    arrays: dict[str, NDArray]
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> NDArray:
        return self.arrays[name]

    def under(self, prefix: str) -> dict[str, NDArray]:
        """Return the arrays below a prefix such as "state.", under the rest of their names."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Read a golden file by name."""

    def read(name: str) -> Golden:
        with np.load(DATA / f"{name}.npz") as file:
            arrays = {k: _widened(file[k]) for k in file.files}
        return Golden(arrays, json.loads(arrays.pop("meta").tobytes()))

    return read


def _widened(array: NDArray) -> NDArray:
    """Return bfloat16 numbers, which are stored as their 16 bits, as float32; others as they are."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures of smooth shapes with edges, 32 x 32."""
    from PIL import Image

    y, x = np.mgrid[:32, :32] / 32
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        waves = [np.sin((9 + 4 * c) * x + (5 + number) * y * y * 3) > 0.2 * c for c in range(3)]
        Image.fromarray((np.stack(waves, -1) * 170 + 40).astype(np.uint8)).save(folder / f"photo{number}.png")
    return folder


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Make a tiny model whose output is not zero; keywords change its configuration."""

    def make(name: str = "tiny", **changes: Any) -> Any:
        import torch
        from mamba_diffusion.config import ModelConfig, preset
        from mamba_diffusion.model import SparseField

        torch.manual_seed(0)
        model = SparseField(ModelConfig.from_dict({**preset(name).to_dict(), **changes})).eval()
        if model.config.kind == "ours":
            torch.nn.init.normal_(model.network.out.weight, std=0.3)
            torch.nn.init.normal_(model.network.time_proj.weight, std=0.1)
        return model

    return make
