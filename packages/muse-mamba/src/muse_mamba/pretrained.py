"""Networks as folders: config.json and model.safetensors, written and read without flags."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .checks import refuse
from .weights import CONFIG, WEIGHTS, read_config


class Pretrained(nn.Module):
    """A network that is built from one frozen dataclass `config` and saved with it.

    Attributes:
        config_class: Type of the configuration; has `to_dict` and `from_dict`.
        kind: Stands in config.json, so that a folder of another kind of network is refused by name.
    """

    config_class: ClassVar[Any]
    kind: ClassVar[str]
    config: Any

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors (parameters and buffers).

        Args:
            folder: Is made if it is missing.
            dtype: Of the floating tensors in the file; None keeps theirs.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {}
        for name, x in self.state_dict().items():
            cast = dtype if dtype is not None and x.is_floating_point() else x.dtype
            state[name] = x.detach().to("cpu", cast).contiguous()
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps({"kind": self.kind, **self.config.to_dict()}, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Build a network from a folder, float32, ready to run (`eval`).

        Raises:
            ValueError: A file is missing or damaged, or the folder holds another kind of network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        config = cls.config_class.from_dict(read_config(folder, cls.kind))
        try:
            state = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{cls.__name__}: {folder / WEIGHTS} cannot be read: {error}; check the path") from error
        model = cls(config)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise ValueError(f"{cls.__name__}: {folder} does not hold what its config.json says: {detail}") from error
        return model.to(device).eval()


def exact(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast for the device of a tensor."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def export_copy(source: Path, target: Path) -> None:
    """Copy config.json and model.safetensors of a network's folder.

    Raises:
        ValueError: One of them is missing.
    """
    import shutil

    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            refuse("copy", "folder", f"one with {CONFIG} and {WEIGHTS}", str(source), "give a run's model/ folder")
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, target / name)
