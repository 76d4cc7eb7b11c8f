"""Local attribution maps: which input pixels a network used to draw one small part of its result.

The gradient of a detector of edges in that part is followed along a path from a blurred to the sharp input. H, W are
the input's size in pixels, s the scale, F the points of the path.

Source: Gu and Dong 2021, arXiv:2011.11156.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .checks import refuse

SIGMA = 1.2  # pixels, of the blur at the path's start
FOLD = 50  # points of the path
KERNEL = 9  # side of the blur's kernel, in pixels
WINDOW = 16  # side of the part of the result that is explained, in its pixels
NEAR = 8  # input pixels around the part that count as neither arm nor elsewhere
BATCH = 10  # points of the path at once on a GPU; one elsewhere, where memory is scarcer


@dataclass(frozen=True)
class Attribution:
    """What a network used.

    Attributes:
        weights: (H, W) float64 in [0, 1], the largest is 1; all zero if the result does not depend on the input.
        at: Left column and upper row of the explained part, in pixels of the result.
        window: Its side.
        scale: s.
        change: What the detector gained from the blurred to the sharp input.
        explained: The sum of all attributions before their sign was dropped; equal to `change` in the limit of F.
    """

    weights: NDArray[np.float64]
    at: tuple[int, int]
    window: int
    scale: int
    change: float
    explained: float

    @property
    def diffusion_index(self) -> float:
        """100 * (1 - Gini coefficient): 100 if all pixels were used alike, towards 0 if a single one was."""
        return diffusion_index(self.weights)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, upper, right and lower end of the explained part and its next pixels, in input pixels."""
        x, y = self.at
        s, end = self.scale, self.window + 1  # the detector compares with the next pixel
        return x // s, y // s, -(-(x + end) // s), -(-(y + end) // s)

    def cross(self, near: int = NEAR) -> dict[str, float]:
        """Compare the part's rows and columns with everything else, away from the part itself.

        Returns:
            `near`: the share of all weight within `near` pixels of the part; `arms`: the mean weight of the pixels in
            the part's rows or columns and farther away; `elsewhere`: that of all other pixels; `ratio`: arms over
            elsewhere. A scan that only sees rows and columns has a large ratio. NaN where there are no such pixels.
        """
        left, upper, right, lower = self.box
        height, width = self.weights.shape
        y, x = np.arange(height)[:, None], np.arange(width)[None]
        rows, columns = (y >= upper) & (y < lower), (x >= left) & (x < right)
        close = (y >= upper - near) & (y < lower + near) & (x >= left - near) & (x < right + near)
        arms, rest = (rows | columns) & ~close, ~(rows | columns | close)
        total = max(float(self.weights.sum()), 1e-300)
        on, off = (float(self.weights[part].mean()) if part.any() else float("nan") for part in (arms, rest))
        return {
            "near": float(self.weights[close].sum()) / total,
            "arms": on,
            "elsewhere": off,
            "ratio": on / off if off > 0 else float("inf" if on > 0 else "nan"),
        }


