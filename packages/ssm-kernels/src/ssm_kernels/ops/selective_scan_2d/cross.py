"""The four orders in which an image is read: the only place that says what a direction is.

B batch, H height, W width, L = H * W, K directions. Inside the package a direction is its index in DIRECTIONS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["row", "column", "row_reversed", "column_reversed"]
DIRECTIONS: tuple[Direction, ...] = ("row", "column", "row_reversed", "column_reversed")


def is_column(code: int) -> bool:
    """Say whether the direction with this index in DIRECTIONS runs down the columns."""
    return code % 2 == 1


def is_reversed(code: int) -> bool:
    """Say whether the direction with this index in DIRECTIONS starts at the last pixel."""
    return code >= 2


def to_sequence(image: Tensor, code: int) -> Tensor:
    """Read (B, H, W, ...) in scan order: (B, L, ...)."""
    lines = image.transpose(1, 2) if is_column(code) else image
    sequence = lines.flatten(1, 2)
    return sequence.flip(1) if is_reversed(code) else sequence


def to_image(sequence: Tensor, height: int, width: int, code: int) -> Tensor:
    """Put (B, L, ...) in scan order back where it was read: (B, H, W, ...)."""
    forward = sequence.flip(1) if is_reversed(code) else sequence
    if is_column(code):
        return forward.unflatten(1, (width, height)).transpose(1, 2)
    return forward.unflatten(1, (height, width))


def scan_order(x: Tensor, codes: Sequence[int]) -> Tensor:
    """Copy (B, H, W, D) into one sequence for each direction: (B, K, L, D)."""
    return torch.stack([to_sequence(x, code) for code in codes], dim=1)


def merge_order(y: Tensor, height: int, width: int, codes: Sequence[int]) -> Tensor:
    """Sum (B, K, L, D) over the directions, each put back to its pixels: (B, H, W, D) in the dtype of `y`."""
    images = [to_image(y[:, k], height, width, code) for k, code in enumerate(codes)]
    return torch.stack(images).sum(0, dtype=y.dtype)
