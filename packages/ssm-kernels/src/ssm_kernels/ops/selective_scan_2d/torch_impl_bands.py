"""Many states: the vectorised scan along a sequence, in which a direction is a row of the batch.

B batch, H height, W width, L = H * W, D channels, N state, K directions. The image is taken in bands: some steps of
every direction, copied into scan order, scanned from the states that the band before left, and added back to their
pixels. So the copies never exceed a band, whatever the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..selective_scan import torch_impl as one_way
from .cross import to_sequence

BAND = 1 << 20  # values of x in scan order at a time, over all directions
CHUNK = 64  # steps between the states that the backward keeps of a band


@dataclass(frozen=True)
class Scans:
    """The arguments, and `pixels` (K, L): what every direction reads at each of its steps, an index into H * W."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    dt_bias: Tensor | None
    softplus: bool
    pixels: Tensor
    wide: torch.dtype

    @classmethod
    def of(
        cls,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        dt_bias: Tensor | None,
        softplus: bool,
        codes: Sequence[int],
    ) -> Scans:
        """Bring the arguments of `selective_scan_2d` into this form: A (K * B, D, N), dt_bias (K, 1, 1, D)."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        height, width = x.shape[1:3]
        grid = torch.arange(height * width, device=x.device).view(1, height, width)
        pixels = torch.stack([to_sequence(grid, code)[0] for code in codes])
        rates = A.to(wide).repeat_interleave(x.shape[0], 0)
        bias = None if dt_bias is None else dt_bias.to(wide)[:, None, None]
        return cls(x, dt, rates, B, C, bias, softplus, pixels, wide)

    def bands(self) -> list[Tensor]:
        """Cut the steps of the scans: pixels (K, S)."""
        batch, _, _, channels = self.x.shape
        steps = BAND // (len(self.pixels) * batch * channels)
        return list(self.pixels.split(max(1, steps // CHUNK) * CHUNK, dim=1))

    def read(self, image: Tensor, band: Tensor) -> Tensor:
        """Copy (B, H, W, n), or a (B, H, W, K, n) with its own image for each direction, to (K, B, S, n), wide."""
        flat = image.flatten(1, 2)
        shape = (len(band), image.shape[0], band.shape[1], image.shape[-1])
        found = torch.empty(shape, dtype=self.wide, device=image.device)
        for k, pixels in enumerate(band):
            found[k] = flat[:, pixels] if image.dim() == 4 else flat[:, pixels, k]
        return found

    def arguments(self, band: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Give x, dt, A, B, C of the scan along a sequence for one band."""
        x, dt, B, C = (self.read(t, band) for t in (self.x, self.dt, self.B, self.C))
        if self.dt_bias is not None:
            dt += self.dt_bias
        return x.flatten(0, 1), dt.flatten(0, 1), self.A, B.flatten(0, 1), C.flatten(0, 1)

    def forward(self, band: Tensor, state: Tensor | None, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Scan a band from `state`, (K * B, D, N): C.h (K * B, S, D), the state that leaves it, those at its chunks."""
        none = (None, None, None, state, None, self.softplus, False)
        return one_way.forward(*self.arguments(band), *none, save_states=save_states, chunk=CHUNK)

    def backward(
        self, band: Tensor, state: Tensor, saved: Tensor, grad: Tensor, adjoint: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the gradients of x, dt, A, B, C and of `state`, given those of C.h and of the state that leaves."""
        none = (None, None, None, state, None, self.softplus, False)
        grads = one_way.backward(*self.arguments(band), *none, saved, grad, adjoint, chunk=CHUNK)
        return *grads[:5], grads[8]


def _add_back(image: Tensor, band: Tensor, sequences: Tensor) -> None:
    """Add (K * B, S, n) in scan order to the pixels of a contiguous (B, H, W, n)."""
    for pixels, part in zip(band, sequences.unflatten(0, (len(band), -1)), strict=True):
        image.flatten(1, 2).index_add_(1, pixels, part)


def _put_back(image: Tensor, band: Tensor, sequences: Tensor) -> None:
    """Write (K * B, S, n) in scan order to the pixels of a contiguous (B, H, W, K, n), which has its own for each."""
    flat = image.flatten(1, 2)
    for k, (pixels, part) in enumerate(zip(band, sequences.unflatten(0, (len(band), -1)), strict=True)):
        flat[:, :, k].index_copy_(1, pixels, part.to(image.dtype))


def add_forward(y: Tensor, scans: Scans) -> None:
    """Add the sum over the directions of C.h to y (B, H, W, D), contiguous and of the wide dtype."""
    state = None
    for band in scans.bands():
        part, state, _ = scans.forward(band, state, save_states=False)
        _add_back(y, band, part)


@dataclass(frozen=True)
class Gradients:
    """Gradients of some batch entries, those of A (K, D, N) and dt_bias (K, D) of the whole batch; all but dt wide."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    dt_bias: Tensor

    def of(self, part: slice) -> Gradients:
        """View some batch entries."""
        return Gradients(self.x[part], self.dt[part], self.A, self.B[part], self.C[part], self.dt_bias)


def add_backward(grads: Gradients, grad_y: Tensor, scans: Scans) -> None:
    """Differentiate `add_forward`, whose y has the gradient grad_y: add to those of x, A, dt_bias, write the others."""
    bands, count = scans.bands(), len(scans.pixels)
    state = torch.zeros_like(scans.A)
    entering, kept = [], []
    for band in bands:
        entering.append(state)
        _, state, saved = scans.forward(band, state, save_states=True)
        kept.append(saved)
    adjoint = None
    for band in reversed(bands):
        grad = scans.read(grad_y, band).flatten(0, 1)
        x, dt, A, B, C, adjoint = scans.backward(band, entering.pop(), kept.pop(), grad, adjoint)
        _add_back(grads.x, band, x)
        for image, part in ((grads.dt, dt), (grads.B, B), (grads.C, C)):
            _put_back(image, band, part)
        grads.A.add_(A.unflatten(0, (count, -1)).sum(1))
        grads.dt_bias.add_(dt.unflatten(0, (count, -1)).sum((1, 2)))
