"""How large the features of every group are: the L2 norm over channels at each pixel.

A network without a norm after its last group can keep these small; one with it lets the last group grow, since the
norm divides by it. H, W are the input's size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .model import HybridSR


@dataclass(frozen=True)
class Norms:
    """Norms at one place of a network.

    Attributes:
        name: Of the module, such as "groups.3.conv".
        map: (H, W) float32, sqrt of the sum of squares over channels.
    """

    name: str
    map: NDArray[np.float32]

    def figures(self) -> dict[str, float | str]:
        """Return name, largest, median and mean norm, and the largest over the median."""
        most, median = float(self.map.max()), float(np.median(self.map))
        return {
            "name": self.name,
            "max": most,
            "median": median,
            "mean": float(self.map.mean()),
            "max_over_median": most / max(median, 1e-30),
        }


def feature_norms(model: HybridSR, image: NDArray[np.uint8]) -> list[Norms]:
    """Run a network and measure the last convolution of every group, and the final norm where there is one.

    Args:
        model: In eval mode; runs where its parameters are.
        image: The input, (H, W, 3) uint8. Padding to windows is cut off the maps.
    """
    height, width = image.shape[:2]
    found: list[Norms] = []

    def measure(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            norm = output.detach()[0, :height, :width].float().norm(dim=-1)
            found.append(Norms(name, norm.cpu().numpy()))

        return hook

    places = {f"groups.{i}.conv": model.get_submodule(f"groups.{i}.conv") for i in range(len(model.groups))}
    if model.final_norm is not None:
        places["final_norm"] = model.final_norm
    hooks = [module.register_forward_hook(measure(name)) for name, module in places.items()]  # pyright: ignore[reportArgumentType]
    like = next(model.parameters())
    try:
        with torch.inference_mode():
            model(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(like) / 255)
    finally:
        for hook in hooks:
            hook.remove()
    return found
