"""What both families share as saved models: a folder with config.json and model.safetensors, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .checks import refuse
from .config import ModelConfig, config_from_dict

FILE = "model.safetensors"


class SavedModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vim-compress",
    license="apache-2.0",
    pipeline_tag="image-classification",
):
    """A network that knows its configuration: `save_pretrained(folder)`, `from_pretrained(folder or hub name)`.

    Attributes:
        config: What it is made of; kept up to date when the head or the size of pictures changes.
    """

    config: Any  # a ModelConfig; each family narrows it

    def save_pretrained(self, save_directory: str | Path, **hub: Any) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write config.json and model.safetensors; `hub` is what huggingface_hub takes to upload them."""
        return super().save_pretrained(save_directory, config=self.config.to_dict(), **hub)

    @classmethod
    def _from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # strict, silent, no free keywords
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | ModelConfig | None = None,
        map_location: str = "cpu",
    ) -> Self:
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        name = f"{cls.__name__}.from_pretrained"
        if config is None:
            refuse(name, "folder", "one with config.json", model_id, "save with save_pretrained")
        made = config_from_dict(config) if isinstance(config, dict) else config
        file = Path(model_id) / FILE
        if not Path(model_id).is_dir():
            download = hf_hub_download(
                model_id,
                FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            file = Path(download)
        elif not file.is_file():
            refuse(name, "folder", f"one with {FILE}", model_id, "check the path")
        model = cls(made)
        model.load_state_dict(load_file(file))
        return model.to(map_location).float().eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        state: dict[str, Tensor] = {k: v.detach().contiguous() for k, v in self.state_dict().items()}
        save_file(state, save_directory / FILE, metadata={"format": "pt"})


def keep_single(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network for inference in half precision, keeping in float32 what must stay there.

    Recurrence parameters (A_log, D), the steps' biases, norms and factors stay float32: they are small, and their
    rounding is multiplied by the length of the sequence.

    Args:
        model: Changed in place.
        dtype: Of matrix products and convolutions: torch.bfloat16 or torch.float16.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.to(dtype)
            if name.rpartition(".")[2] in ("dt_proj", "dt_proj_b") and module.bias is not None:
                module.bias.data = module.bias.data.float()
        elif isinstance(module, nn.BatchNorm2d):
            module.to(dtype)  # one kernel with its input's type; its statistics are not summed over a sequence
    for name, parameter in model.named_parameters():
        if name in ("cls_token", "pos_embed"):
            parameter.data = parameter.data.to(dtype)
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Let a Vim derive once, and not in every call, what follows from its weights alone; they must stay as they are.

    For inference, after casting and moving. Training mode, casting, moving, quantising and loading weights undo it.
    Networks of other kinds stay as they are.
    """
    from .mixer import VimMixer

    for module in model.modules():
        if isinstance(module, VimMixer):
            module.freeze()
    return model
