"""Fixtures of the package's tests."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Golden:
    """One case: tensors by the first part of their name, and its configuration."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def double_state(self) -> dict[str, Tensor]:
        return {k: v.double() if v.is_floating_point() else v for k, v in self.part("state.").items()}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    from safetensors.torch import load

    def read(name: str) -> Golden:
        content = lzma.decompress((DATA / f"{name}.safetensors.xz").read_bytes())
        size = int.from_bytes(content[:8], "little")
        config = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["config"])
        tensors = load(content)
        return Golden(config, {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()})

    return read


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Small tensors: more threads only get in each other's way."""
    torch.set_num_threads(1)
