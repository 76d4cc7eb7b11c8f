"""Which tokens of a sample are hidden, and everything else that chance decides about it. Pure functions of a number.

L tokens of a grid of R rows and C columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Plan(NamedTuple):
    """How many tokens are hidden: `hidden` of them, and the sides of the rectangle they form, or (0, 0)."""

    hidden: int
    sides: tuple[int, int]


def plan(rng: np.random.Generator, grid: tuple[int, int], rectangle: float) -> Plan:
    """Draw how many tokens are hidden: a share cos(pi t / 2) with t uniform, at least one."""
    rows, columns = grid
    share = math.cos(math.pi / 2 * rng.random())
    as_rectangle = rng.random() < rectangle
    if not as_rectangle:
        return Plan(max(1, round(share * rows * columns)), (0, 0))
    height = int(rng.integers(max(1, math.ceil(share * rows)), rows + 1))
    width = min(columns, max(1, round(share * rows * columns / height)))
    return Plan(height * width, (height, width))


def hide(rng: np.random.Generator, grid: tuple[int, int], drawn: Plan) -> NDArray[np.bool_]:
    """Draw which tokens are hidden, (L,) bool."""
    rows, columns = grid
    hidden = np.zeros(rows * columns, bool)
    if drawn.sides == (0, 0):
        hidden[rng.permutation(rows * columns)[: drawn.hidden]] = True
        return hidden
    top = int(rng.integers(rows - drawn.sides[0] + 1))
    left = int(rng.integers(columns - drawn.sides[1] + 1))
    hidden.reshape(grid)[top : top + drawn.sides[0], left : left + drawn.sides[1]] = True
    return hidden