def attribute(
    model: nn.Module,
    image: NDArray[np.uint8],
    at: tuple[int, int],
    *,
    scale: int,
    window: int = WINDOW,
    fold: int = FOLD,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Compute the local attribution map of one part of a network's result.

    Args:
        model: Upscales (B, 3, H, W) in [0, 1]; runs where its parameters are, in their dtype.
        image: The input, (H, W, 3) uint8.
        at: Left column and upper row of the part, in pixels of the result.
        scale: s.
        window: Side of the part, in pixels of the result.
        fold: F.
        progress: Called with (done, total) points.

    Returns:
        The map and its figures.

    Raises:
        ValueError: The part, and one pixel beyond it, does not lie inside the result.

    Cost: F forward and backward passes over the input.
    """
    height, width = image.shape[0] * scale, image.shape[1] * scale
    x, y = at
    if x < 0 or y < 0 or x + window >= width or y + window >= height:
        wanted = f"from 0,0 to {width - window - 1},{height - window - 1} (the result is {width}x{height})"
        refuse("lam", "at", wanted, f"{x},{y}", f"the part is {window} pixels wide and high")
    learned = [x for x in model.parameters() if x.requires_grad]
    for parameter in learned:  # their gradients are not wanted
        parameter.requires_grad_(False)
    try:
        return _follow(model, image, at, scale, window, fold, progress)
    finally:
        for parameter in learned:
            parameter.requires_grad_()


def _follow(
    model: nn.Module,
    image: NDArray[np.uint8],
    at: tuple[int, int],
    scale: int,
    window: int,
    fold: int,
    progress: Callable[[int, int], None] | None,
) -> Attribution:
    """Sum gradient times step along the path."""
    like = next(model.parameters())
    sharp = image.astype(np.float64) / 255
    total = torch.zeros(3, *image.shape[:2], dtype=torch.float64)
    points = list(_path(sharp, fold))
    at_once = BATCH if like.device.type == "cuda" else 1
    for start in range(0, fold, at_once):
        some = points[start : start + at_once]
        blurred = torch.from_numpy(np.stack([x for x, _ in some])).to(like).requires_grad_()
        (gradient,) = torch.autograd.grad(_detect(model(blurred), at, window).sum(), blurred)
        steps = torch.from_numpy(np.stack([dx for _, dx in some]))
        total += (torch.nan_to_num(gradient).double().cpu() * steps).sum(0) / fold
        if progress is not None:
            progress(min(start + at_once, fold), fold)
    ends = torch.from_numpy(np.stack([_channels_first(_blur(sharp, SIGMA)), _channels_first(sharp)])).to(like)
    with torch.no_grad():
        first, last = _detect(model(ends), at, window).double().tolist()
    weights = total.sum(0).abs()
    weights = weights / weights.max().clamp_min(1e-300)
    return Attribution(weights.numpy(), at, window, scale, last - first, float(total.sum()))


def _detect(result: Tensor, at: tuple[int, int], window: int) -> Tensor:
    """Sum the length of the gradient over a part: (B, 3, s * H, s * W) -> (B,). Flat places have derivative 0."""
    x, y = at
    part = result[:, :, y : y + window + 1, x : x + window + 1]
    down, right = part[:, :, :-1, :-1] - part[:, :, 1:, :-1], part[:, :, :-1, :-1] - part[:, :, :-1, 1:]
    square = down.square() + right.square()
    steep = square > 0
    return (torch.where(steep, square, 1.0).sqrt() * steep).sum((1, 2, 3))


def _path(sharp: NDArray[np.float64], fold: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield (3, H, W) inputs from the blurred to the sharp one, each with the path's derivative there."""
    before = _blur(sharp, SIGMA)
    for sigma in np.linspace(SIGMA, 0, fold + 1)[1:]:
        after = _blur(sharp, float(sigma))
        yield _channels_first(after), _channels_first((after - before) * fold)
        before = after


def _blur(image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    reach = np.arange(KERNEL) - KERNEL // 2
    line = np.exp(-0.5 * (reach / (sigma + 1e-5)) ** 2)
    line /= line.sum()
    rows, columns = image.shape[:2]
    around = KERNEL // 2
    padded = np.pad(image, ((around, around), (around, around), (0, 0)), mode="reflect")  # without the edge itself
    down = np.sum([weight * padded[i : i + rows] for i, weight in enumerate(line)], axis=0)
    return np.sum([weight * down[:, i : i + columns] for i, weight in enumerate(line)], axis=0)


def _channels_first(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def diffusion_index(weights: NDArray[np.float64]) -> float:
    """Return 100 * (1 - Gini) of non-negative weights of any shape; 100 means that all are equal."""
    values = np.sort(weights.ravel().astype(np.float64) + 1e-7)
    n = values.size
    order = 2 * np.arange(1, n + 1) - n - 1
    return float((1 - (order * values).sum() / (n * values.sum())) * 100)


def density(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Gaussian kernel density of weighted pixels at every pixel, the largest value 1.

    The kernel's covariance is that of the weighted positions times n_eff^(-1/3) (Scott's rule in two dimensions, as
    scipy's `gaussian_kde`); the sum is a convolution, made by a Fourier transform.

    Args:
        weights: (H, W), not negative, not all zero.
    """
    height, width = weights.shape
    share = weights / weights.sum()
    y, x = np.mgrid[:height, :width].astype(np.float64)
    offsets = np.stack([y - (share * y).sum(), x - (share * x).sum()])
    squares = float((share**2).sum())
    covariance = np.einsum("hw,ihw,jhw->ij", share, offsets, offsets) / max(1 - squares, 1e-12)
    covariance = covariance * squares ** (1 / 3) + 1e-12 * np.eye(2)
    dy, dx = (np.fft.fftfreq(2 * n, 1 / (2 * n)) for n in (height, width))
    away = np.stack(np.broadcast_arrays(dy[:, None], dx[None]))
    kernel = np.exp(-0.5 * np.einsum("ihw,ij,jhw->hw", away, np.linalg.inv(covariance), away))
    size = (2 * height, 2 * width)
    spread = np.fft.irfft2(np.fft.rfft2(share, size) * np.fft.rfft2(kernel), size)[:height, :width]
    return np.maximum(spread, 0) / spread.max()
