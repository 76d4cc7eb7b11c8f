"""The judge's view of a study's pictures: how often the caption of a drawn picture is found among the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .weights import find_judge

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURES, ORIGINALS, CAPTIONS = "pictures.png", "originals.png", "captions.json"


def judge_folders(folders: list[Path], data: str | None) -> tuple[list[dict[str, float]], dict[str, float]] | None:
    """Let the shipped judge look at the pictures of runs.

    Args:
        folders: Of the runs, with pictures.png, originals.png and captions.json.
        data: Packed folder with the captions as vectors; without it they are encoded.

    Returns:
        R@1 and R@5 of every run and of the originals; None where no judge ships or its network is not installed.
    """
    folder = find_judge(None)
    if folder is None:
        return None
    from .judge import Judge, align
    from .packed import is_packed
    from .text import CACHE, TextCache, TextEncoder

    judge = Judge.from_pretrained(folder)
    captions = json.loads((folders[0] / CAPTIONS).read_text())
    if is_packed(data):
        assert data is not None
        cache = TextCache.load(Path(data) / CACHE)
        if cache.encoder != judge.config.encoder:
            print(f"no alignment: the judge wants captions encoded by {judge.config.encoder}, got {cache.encoder}")
            return None
    else:
        cache = TextCache.encode(TextEncoder(judge.config.encoder), captions)

    def found(pixels: NDArray[np.uint8]) -> dict[str, float]:
        result: dict[str, Any] = align(judge, pixels, captions, cache)
        return {name: result[name] for name in ("R@1", "R@5")}

    try:
        real = found(squares(folders[0] / ORIGINALS))
        return [found(squares(run / PICTURES)) for run in folders], real
    except ValueError as missing:
        print(f"no alignment: {missing}")
        return None


def squares(strip: Path) -> NDArray[np.uint8]:
    """Return the pictures (n, s, s, 3) uint8 that stand side by side in a file."""
    from PIL import Image

    with Image.open(strip) as image:
        pixels = np.asarray(image.convert("RGB"))
    side = pixels.shape[0]
    return np.ascontiguousarray(pixels.reshape(side, -1, side, 3).transpose(1, 0, 2, 3))
