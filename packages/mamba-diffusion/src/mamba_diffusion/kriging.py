"""Ordinary kriging from the nearest sensors, batched, on any device: where the flow of `ours` starts from.

Every query solves a small system of its own, so the cost grows linearly with the queries and does not depend on how
many sensors there are beyond the search for the nearest. B fields, N queries, M sensors, K neighbours, C channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Smoothness

PAIRS = 1 << 24  # distances held at once
LEAST_AMPLITUDE = 5e-3  # of the standardised values: about the rounding of 8-bit pictures


def offsets(a: Tensor, b: Tensor, wraps: tuple[bool, ...]) -> Tensor:
    """Return a - b along the shorter way round on periodic axes; shapes broadcast, the last axis is d."""
    difference = a - b
    if not any(wraps):
        return difference
    axes = zip(difference.unbind(-1), wraps, strict=True)
    return torch.stack([x - x.round() if wrap else x for x, wrap in axes], -1)


def nearest(queries: Tensor, points: Tensor, count: int, wraps: tuple[bool, ...]) -> Tensor:
    """Return which points are nearest to every query, nearest first.

    Args:
        queries: (B, N, d).
        points: (B, M, d).
        count: K; fewer if there are fewer points.
        wraps: Which axes are periodic.

    Returns:
        (B, N, K) int64.
    """
    count = min(count, points.shape[1])
    rows = max(1, PAIRS // (queries.shape[0] * points.shape[1]))
    found = []
    for part in queries.split(rows, 1):
        squares = offsets(part[:, :, None], points[:, None], wraps).square().sum(-1)
        found.append(squares.topk(count, -1, largest=False).indices)
    return torch.cat(found, 1)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Gather rows: x (B, M, C), index (B, N, K) give (B, N, K, C)."""
    first = x.shape[1] * torch.arange(x.shape[0], device=x.device)
    rows = x.flatten(0, 1).index_select(0, (index + first[:, None, None]).flatten())  # whole rows: faster than gather
    return rows.unflatten(0, index.shape)


def correlation(distance: Tensor, smoothness: Smoothness, length: float) -> Tensor:
    """Matern correlation of smoothness 1/2, 3/2 or 5/2."""
    r = distance / length
    if smoothness == "rough":
        return torch.exp(-r)
    if smoothness == "medium":
        r = math.sqrt(3) * r
        return (1 + r) * torch.exp(-r)
    r = math.sqrt(5) * r
    return (1 + r + r * r / 3) * torch.exp(-r)


class Covariance(NamedTuple):
    """Of the kriging.

    Attributes:
        smoothness: Of the Matern family.
        length: Correlation length.
        nugget: Added variance of every sensor, relative.
        wraps: Which axes are periodic.
    """

    smoothness: Smoothness
    length: float
    nugget: float
    wraps: tuple[bool, ...]


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve many small systems with positive definite matrices by elimination without pivots.

    Libraries for GPUs solve batches of such systems one by one, or start a kernel for each.

    Args:
        matrix: (..., K, K).
        right: (..., K, R).

    Returns:
        (..., K, R).
    """
    table = torch.cat([matrix, right], -1)
    size = matrix.shape[-1]
    for step in range(size):
        row = table[..., step, :] / table[..., step, step, None]
        factor = table[..., step].clone()
        factor[..., step] -= 1  # so that the row itself becomes the scaled one
        table = torch.addcmul(table, factor[..., None], row[..., None, :], value=-1)
    return table[..., size:]


def krige(queries: Tensor, points: Tensor, values: Tensor, index: Tensor, cov: Covariance) -> tuple[Tensor, Tensor]:
    """Ordinary kriging of every query from its own neighbours.

    Args:
        queries: (B, N, d).
        points: (B, M, d).
        values: (B, M, C).
        index: (B, N, K) from `nearest`.
        cov: Covariance, up to a factor.

    Returns:
        The mean (B, N, C), and the standard deviation (B, N, 1) for an amplitude of 1.

    Source: Chiles and Delfiner 2012, Geostatistics, 2nd edition, section 3.4.
    """
    k = index.shape[-1]
    rows = max(1, PAIRS // (queries.shape[0] * k * k))
    means, spreads = [], []
    for query, near in zip(queries.split(rows, 1), index.split(rows, 1), strict=True):
        place = pick(points, near)
        among = offsets(place[..., :, None, :], place[..., None, :, :], cov.wraps).norm(dim=-1)
        matrix = correlation(among, cov.smoothness, cov.length)
        matrix = matrix + cov.nugget * torch.eye(k, dtype=matrix.dtype, device=matrix.device)
        away = offsets(query[:, :, None], place, cov.wraps).norm(dim=-1)
        target = correlation(away, cov.smoothness, cov.length)
        solved, ones = solve(matrix, torch.stack([target, torch.ones_like(target)], -1)).unbind(-1)
        missing = (1 - solved.sum(-1)) / ones.sum(-1)  # of the weights' sum, which must be 1
        weights = solved + missing[..., None] * ones
        variance = 1 - (target * solved).sum(-1) + missing * (1 - solved.sum(-1))
        means.append(torch.einsum("bnk,bnkc->bnc", weights, pick(values, near)))
        spreads.append((variance.clamp_min(0) + cov.nugget).sqrt()[..., None])
    return torch.cat(means, 1), torch.cat(spreads, 1)


def nearest_others(points: Tensor, count: int, wraps: tuple[bool, ...]) -> Tensor:
    """Return which other points are nearest to every point (B, M, d), M >= 2: (B, M, K), K = `count` or M - 1."""
    others = nearest(points, points, count + 1, wraps)
    own = torch.arange(points.shape[1], device=points.device)[:, None]
    is_own = (others == own).long()
    is_own[..., -1] += (is_own.sum(-1) == 0).long()  # among many points at one place, drop the last
    return others.gather(-1, is_own.argsort(dim=-1, stable=True)[..., :-1])


def surprises(points: Tensor, values: Tensor, others: Tensor, cov: Covariance) -> tuple[Tensor, Tensor, Tensor]:
    """Compare every sensor with kriging of the others.

    Args:
        points: (B, M, d), M >= 2.
        values: (B, M, C).
        others: (B, M, K) from `nearest_others`.
        cov: Covariance, up to a factor.

    Returns:
        The differences in units of their own standard deviation (B, M, C); the amplitude (B, 1, C) that makes
        their mean square 1: the field's own scale, whatever its unit; and the mean logarithm of the density that each
        sensor had, up to a constant (B, 1, 1).
    """
    mean, spread = krige(points, points, values, others, cov)
    raw = (values - mean) / spread
    amplitude = raw.square().mean(1, keepdim=True).sqrt().clamp_min(LEAST_AMPLITUDE)
    return raw / amplitude, amplitude, -spread.log().mean(1, keepdim=True) - amplitude.log().mean(-1, keepdim=True)
