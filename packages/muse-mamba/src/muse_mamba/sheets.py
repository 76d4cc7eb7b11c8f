"""Sheets of pictures for people: rows of pictures of one size under their captions. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEXT_HEIGHT, LABEL_WIDTH, LETTER = 28, 120, 6  # pixels
GAP = 6  # between groups of columns


def pair_sheet(originals: NDArray[np.uint8], made: NDArray[np.uint8], file: Path) -> None:
    """Save originals (n, H, W, 3) above what became of them."""
    from PIL import Image

    rows = [np.concatenate(list(x), axis=1) for x in (originals, made)]
    Image.fromarray(np.concatenate(rows)).save(file, optimize=True)


def caption_sheet(
    captions: Sequence[str], groups: Sequence[tuple[str, NDArray[np.uint8]]], file: Path, *, side: int = 64
) -> None:
    """Save one row a caption: its words, then groups of pictures beside each other under their titles.

    Args:
        captions: n of them.
        groups: Title, and pictures (n, k, H, W, 3) uint8.
        file: PNG.
        side: Of a picture on the sheet, pixels.
    """
    from PIL import Image, ImageDraw

    widths = [group.shape[1] * side for _, group in groups]
    size = (LABEL_WIDTH + sum(widths) + GAP * len(groups), TEXT_HEIGHT + side * len(captions))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    left = LABEL_WIDTH
    for (title, group), width in zip(groups, widths, strict=True):
        for line, part in enumerate(_lines(title, width)[:2]):
            pen.text((left + 2, 2 + 12 * line), part, fill="black")
        for row, pictures in enumerate(group):
            strip = Image.fromarray(np.concatenate(list(pictures), axis=1))
            canvas.paste(strip.resize((width, side), Image.Resampling.NEAREST), (left, TEXT_HEIGHT + row * side))
        left += width + GAP
    for row, caption in enumerate(captions):
        for line, part in enumerate(_lines(caption, LABEL_WIDTH)[:4]):
            pen.text((4, TEXT_HEIGHT + row * side + 6 + 12 * line), part, fill="black")
    canvas.save(file, optimize=True)


def _lines(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width // LETTER and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
