"""The judge of patches: tells real pictures from reconstructions. B batch, H and W pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import refuse

LARGEST_WEIGHT = 1e4  # of the adversarial loss when its gradient vanishes


class Discriminator(nn.Module):
    """Strided convolutions that end in one logit per patch.

    Args:
        channels: Of the first layer; doubled by every further one, up to eight times.
        layers: Strided convolutions.

    Attributes:
        balance: Weight of the adversarial loss, found at the step before (see `rebalance`).

    Source: PatchGAN (arXiv:1611.07004); the adaptive weight is that of VQGAN (arXiv:2012.09841, equation 7).
    """

    balance: Tensor

    def __init__(self, channels: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.layers = layers
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers):
            wider = channels * min(2**i, 8)
            parts += [
                nn.Conv2d(width, wider, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(min(8, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.body = nn.Sequential(*parts)
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        self.register_buffer("balance", torch.zeros(()))

    @property
    def least_side(self) -> int:
        """Smallest side of a picture that leaves at least 4 x 4 patches."""
        return 4 << self.layers

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (B, 1, H / 2**layers, W / 2**layers), positive for real, of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: The pictures are too small to be judged.
        """
        if min(pictures.shape[2:]) < self.least_side:
            found = f"{pictures.shape[3]}x{pictures.shape[2]}"
            remedy = "use fewer --discriminator_layers, or larger pictures"
            refuse("Discriminator", "pictures", f"at least {self.least_side} pixels a side", found, remedy)
        return self.head(self.body(2 * pictures - 1))

    @torch.no_grad()
    def rebalance(self, reconstruction: Tensor, adversarial: Tensor, apply: Tensor) -> None:
        """Set the weight of the next step: the ratio of the norms of two gradients at the decoder's last layer.

        It is that of the step before, so that it belongs to the whole batch, however it is divided.

        Args:
            reconstruction: Gradient of reconstruction and perceptual loss, summed over micro-batches and processes.
            adversarial: Gradient of the adversarial loss, in the same way.
            apply: Scalar of 0 or 1 on the device.
        """
        ratio = (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0, LARGEST_WEIGHT)
        self.balance.copy_(torch.where(apply > 0, torch.nan_to_num(ratio), self.balance))


def hinge_real_fake(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of logits for real pictures and reconstructions."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
