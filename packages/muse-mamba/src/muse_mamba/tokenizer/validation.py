"""What is looked at during a tokenizer's training: PSNR, use of the codebook, pictures beside their originals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import as_tensor, to_pictures
from ..packed import Pictured
from .network import VQTokenizer
from .quantize import usage

PIXELS = 32 * 256**2  # at a time
DRAWN = 8  # pictures


@torch.inference_mode()
def reconstruct(network: VQTokenizer, pictures: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what becomes of (n, 3, H, W) uint8 pictures: the same in uint8 on the CPU, and the ids (n, h, w)."""
    made, ids = [], []
    for part in pictures.split(max(1, PIXELS // pictures[0, 0].numel())):
        found = network.encode(to_pictures(part, device))
        made.append((network.decode(found) * 255).round().to(torch.uint8).cpu())
        ids.append(found.cpu())
    return torch.cat(made), torch.cat(ids)


def measure(network: VQTokenizer, pictures: Sequence[Pictured], size: int, device: torch.device) -> dict[str, float]:
    """Return mean PSNR (dB, RGB), the share of entries in use and the perplexity of their use."""
    originals = as_tensor(pictures, size)
    made, ids = reconstruct(network, originals, device)
    errors = (made.float() - originals.float()).square().mean((1, 2, 3)).clamp_min(1e-6)
    share, perplexity = usage(torch.bincount(ids.flatten(), minlength=network.config.codes).float())
    psnr = (10 * (255**2 / errors).log10()).mean().item()
    return {"size": size, "psnr": psnr, "usage": share, "perplexity": perplexity} if math.isfinite(psnr) else {}


def draw(
    network: VQTokenizer, pictures: Sequence[Pictured], size: int, device: torch.device, file: Path, count: int = DRAWN
) -> None:
    """Save a picture: originals above, reconstructions below."""
    from PIL import Image

    originals = as_tensor(pictures[:count], size)
    made, _ = reconstruct(network, originals, device)
    rows = [np.concatenate(list(x.permute(0, 2, 3, 1).numpy()), axis=1) for x in (originals, made)]
    Image.fromarray(np.concatenate(rows)).save(file)
