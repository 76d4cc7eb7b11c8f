"""The VQ-VAE: pictures to token ids and back. All layers are convolutions, so any multiple of the factor works.

B batch, H height, W width (pixels), f factor, h = H / f, w = W / f, D channels of an entry.
"""

from __future__ import annotations

import copy
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checks import refuse
from ..pretrained import Pretrained, exact
from .config import TokenizerConfig
from .quantize import EmaQuantizer, LookupFreeQuantizer, Quantized


class Reconstruction(NamedTuple):
    """What the network makes of pictures: `pictures` (B, 3, H, W), not clipped, and what quantizing gave."""

    pictures: Tensor
    quantized: Quantized


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each after a normalisation and SiLU, around a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, after), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Upsample(nn.Module):
    """Every pixel four times, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class VQTokenizer(Pretrained):
    """Encoder, codebook and decoder.

    Args:
        config: What it is made of.

    Attributes:
        checkpointing: Recompute every block in the backward pass instead of keeping its activations.

    Source: VQGAN (arXiv:2012.09841) without attention, as Muse has it (arXiv:2301.00704, section 2.2).
    """

    config_class: ClassVar = TokenizerConfig
    kind: ClassVar = "tokenizer"

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config: TokenizerConfig = config
        self.checkpointing = False
        widths = [config.channels * m for m in config.multipliers]
        encoder: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            before = widths[max(0, i - 1)]
            encoder += [ResidualBlock(before if j == 0 else width, width) for j in range(config.encoder_blocks)]
            if i + 1 < len(widths):
                encoder.append(nn.Conv2d(width, width, 4, stride=2, padding=1))
        encoder += [nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], config.code_dim, 1)]
        decoder: list[nn.Module] = [nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)]
        for i in range(len(widths) - 1, -1, -1):
            before = widths[min(len(widths) - 1, i + 1)]
            decoder += [ResidualBlock(before if j == 0 else widths[i], widths[i]) for j in range(config.decoder_blocks)]
            if i:
                decoder.append(Upsample(widths[i]))
        decoder += [nn.GroupNorm(8, widths[0]), nn.SiLU()]
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.quantizer = EmaQuantizer(config) if config.quantizer == "ema" else LookupFreeQuantizer(config)

    def forward(self, pictures: Tensor) -> Reconstruction:
        """Encode and decode.

        Args:
            pictures: (B, 3, H, W), RGB in [0, 1], sides that are multiples of the factor.

        Raises:
            ValueError: The shape is another one.
        """
        quantized = self._quantize(pictures)
        values = quantized.values.permute(0, 3, 1, 2)
        return Reconstruction(self.decode_values(values.to(pictures.dtype)), quantized)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Return the ids (B, h, w) of pictures (B, 3, H, W) in [0, 1]."""
        return self._quantize(pictures).ids

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [0, 1], float32, of ids (B, h, w).

        It always runs in float32, also for a network in half precision, of which a copy is made: in float16 the
        decoder's activations can exceed what the format holds.

        Raises:
            ValueError: An id is outside the codebook.
        """
        if ids.ndim != 3:
            refuse("VQTokenizer.decode", "ids", "(B, h, w)", tuple(ids.shape), "reshape tokens to their grid")
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.config.codes):
            found = f"{int(ids.min())} to {int(ids.max())}"
            refuse("VQTokenizer.decode", "ids", f"in 0..{self.config.codes - 1}", found, "decode no masked tokens")
        network = self if self.dtype == torch.float32 else copy.deepcopy(self).float()
        values = network.quantizer.entries(ids).permute(0, 3, 1, 2)
        with exact(ids):
            return network.decode_values(values).clamp(0, 1)

    def _quantize(self, pictures: Tensor) -> Quantized:
        factor = self.config.factor
        if pictures.ndim != 4 or pictures.shape[1] != 3 or min(pictures.shape[2:]) < factor:
            wanted = f"(B, 3, H, W) with H, W >= {factor}"
            refuse("VQTokenizer", "pictures", wanted, tuple(pictures.shape), "stack RGB pictures along axis 0")
        if pictures.shape[2] % factor or pictures.shape[3] % factor:
            found = f"{pictures.shape[3]}x{pictures.shape[2]}"
            refuse("VQTokenizer", "sides of pictures", f"multiples of {factor}", found, "crop or resize them")
        x = pictures.to(self.dtype)
        for layer in self.encoder:
            x = self._run(layer, x)
        with exact(x):
            return self.quantizer(x.permute(0, 2, 3, 1))

    def decode_values(self, x: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), not clipped, of entries (B, D, h, w)."""
        for layer in self.decoder:
            x = self._run(layer, x)
        return self.last(x)

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled() and isinstance(layer, ResidualBlock):
            return cast(Tensor, checkpoint(layer, x, use_reentrant=False))
        return layer(x)
