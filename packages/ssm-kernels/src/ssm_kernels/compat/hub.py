"""Reading what mamba-ssm's language models save, as in `mamba_ssm.utils.hf`, from a folder; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops.checks import refuse

CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Read the configuration in a folder.

    Raises:
        ValueError: `model_name` is not a folder that holds one.
    """
    return json.loads(_file(model_name, CONFIG).read_text(encoding="utf-8"))


def load_state_dict_hf(
    model_name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read the weights in a folder onto `device`, in `dtype` if that is given.

    Raises:
        ValueError: `model_name` is not a folder that holds them.
    """
    state = torch.load(_file(model_name, WEIGHTS), map_location=device, weights_only=True)
    return state if dtype is None else {key: value.to(dtype) for key, value in state.items()}


def _file(model_name: str, name: str) -> Path:
    path = Path(model_name) / name
    if not path.is_file():
        refuse("from_pretrained", "pretrained_model_name", f"a folder with {name}", model_name, "download it before")
    return path
