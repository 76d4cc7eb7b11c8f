"""Distances between sets of pictures in the features of a pretrained network; each number says which one.

The default network is EfficientNet-Lite0 from its package: the distance is called FD-EffNetLite0, never FID. FID is
computed only with the Inception weights that define it, known by their hash.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .backbones import VGG16Features, effnet_lite0, effnet_lite0_file, file_hash
from .checks import refuse

INCEPTION_SHA256_START = "6726825d"  # of weights-inception-2015-12-05, as torch-fidelity publishes it
SIDE = 128  # pixels that pictures are resized to for EfficientNet
BATCH = 32
KID_SUBSETS, KID_SIZE = 50, 100


class EffNetPooled(nn.Module):
    """Mean features of EfficientNet-Lite0: (n, 3, H, W) uint8 to (n, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = effnet_lite0()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Resize, scale, pool."""
        x = nn.functional.interpolate(pictures.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.model.forward_features((x - 127) / 128).mean((2, 3))


@lru_cache(maxsize=1)
def _pooled(device: str) -> EffNetPooled:
    return EffNetPooled().to(device)


@torch.inference_mode()
def picture_features(pictures: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Return mean features of EfficientNet-Lite0, (n, 1280) on the CPU, of pictures (n, H, W, 3) uint8.

    Raises:
        ValueError: timm or the weights are not installed.
    """
    network = _pooled(str(device))
    parts = [pictures[first : first + BATCH] for first in range(0, len(pictures), BATCH)]
    return torch.cat([network(to_batch(part, torch.device(device))).cpu() for part in parts])


def frechet(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance between normal distributions with the means and covariances of features (n, D).

    The trace of the root of the product of both covariances is the nuclear norm of A B^T for covariances A^T A and
    B^T B, so no D x D matrix is made where there are few pictures.
    """
    a, b = a.double(), b.double()
    roots = [torch.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1), mode="r").R for x in (a, b)]
    traces = sum(root.square().sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].t()).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * shared)


def kernel_distances(a: Tensor, b: Tensor, subsets: int, size: int) -> Tensor:
    """Return kernel distances (unbiased squared MMD, cubic kernel) between subsets of features (n, D), (subsets,).

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4; an unbiased value can be below zero.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(subsets):
        x, y = (part[torch.randperm(len(part), generator=generator)[:size]].double() for part in (a, b))
        own, other, both = ((p @ q.t() / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        inside = (own.sum() - own.trace() + other.sum() - other.trace()) / (size * (size - 1))
        found.append(inside - 2 * both.mean())
    return torch.stack(found)


def feature_distances(real: NDArray[np.uint8], made: NDArray[np.uint8], device: torch.device) -> dict[str, Any]:
    """Return FD-EffNetLite0 and KID-EffNetLite0 of two sets of pictures, (n, H, W, 3) uint8, with what made them.

    Raises:
        ValueError: A package is missing, or a set has fewer than two pictures.
    """
    if min(len(real), len(made)) < 2:
        refuse("feature_distances", "pictures", "at least 2 a set", f"{len(real)} and {len(made)}", "give more")
    features = picture_features(real, device), picture_features(made, device)
    subset = min(KID_SIZE, len(real), len(made))
    kernel = kernel_distances(*features, KID_SUBSETS, subset)
    return {
        "FD-EffNetLite0": frechet(*features),
        "KID-EffNetLite0": float(kernel.mean()),
        "KID_deviation": float(kernel.std(unbiased=False)),
        "extractor": {
            "network": "EfficientNet-Lite0, mean of 1280 features",
            "sha256": file_hash(effnet_lite0_file()),
            "resize": f"bilinear, antialiased, {SIDE} pixels",
            "n_real": len(real),
            "n_made": len(made),
            "kid_subsets": [KID_SUBSETS, subset],
        },
    }


def inception_distance(
    real: NDArray[np.uint8], made: NDArray[np.uint8], weights: Path, device: torch.device
) -> dict[str, Any]:
    """Return FID of two sets of pictures.

    Raises:
        ValueError: The weights are not those that FID is defined by, or torch-fidelity is not installed.
    """
    if not weights.is_file():
        refuse("evaluate", "--inception", "a file", str(weights), "check the path")
    found = file_hash(weights)
    if not found.startswith(INCEPTION_SHA256_START):
        wanted = f"weights-inception-2015-12-05, SHA-256 {INCEPTION_SHA256_START}..."
        refuse("evaluate", "--inception", wanted, f"{found[:8]}...", "other networks give no FID")
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ValueError("--inception: the network is built by torch-fidelity; pip install torch-fidelity")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights)).to(device)
    for pictures, is_real in ((real, True), (made, False)):
        for first in range(0, len(pictures), BATCH):
            metric.update(to_batch(pictures[first : first + BATCH], device), real=is_real)
    return {"FID": float(metric.compute()), "FID_n": [len(real), len(made)], "FID_sha256": found}


class Lpips(nn.Module):
    """LPIPS with VGG16: the backbone from a file, the trained weights of its channels from torchmetrics.

    Args:
        file: State dict of torchvision's vgg16.

    Source: Zhang et al. 2018, arXiv:1801.03924, version 0.1.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        from torchmetrics.functional import image

        self.backbone = VGG16Features(file)
        heads = Path(image.__file__).parent / "lpips_models" / "vgg.pth"
        stored = torch.load(heads, map_location="cpu", weights_only=True)
        for number, weight in enumerate(stored.values()):
            self.register_buffer(f"head{number}", weight.float())

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances (n,) of RGB pictures (n, 3, H, W) in [0, 1]."""
        total = torch.zeros(len(a), device=a.device)
        for number, (x, y) in enumerate(zip(self.backbone(a), self.backbone(b), strict=True)):
            difference = (nn.functional.normalize(x, dim=1) - nn.functional.normalize(y, dim=1)).square()
            total += (difference * self.get_buffer(f"head{number}")).sum(1).mean((1, 2))
        return total


def lpips(
    real: NDArray[np.uint8], made: NDArray[np.uint8], weights: Path, device: torch.device
) -> dict[str, float | str]:
    """Return the mean LPIPS of pictures and their reconstructions, (n, H, W, 3) uint8, with the hash of the backbone.

    Raises:
        ValueError: The weights are not those of torchvision's vgg16.
    """
    network = Lpips(weights).to(device)
    parts = [
        network(*(to_batch(x[first : first + BATCH], device).float() / 255 for x in (real, made))).cpu()
        for first in range(0, len(real), BATCH)
    ]
    return {"LPIPS": float(torch.cat(parts).mean()), "LPIPS_network": "VGG16", "LPIPS_sha256": file_hash(weights)}


class ClipFeatures(nn.Module):
    """A CLIP model whose features are tensors: in transformers 5 they come in a record that torchmetrics cannot use.

    Args:
        model: CLIPModel of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        """Return (n, D) of what the processor makes of pictures."""
        found = self.model.get_image_features(pixels)
        return found if isinstance(found, Tensor) else found.pooler_output

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (n, D) of what the processor makes of captions."""
        found = self.model.get_text_features(ids, mask)
        return found if isinstance(found, Tensor) else found.pooler_output


@torch.no_grad()
def clip_score(made: NDArray[np.uint8], captions: list[str], folder: Path, device: torch.device) -> dict[str, Any]:
    """Return the mean cosine of pictures and captions in a CLIP model times 100, or 0 if it is negative.

    Raises:
        ValueError: The folder holds no CLIP model.
    """
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    try:
        model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ValueError(f"--clip: {folder} holds no CLIP model: {detail}; give the folder of one") from error
    loaded: Any = lambda: (ClipFeatures(model).eval(), processor)  # noqa: E731
    metric = CLIPScore(model_name_or_path=loaded).to(device)
    for first in range(0, len(made), BATCH):
        metric.update(to_batch(made[first : first + BATCH], device), captions[first : first + BATCH])
    return {"clip_score": float(metric.compute()), "clip_scale": "100 times the mean cosine", "clip_model": str(folder)}


def to_batch(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return (n, 3, H, W) uint8 of (n, H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).to(device)
