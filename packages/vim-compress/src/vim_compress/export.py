"""Write a network for other programs: ONNX, torch.export, or plain safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .checks import refuse

if TYPE_CHECKING:
    from .models import Network

SUFFIXES = (".onnx", ".pt2", ".safetensors")


def export(model: Network, file: Path, *, batch: int = 0) -> None:
    """Write a network.

    Args:
        model: In eval mode on the CPU, float32.
        file: Ends in .onnx (needs the onnx extra), .pt2 (torch.export) or .safetensors (weights, with the
            configuration as metadata). It appears under its name only when it is whole.
        batch: Pictures at a time; 0 leaves it open.

    Raises:
        ValueError: Another suffix, or onnx is not installed.
    """
    if file.suffix not in SUFFIXES:
        refuse("export", "out", f"a file ending in {', '.join(SUFFIXES)}", file.name, "choose one of them")
    half = file.with_name(f"{file.stem}.tmp{file.suffix}")
    if file.suffix == ".safetensors":
        _write_weights(model, half)
    else:
        height, width = model.config.image
        x = torch.zeros(batch or 2, model.config.channels, height, width)
        shapes = None if batch else ({0: torch.export.Dim("batch", min=1, max=4096)},)
        if file.suffix == ".pt2":
            torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), half)
        else:
            _write_onnx(model, x, half, shapes)
    half.replace(file)


def export_half(model: Network, folder: Path) -> None:
    """Write a folder like `save_pretrained`, the weights in half precision; it loads as float32."""
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    model.half().save_pretrained(half)
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def _write_weights(model: Network, file: Path) -> None:
    import json

    from safetensors.torch import save_file

    state = {name: x.detach().contiguous() for name, x in model.state_dict().items()}
    save_file(state, file, metadata={"format": "pt", "config": json.dumps(model.config.to_dict())})


def _write_onnx(model: Network, x: torch.Tensor, file: Path, shapes: object) -> None:
    import ssm_kernels.onnx

    try:
        ssm_kernels.onnx.export(
            model,
            (x,),
            file,
            dynamic_shapes=shapes,  # pyright: ignore[reportArgumentType]
            input_names=["image"],
            output_names=["logits"],
        )
    except ImportError as error:
        raise ValueError(f"export: {error}; pip install 'vim-compress[onnx]'") from error
