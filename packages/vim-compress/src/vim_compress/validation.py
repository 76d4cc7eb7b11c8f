"""What is looked at during training: accuracy on held-out pictures, and a sheet of them with what was recognised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from .config import ModelConfig
from .pictures import Pictures
from .preprocess import prepare, to_float

BATCH = 256  # pictures
SHEET = 6, 4  # columns and rows
TILE, TEXT = 96, 26  # pixels

Network = Callable[[Tensor], Tensor]


class Held:
    """Held-out pictures, made ready once and kept as uint8 if there are at most 20,000."""

    def __init__(self, pictures: Pictures, config: ModelConfig) -> None:
        self.pictures, self.config = pictures, config
        self._ready: NDArray[np.uint8] | None = None

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pictures (B, C, H, W), uint8, and classes (B,)."""
        count = len(self.pictures)
        if self._ready is None and count <= 20_000:
            self._ready = self._read(range(count))
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            pixels = self._read(numbers) if self._ready is None else self._ready[first : first + BATCH]
            yield torch.from_numpy(pixels), torch.from_numpy(self.pictures.labels[first : first + BATCH])

    def _read(self, numbers: range) -> NDArray[np.uint8]:
        with ThreadPoolExecutor(4) as pool:
            return np.stack(list(pool.map(lambda i: prepare(self.pictures.image(i), self.config), numbers)))


def outputs(network: Network, held: Held, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the logits of all held-out pictures, (N, K) float32, and their classes (N,), on the CPU."""
    logits, labels = [], []
    with torch.inference_mode():
        for pixels, label in held.batches():
            logits.append(network(to_float(pixels, held.config, device)).float())
            labels.append(label)
    return torch.cat(logits).cpu(), torch.cat(labels)


def accuracy(logits: Tensor, labels: Tensor, best: int = 1) -> float:
    """Return the share of rows whose class is among the `best` largest outputs, in percent."""
    best = min(best, logits.shape[1])
    return 100 * (logits.topk(best, -1).indices == labels[:, None]).any(-1).double().mean().item()


def score(network: Network, held: Held | None, device: torch.device) -> float:
    """Return the top-1 accuracy in percent; NaN without pictures."""
    return math.nan if held is None else accuracy(*outputs(network, held, device))


def draw(network: Network, held: Held, device: torch.device, path: Path) -> None:
    """Save a sheet of held-out pictures: below each its class, then what was recognised, with a mark if it is wrong."""
    columns, rows = SHEET
    count = min(columns * rows, len(held.pictures))
    chosen = np.linspace(0, len(held.pictures) - 1, count).astype(int)
    pixels = np.stack([prepare(held.pictures.image(i), held.config) for i in chosen])
    with torch.inference_mode():
        found = network(to_float(torch.from_numpy(pixels), held.config, device)).argmax(-1).cpu().numpy()
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + TEXT)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (number, guess) in enumerate(zip(chosen, found, strict=True)):
        left, top = place % columns * TILE, place // columns * (TILE + TEXT)
        image = held.pictures.image(int(number)).convert("RGB").resize((TILE - 4, TILE - 4))
        sheet.paste(image, (left + 2, top + 2))
        label = int(held.pictures.labels[number])
        right = guess == label
        pen.text((left + 2, top + TILE - 2), _short(held, label), fill="black")
        pen.text((left + 2, top + TILE + 10), _short(held, int(guess)), fill="green" if right else "red")
    sheet.save(path)


def _short(held: Held, label: int) -> str:
    return held.pictures.classes[label].encode("ascii", "replace").decode()[:15]
