"""The judge of pictures and captions: which caption of several belongs to a picture. n pictures, d width of its space.

Its ears and eyes are frozen: the mean state of the text encoder, and the mean features of EfficientNet-Lite0. Two
matrices that were fitted to other pictures with captions bring them into one space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .checks import check_whole, nearest, refuse
from .features import picture_features
from .pretrained import Pretrained
from .text import MINILM, TextCache
from .weights import WEIGHTS

if TYPE_CHECKING:
    from .text import TextEncoder

RANKS = (1, 5)  # of R@k


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What a judge is made of.

    Attributes:
        image_dim: Features of a picture.
        text_dim: Features of a caption.
        dim: Width of the space that both are brought into.
        encoder: Text encoder of the captions.
        trained_on: Where its pairs came from.
        pairs: How many there were.
    """

    image_dim: int = 1280
    text_dim: int = 384
    dim: int = 64
    encoder: str = MINILM
    trained_on: str = ""
    pairs: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        check_whole(self, "image_dim", "text_dim", "dim")

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JudgeConfig:
        """Build a configuration from the fields of `to_dict`.

        Raises:
            ValueError: A field is unknown.
        """
        unknown = [name for name in values if name not in cls.__dataclass_fields__]
        if unknown:
            known = cls.__dataclass_fields__
            refuse("JudgeConfig", "fields", ", ".join(known), unknown[0], nearest(unknown[0], known))
        return cls(**values)


class Judge(Pretrained):
    """Brings features of pictures and of captions into one space.

    Args:
        config: Sizes.
    """

    config_class: ClassVar = JudgeConfig
    kind: ClassVar = "judge"
    image: Tensor
    text: Tensor
    image_mean: Tensor
    image_std: Tensor
    text_mean: Tensor

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config: JudgeConfig = config
        self.register_buffer("image", torch.zeros(config.image_dim, config.dim))
        self.register_buffer("text", torch.zeros(config.text_dim, config.dim))
        self.register_buffer("image_mean", torch.zeros(config.image_dim))
        self.register_buffer("image_std", torch.ones(config.image_dim))
        self.register_buffer("text_mean", torch.zeros(config.text_dim))

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return self.image.device

    def of_pictures(self, features: Tensor) -> Tensor:
        """Return unit vectors (n, d) of features (n, image_dim)."""
        return F.normalize((features - self.image_mean) / self.image_std @ self.image, dim=-1)

    def of_captions(self, features: Tensor) -> Tensor:
        """Return unit vectors (n, d) of features (n, text_dim)."""
        return F.normalize((F.normalize(features, dim=-1) - self.text_mean) @ self.text, dim=-1)


def caption_features(cache: TextCache, captions: Sequence[str], length: int = 32) -> Tensor:
    """Return the mean states of encoded captions, (n, C)."""
    states, mask = cache.batch([cache.place[c] for c in captions], length)
    total = np.maximum(mask.sum(1, keepdims=True), 1)
    return torch.from_numpy((states.sum(1) / total).astype(np.float32))


def recall(similarity: Tensor) -> dict[str, float]:
    """Return R@1 and R@5: how often the right column is among the best of its row, (n, n), right on the diagonal."""
    right = similarity.diagonal()[:, None]
    rank = (similarity > right).sum(1)  # columns that are better; ties count for the picture
    return {f"R@{k}": float((rank < k).float().mean()) for k in RANKS}


@torch.inference_mode()
def align(
    judge: Judge,
    pictures: NDArray[np.uint8],
    captions: Sequence[str],
    encoder: TextEncoder | TextCache,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure how often a caption is found by its pictures among all the others.

    Args:
        judge: Trained on other pairs.
        pictures: (k * n, H, W, 3) uint8: k pictures of the first caption, then of the second, and so on.
        captions: n different captions.
        encoder: The judge's text encoder, or captions that it encoded.
        device: Where the features are made.

    Returns:
        "R@1" and "R@5" of single pictures, "mean_R@1" and "mean_R@5" of the mean of a caption's k pictures, what
        chance gives ("chance_R@5"), and what measured.

    Raises:
        ValueError: Captions repeat, or the numbers do not fit.
    """
    n = len(captions)
    if len(set(captions)) != n:
        refuse("align", "captions", "all different", f"{n - len(set(captions))} again", "leave repeated ones out")
    if n == 0 or len(pictures) % n:
        refuse("align", "pictures", f"a multiple of {n} captions", len(pictures), "draw as many of each caption")
    if not isinstance(encoder, TextCache):
        encoder = TextCache.encode(encoder, list(captions))
    seen = judge.of_pictures(picture_features(pictures, device).to(judge.device))
    told = judge.of_captions(caption_features(encoder, captions).to(judge.device))
    every = seen.unflatten(0, (n, -1))
    single = [recall(every[:, i] @ told.t()) for i in range(every.shape[1])]
    found: dict[str, Any] = {name: float(np.mean([row[name] for row in single])) for name in single[0]}
    joined = recall(F.normalize(every.mean(1), dim=-1) @ told.t())
    found |= {f"mean_{name}": value for name, value in joined.items()}
    return found | {
        "chance_R@5": min(1.0, RANKS[1] / n),
        "captions": n,
        "pictures_per_caption": every.shape[1],
        "judge": {"trained_on": judge.config.trained_on, "pairs": judge.config.pairs},
    }


def judge_hash(folder: Path) -> str:
    """Return the SHA-256 of a judge's weights."""
    from .backbones import file_hash

    return file_hash(folder / WEIGHTS)
