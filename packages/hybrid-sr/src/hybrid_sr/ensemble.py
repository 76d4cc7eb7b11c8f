"""Average over the eight flips and transpositions of a picture ("+" in published tables): slower, a little better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class SelfEnsemble:
    """Run an upscaler on the eight dihedral images of its input, turn the results back and average them.

    Attributes:
        run: Upscales (B, 3, h, w) to (B, 3, s * h, s * w).

    Source: Lim et al. 2017, arXiv:1707.02921, "geometric self-ensemble".
    """

    run: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, h, w); the mean is taken in float32, before any clipping."""
        total: Tensor | None = None
        for transpose, *flips in product((False, True), repeat=3):
            axes = [axis for axis, flip in zip((2, 3), flips, strict=True) if flip]
            turned = torch.flip(x.mT if transpose else x, axes)
            y = torch.flip(self.run(turned.contiguous()).float(), axes)
            y = y.mT if transpose else y
            total = y.clone() if total is None else total.add_(y)
        assert total is not None
        return total / 8
