"""A small plain convolutional network: what a dense baseline has to beat under the same recipe."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .checks import refuse
from .config import CnnConfig
from .saved import SavedModel


class SmallCnn(SavedModel, tags=["cnn"]):
    """3 x 3 convolutions with batch norm and ReLU, the map halved after each, then its mean and a linear layer.

    Args:
        config: What it is made of.
    """

    config: CnnConfig

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.classes
        self.grad_checkpointing = False
        layers: list[nn.Module] = []
        before = config.channels
        for width in config.dims:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, channels, H, W), normalised: (B, classes)."""
        if x.dim() != 4 or x.shape[1] != self.config.channels:
            wanted = f"(B, {self.config.channels}, H, W)"
            refuse("SmallCnn", "x", wanted, tuple(x.shape), "stack pictures along axis 0")
        if self.grad_checkpointing and torch.is_grad_enabled():
            features = checkpoint(self.layers, x, use_reentrant=False)
            assert isinstance(features, Tensor)
        else:
            features = self.layers(x)
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that must not decay: none beside norms and biases."""
        return set()
