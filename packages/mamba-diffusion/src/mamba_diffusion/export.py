"""A model as a file for elsewhere: float16 weights as they ship, a program of torch.export, or ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .condition import Condition
from .info import empty_inputs
from .model import SparseField
from .weights import half


def export_half(model: SparseField, folder: Path) -> list[Path]:
    """Write config.json and model.safetensors with float16 weights (scaling and frequencies in float32)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(half(state), folder / "model.safetensors", metadata={"format": "pt"})
    return [folder / "config.json", folder / "model.safetensors"]


class Velocity(nn.Module):
    """A model as a function of tensors: noisy values, time, and the fields of a condition that it needs, in order."""

    def __init__(self, model: SparseField, given: Condition) -> None:
        super().__init__()
        self.model = model
        self.names = [name for name, x in given._asdict().items() if x is not None]

    def forward(self, noisy: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        """Return the velocity."""
        values = dict(zip(self.names, given, strict=True))
        return self.model(noisy, t, Condition(**values))


def export_program(model: SparseField, sensors: int, queries: int, path: Path) -> list[str]:
    """Write the velocity of one field with fixed numbers of points as a program of torch.export.

    Returns:
        The names of its inputs, in order: noisy (1, Nq, C), t (1,), then those of `Condition`.
    """
    program, inputs = _program(model, sensors, queries)
    with torch.no_grad():
        exported = torch.export.export(program, inputs)
    torch.export.save(exported, path)
    return ["noisy", "t", *program.names]


def export_onnx(model: SparseField, sensors: int, queries: int, path: Path) -> list[str]:
    """Write the velocity of one field with fixed numbers of points as ONNX; the scans become Scan nodes.

    Returns:
        The names of its inputs, as of `export_program`; the output is "velocity".

    Raises:
        ValueError: onnx or onnxscript is not installed.
    """
    from ssm_kernels.onnx import export

    program, inputs = _program(model, sensors, queries)
    names = ["noisy", "t", *program.names]
    half = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        export(program, inputs, half, input_names=names, output_names=["velocity"])
    except ImportError as error:
        raise ValueError("--format onnx needs onnx and onnxscript; pip install 'mamba-diffusion[onnx]'") from error
    half.replace(path)
    return names


def _program(model: SparseField, sensors: int, queries: int) -> tuple[Velocity, tuple[Tensor, ...]]:
    """Return the velocity as a function of tensors and inputs of the right shapes."""
    noisy, given = empty_inputs(model.config, sensors, queries, "cpu")
    program = Velocity(model.cpu(), given).eval()
    return program, (noisy, torch.zeros(1), *(x for x in given if x is not None))
