"""Upscale with a network that goes through torch.compile."""

from __future__ import annotations

from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from .model import HybridSR
from .tiling import OVERLAP
from .upscaling import Precision, Tile, network_runner, overlap_for, tile_for, upscale


class Compiled:
    """`upscale` for one network, which is compiled for the first tile and once more for tiles of any shape.

    Args:
        model: On its device.
    """

    def __init__(self, model: HybridSR) -> None:
        self.model, self.network = model, cast("nn.Module", torch.compile(model))

    def __call__(
        self,
        image: NDArray,
        *,
        tile: Tile = "auto",
        overlap: int = OVERLAP,
        precision: Precision = "fp32",
        **others: Any,
    ) -> NDArray:
        """Upscale a picture; the arguments are those of `upscale`.

        Raises:
            ValueError: As `upscale`, or PyTorch cannot compile the network here.
        """
        # what a pixel takes is found out on a shape of its own, which nobody wants compiled
        plain = network_runner(self.model, next(self.model.parameters()).device, precision)
        side = tile_for(self.model, (image.shape[0], image.shape[1]), plain, tile=tile, overlap=overlap)
        shared = overlap_for(side, overlap)
        scale = self.model.config.scale
        try:
            return upscale(self.network, image, scale=scale, tile=side, overlap=shared, precision=precision, **others)
        except TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(f"--compile: PyTorch cannot compile the network here: {reason}; leave it out") from error
