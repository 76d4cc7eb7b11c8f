"""Export to ONNX of models that contain the operators of this package.

    import ssm_kernels.onnx

    ssm_kernels.onnx.export(model, (x,), "model.onnx", dynamic_shapes=({0: Dim("batch"), 1: Dim("length")},))

The number of nodes does not depend on any size: recurrences become one Scan node, over as many steps as the input has
when the file is run. See docs/onnx.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from typing import Any

import torch
from torch import nn

__all__ = ["export", "translation_table"]

NEEDED = ("onnx", "onnxscript")


def translation_table() -> dict[Callable, Callable]:
    """Give the ONNX form of every operator of this package.

    Returns:
        What `torch.onnx.export(..., dynamo=True)` takes as `custom_translation_table`: from operator to a function
        that records its ONNX nodes. Add entries of your own to the returned dictionary, it is a new one every time.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(f"ssm_kernels.onnx needs {' and '.join(missing)}: pip install 'ssm-kernels[onnx]'")
    from . import attention, convolution, duality, linear, norm, scans, steps

    parts = (scans, duality, convolution, linear, attention, steps, norm)
    return {operator: translation for part in parts for operator, translation in part.TABLE.items()}


def export(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...],
    path: str | PathLike[str] | None = None,
    *,
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
    external_data: bool = False,
) -> torch.onnx.ONNXProgram:
    """Export a model to ONNX: `torch.onnx.export` with the operators of this package translated.

    Args:
        model: Module in eval mode, or what `torch.export.export` made of one.
        args: Example inputs, positional.
        path: File to write; None only returns the program.
        dynamic_shapes: Which sizes may change, as in `torch.export.export`. Batch, length, height and width of the
            operators may; channels and states may not.
        input_names: Names of the inputs in the file.
        output_names: Names of the outputs in the file.
        opset_version: ONNX opset, at least 18; None is PyTorch's default.
        external_data: Write the weights into a second file beside the first, which files over 2 GB need.

    Returns:
        The program; `.model` is the graph, `.save(path)` writes it.

    Raises:
        ImportError: onnx or onnxscript is missing.
        torch.onnx.OnnxExporterError: The model cannot be exported; the message ends with the reason. Packed sequences
            (`cu_seqlens`) are one.
    """
    table = translation_table()
    with warnings.catch_warnings():
        # torch 2.11 copies a tree in a way that it warns of itself
        warnings.filterwarnings("ignore", message=".*isinstance.treespec", category=FutureWarning)
        program = torch.onnx.export(
            model,
            args,
            path,
            dynamo=True,
            custom_translation_table=table,
            dynamic_shapes=dynamic_shapes,  # pyright: ignore[reportArgumentType]
            input_names=input_names,
            output_names=output_names,
            opset_version=opset_version,
            external_data=external_data,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    return program
