"""Run an exported ONNX file in place of the network: `upscale --backend onnxruntime`. Only this imports onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from .checks import refuse
from .config import ModelConfig
from .model import pad_to_multiple


class OnnxNetwork(nn.Module):
    """An ONNX file as a function of tensors, padded and cut as the network does it.

    Args:
        file: Written by `hybrid-sr export`.
        threads: Of onnxruntime; 0 lets it choose.

    Attributes:
        config: Of the network in the file.
        size: Rows and columns that the file takes, or None if they are open.

    Raises:
        ValueError: The file is missing, no ONNX file of ours, or onnxruntime is not installed.
    """

    def __init__(self, file: Path, threads: int = 0) -> None:
        super().__init__()
        if file.suffix != ".onnx" or not file.is_file():
            remedy = "write one with `hybrid-sr export net.onnx`"
            refuse("upscale", "weights", "an .onnx file for --backend onnxruntime", str(file), remedy)
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ValueError("upscale: onnxruntime is not installed; pip install 'hybrid-sr[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            known = self.session.get_modelmeta().custom_metadata_map
            self.config = ModelConfig.from_dict(json.loads(known["hybrid_sr_config"]))
        except Exception as error:  # the runtime raises classes of its own
            what = f"{file} is no network written by `hybrid-sr export`"
            raise ValueError(f"upscale: {what}: {str(error).splitlines()[0][:200]}") from error
        fixed = known.get("hybrid_sr_size")
        self.size: tuple[int, int] | None = tuple(json.loads(fixed)) if fixed else None

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (1, 3, H, W) float32 to (1, 3, s * H, s * W).

        Raises:
            ValueError: The file takes pictures of one size and this one is larger.
        """
        scale, (height, width) = self.config.scale, x.shape[2:]
        x = pad_to_multiple(x, self.config.window)
        if self.size is not None:
            x = self._fill(x)
        (y,) = self.session.run(None, {"lr": x.numpy()})
        return torch.from_numpy(y)[:, :, : scale * height, : scale * width]

    def _fill(self, x: Tensor) -> Tensor:
        assert self.size is not None
        rows, columns = self.size
        if x.shape[2] > rows or x.shape[3] > columns:
            found = f"{x.shape[3]}x{x.shape[2]}"
            refuse(
                "upscale",
                "tile",
                f"at most {columns}x{rows}, the size in the file",
                found,
                f"add --tile {min(self.size)}",
            )
        return nn.functional.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2]), mode="replicate")
