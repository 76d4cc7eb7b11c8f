"""Upscale in overlapping tiles that are blended smoothly, with memory for one row of tiles.

Tiles start on multiples of `GRID`, so that attention windows lie where they lie in the whole picture.
H, W are the input's size in pixels, s the scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import refuse

GRID = 16  # pixels; attention windows of every preset divide it
OVERLAP = 32  # pixels that neighbouring tiles share
SMALLEST_TILE = 64  # pixels; training crops have this side


@dataclass(frozen=True)
class Strip:
    """Where one tile lies along one axis, and how much it counts there.

    Attributes:
        start: First input pixel.
        stop: One past the last.
        weight: (s * (stop - start),) float32 in [0, 1]; over all strips they sum to 1 at every output pixel.
    """

    start: int
    stop: int
    weight: Tensor


def tile_ranges(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return the first pixel of every tile along an axis, and one past its last.

    As few tiles as sides of at most `tile` allow, all of one side (the last is cut at the picture's end, to which the
    network pads it), so that no pixel is computed oftener than the overlap asks for.
    """
    units, most, shared = -(-length // GRID), tile // GRID, overlap // GRID
    if units <= most:
        return [(0, length)]
    count = -(-(units - shared) // (most - shared))
    side = -(-(units + (count - 1) * shared) // count)
    starts = [i * (units - side) // (count - 1) * GRID for i in range(count)]
    return [(start, min(start + side * GRID, length)) for start in starts]


def strips(length: int, tile: int, overlap: int, scale: int) -> list[Strip]:
    """Place tiles along an axis and give them weights.

    Within an overlap the weight rises from 0 to 1 in the middle half; the outer quarter of a tile's overlap counts
    for nothing, since the network sees the tile's border there instead of the picture.

    Args:
        length: Pixels of the input along the axis, at least 1.
        tile: Largest side of a tile in input pixels, a multiple of GRID.
        overlap: Least pixels that neighbours share, a multiple of GRID, at most half a tile.
        scale: Output pixels per input pixel.
    """
    ranges = tile_ranges(length, tile, overlap)
    raw, total = [], np.zeros(length * scale)
    for start, stop in ranges:
        where = (np.arange((stop - start) * scale) + 0.5) / scale  # centres of output pixels in the tile's pixels
        left = _ramp(where, overlap) if start > 0 else np.ones_like(where)
        right = _ramp(stop - start - where, overlap) if stop < length else np.ones_like(where)
        raw.append(np.minimum(left, right))
        total[start * scale : stop * scale] += raw[-1]
    return [
        Strip(start, stop, torch.from_numpy(weight / total[start * scale : stop * scale]).float())
        for weight, (start, stop) in zip(raw, ranges, strict=True)
    ]


def _ramp(distance: NDArray, overlap: int) -> NDArray:
    if overlap == 0:
        return np.ones_like(distance)
    return np.clip((distance - overlap / 4) / (overlap / 2), 0.0, 1.0)


def check_tile(tile: int, overlap: int) -> None:
    """Refuse tiles off the grid or overlaps that leave nothing between them.

    Raises:
        ValueError: With the nearest values that would do.
    """
    if tile % GRID or tile < SMALLEST_TILE:
        down = max(SMALLEST_TILE, tile // GRID * GRID)
        near = str(down) if down >= tile else f"{down} or {down + GRID}"
        refuse("upscale", "tile", f"a multiple of {GRID}, at least {SMALLEST_TILE} pixels", tile, f"try {near}")
    if overlap % GRID or not 0 <= overlap <= tile // 2:
        wanted = f"a multiple of {GRID} from 0 to half a tile ({tile // 2})"
        refuse("upscale", "overlap", wanted, overlap, f"{OVERLAP} is usual")


def tile_count(height: int, width: int, tile: int, overlap: int) -> int:
    """Return how many tiles a picture takes."""
    return len(tile_ranges(height, tile, overlap)) * len(tile_ranges(width, tile, overlap))


def upscale_tiled(
    run: Callable[[Tensor], Tensor],
    image: NDArray,
    *,
    scale: int,
    tile: int,
    overlap: int = OVERLAP,
    progress: Callable[[], None] | None = None,
) -> NDArray:
    """Upscale an RGB picture tile by tile.

    Args:
        run: Upscales (1, 3, h, w) float32 in [0, 1] to (1, 3, s * h, s * w); any device inside.
        image: (H, W, 3) uint8 or uint16.
        scale: s.
        tile: Largest side of a tile in input pixels, a multiple of GRID; at least the picture's side means one tile.
        overlap: Pixels that neighbouring tiles share, a multiple of GRID, at most half a tile.
        progress: Called after every tile.

    Returns:
        (s * H, s * W, 3) in the input's dtype, clipped and rounded.

    Raises:
        ValueError: `tile` or `overlap` does not fit, or the network gave NaN or infinity.

    Cost: memory for the result and 12 * s^2 * tile * W bytes, besides what `run` needs for one tile.
    """
    check_tile(tile, overlap)
    peak = float(np.iinfo(image.dtype).max)
    height, width = image.shape[:2]
    rows, columns = strips(height, tile, overlap, scale), strips(width, tile, overlap, scale)
    out = np.empty((height * scale, width * scale, 3), image.dtype)
    band = torch.zeros(3, max(row.stop - row.start for row in rows) * scale, width * scale)
    for i, row in enumerate(rows):
        for column in columns:
            piece = image[row.start : row.stop, column.start : column.stop].astype(np.float32) / peak
            y = run(torch.from_numpy(piece).permute(2, 0, 1)[None].contiguous())[0].float().cpu()
            if not all(map(torch.isfinite, y.aminmax())):  # NaN spreads to both; twenty times faster than a mask
                refuse("upscale", "the network's output", "finite", "NaN or infinity", "use --precision fp32 or bf16")
            inside = slice(column.start * scale, column.stop * scale)
            band[:, : y.shape[1], inside] += y * (row.weight[:, None] * column.weight)
            if progress is not None:
                progress()
        end = rows[i + 1].start if i + 1 < len(rows) else height  # rows above it are complete
        done = (end - row.start) * scale
        out[row.start * scale : end * scale] = _quantised(band[:, :done], peak, image.dtype)
        rest = band[:, done:].clone()
        band.zero_()
        band[:, : rest.shape[1]] = rest
    return out


def _quantised(band: Tensor, peak: float, dtype: np.dtype) -> NDArray:
    values = band.clamp(0, 1).mul_(peak).round_().permute(1, 2, 0)
    return values.numpy().astype(dtype)
