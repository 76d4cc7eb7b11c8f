"""Fixtures of the tests of hybrid-sr: golden numbers of the reference implementations."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
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
    """Read a golden file by name, once per session."""
    kept: dict[str, Golden] = {}

    def read(name: str) -> Golden:
        if name not in kept:
            kept[name] = _read(DATA / f"{name}.npz")
        return kept[name]

    return read


def _read(path: Path) -> Golden:
    with np.load(path) as file:
        stored = {k: file[k] for k in file.files}
    meta = json.loads(stored["meta"].tobytes())
    layout = meta.pop("layout")
    streams, position = {}, {}
    for dtype, _ in layout.values():
        size = np.dtype(dtype).itemsize
        planes = np.stack([stored[f"{dtype[1:]}-{i}"] for i in range(size)], axis=1)
        streams[dtype] = np.ascontiguousarray(planes).view(dtype).reshape(-1)
        position[dtype] = 0
    arrays = {}
    for name, (dtype, shape) in layout.items():
        start = position[dtype]
        position[dtype] = start + prod(shape)
        arrays[name] = streams[dtype][start : position[dtype]].reshape(shape)
    return Golden(arrays, meta)
