"""What the tokenizer is trained for: pixels, features, a judge, and entries near the encoder's outputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones import EffNetFeatures, VGG16Features, perceptual_distance
from ..checks import refuse
from ..packed import PERCEPTUAL
from .recipes import TokenizerTrainConfig


def perceptual_network(cfg: TokenizerTrainConfig) -> nn.Module | None:
    """Return the backbone of the perceptual loss, or None.

    Raises:
        ValueError: Its weights are missing.
    """
    if cfg.perceptual == "none" or not cfg.perceptual_weight:
        return None
    file = None if cfg.perceptual_weights is None else Path(cfg.perceptual_weights)
    if file is not None and not file.is_file():
        refuse("TokenizerTrainConfig", "perceptual_weights", "a file", str(file), "check the path")
    if cfg.perceptual == "vgg16":
        if file is None:
            remedy = "give torchvision's vgg16 weights, or take --perceptual effnet-lite0"
            refuse("TokenizerTrainConfig", "perceptual_weights", "given for vgg16", None, remedy)
        return VGG16Features(file)
    packed = None if cfg.data is None else Path(cfg.data) / PERCEPTUAL
    return EffNetFeatures(file or (packed if packed is not None and packed.is_file() else None))


def reconstruction_loss(
    cfg: TokenizerTrainConfig, made: Tensor, pictures: Tensor, perceptual: nn.Module | None
) -> Tensor:
    """Return the weighted distance of pixels and features, a scalar; float32 in and out."""
    difference = made.float() - pictures
    loss = cfg.l1 * difference.abs().mean() + cfg.l2 * difference.square().mean()
    if perceptual is not None:
        loss = loss + cfg.perceptual_weight * perceptual_distance(perceptual, made, pictures)
    return loss


def adversarial_factor(cfg: TokenizerTrainConfig, step: int) -> float:
    """Return the share of the adversarial weight at a step: 0 before its start, then a linear rise to 1."""
    if not cfg.adversarial or step < cfg.adversarial_start:
        return 0.0
    return min(1.0, (step - cfg.adversarial_start + 1) / cfg.adversarial_warmup)


def last_layer_gradient(loss: Tensor, layer: Tensor) -> Tensor:
    """Return the gradient of a loss at the decoder's last layer; the graph is kept."""
    return torch.autograd.grad(loss, layer, retain_graph=True)[0].detach()
