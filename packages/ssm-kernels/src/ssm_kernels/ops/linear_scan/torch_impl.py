"""The linear scan as products of matrices: all chunks of a row at once, and the states carried from chunk to chunk.

The modes do not change along a row, so a chunk of T steps is one matrix per channel: what its inputs do to its outputs
(T, T), what the state that enters does to them (T, 2 M), and what both do to the state that leaves. The backward has
the same form with time running the other way, and the gradients of a, b and c need sums over chunks only, of products
that are matrices again. See docs/linear_scan.md.

Letters: B batch, L length, D channels, M modes, T steps of a chunk, n chunks. Sequences are (D, T, n * B) here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..powers import complexes, moments, planes, powers, response, slopes, stacked

TABLE = 2**22  # numbers of the largest table that one block of channels may need: 16 MB in float32
SHORTEST, LONGEST = 16, 256  # steps of a chunk


@dataclass(frozen=True)
class Modes:
    """Complex (D, M) of a block of channels."""

    a: Tensor
    b: Tensor | None  # 1 if None
    c: Tensor

    @property
    def into(self) -> Tensor:
        """B with ones in its place."""
        return torch.ones_like(self.c) if self.b is None else self.b

    @property
    def both(self) -> Tensor:
        """B * c."""
        return self.c if self.b is None else self.b * self.c


@dataclass(frozen=True)
class Sums:
    """What is conjugate to the gradients of a, b and c, (D, M) each."""

    a: Tensor
    b: Tensor
    c: Tensor


def forward(
    x: Tensor, a: Tensor, b: Tensor | None, c: Tensor, initial_state: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return y and the final state (B, 2, M, D)."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty((batch, 2, *a.shape[1:]), dtype=kind, device=x.device)
    for block in _blocks(channels, length, a.shape[1]):
        modes = _modes(a, b, c, block, kind)
        state = _entering(initial_state, block, batch, modes)
        results = []
        for chunk in _cut(_sequence(x, block, kind, reverse)):
            result, _, state = _run(chunk, modes, state)
            results.append(result)
        _restore(y[..., block], results, reverse)
        final[..., block] = planes(state.movedim(-1, 0))
    return y, final


def backward(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    initial_state: Tensor | None,
    grad_y: Tensor,
    grad_final: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, a, b, c and the initial state, those of b and the state without regard to None."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grads = [torch.empty(a.shape, dtype=kind, device=x.device) for _ in range(3)]
    grad_state = torch.empty((batch, 2, *a.shape[1:]), dtype=kind, device=x.device)
    for block in _blocks(channels, length, a.shape[1]):
        modes = _modes(a, b, c, block, kind)
        state = _entering(initial_state, block, batch, modes)
        chunks, entering = _cut(_sequence(x, block, kind, reverse)), []
        for chunk in chunks:
            _, states, state = _run(chunk, modes, state)
            entering.append(states)
        adjoint = _entering(grad_final, block, batch, modes).conj_physical()
        results, totals = [], None
        gradients = _cut(_sequence(grad_y, block, kind, reverse))
        for chunk, gradient, states in zip(chunks[::-1], gradients[::-1], entering[::-1], strict=True):
            result, sums, adjoint = _run_back(chunk, gradient, states, modes, adjoint)
            results.insert(0, result)
            totals = sums if totals is None else Sums(totals.a + sums.a, totals.b + sums.b, totals.c + sums.c)
        assert totals is not None, "a row has at least one step"
        _restore(grad_x[..., block], results, reverse)
        for grad, total in zip(grads, (totals.a, totals.b, totals.c), strict=True):
            grad[..., block] = planes(total.conj_physical())
        grad_state[..., block] = planes(adjoint.conj_physical().movedim(-1, 0))
    return grad_x, grads[0], grads[1], grads[2], grad_state


@dataclass(frozen=True)
class Chunk:
    """Steps (D, T, n * B) of n chunks, chunk by chunk; all rows of one chunk lie together."""

    steps: Tensor
    count: int

    def by_chunk(self, x: Tensor) -> Tensor:
        """Split the last axis of (D, ..., n * B) into (n, B)."""
        return x.unflatten(-1, (self.count, -1))


def _blocks(channels: int, length: int, modes: int) -> Iterator[slice]:
    """Yield blocks of channels whose tables are of moderate size."""
    steps = min(length, _chunk_length(length))
    width = max(1, TABLE // (steps * (steps + 2 * modes)))
    for first in range(0, channels, width):
        yield slice(first, min(first + width, channels))


def _chunk_length(length: int) -> int:
    """Choose T: with short chunks the carry is a long loop, with long ones the matrices are large."""
    steps = SHORTEST
    while steps < LONGEST and steps * steps < 2 * length:
        steps *= 2
    return steps


def _modes(a: Tensor, b: Tensor | None, c: Tensor, block: slice, kind: torch.dtype) -> Modes:
    into = None if b is None else complexes(b[..., block], kind)
    return Modes(complexes(a[..., block], kind), into, complexes(c[..., block], kind))


def _entering(state: Tensor | None, block: slice, batch: int, modes: Modes) -> Tensor:
    """Return (B, 2, M, D), zeros if None, as complex (D, M, B)."""
    if state is None:
        return modes.a.new_zeros(*modes.a.shape, batch)
    real = state[..., block].to(modes.a.real.dtype)
    return torch.complex(real[:, 0].permute(2, 1, 0).contiguous(), real[:, 1].permute(2, 1, 0).contiguous())


def _sequence(x: Tensor, block: slice, kind: torch.dtype, reverse: bool) -> Tensor:
    """Return a block of channels as (D, B, L) in scan order."""
    x = x[..., block].permute(2, 0, 1).to(kind)
    return x.flip(2) if reverse else x


def _cut(x: Tensor) -> list[Chunk]:
    """Cut (D, B, L) into whole chunks and the rest."""
    length = x.shape[2]
    steps = _chunk_length(length)
    whole = length // steps * steps
    parts = []
    if whole:
        many = x[..., :whole].unflatten(2, (-1, steps)).permute(0, 3, 2, 1)
        parts.append(Chunk(many.flatten(2), whole // steps))
    if whole < length:
        parts.append(Chunk(x[..., whole:].mT.contiguous(), 1))
    return parts


def _restore(out: Tensor, results: list[Chunk], reverse: bool) -> None:
    """Write results into (B, L, D)."""
    rows = [chunk.by_chunk(chunk.steps).permute(3, 2, 1, 0).flatten(1, 2) for chunk in results]
    y = torch.cat(rows, 1)
    out.copy_(y.flip(1) if reverse else y)


def _toeplitz(kernel: Tensor) -> Tensor:
    """Return the lower triangular (D, T, T) with kernel[t - k] at (t, k)."""
    steps = kernel.shape[1]
    return F.pad(kernel.flip(1), (0, steps - 1)).unfold(1, steps, 1).flip(1)


def _times(real: Tensor, table: Tensor) -> Tensor:
    """Multiply a complex table (D, T, M), transposed, by real (D, T, columns): complex (D, M, columns)."""
    parts = stacked(table).mT @ real
    return torch.complex(*parts.chunk(2, 1))


def _carry(power: Tensor, ends: Tensor, state: Tensor, order: range) -> tuple[Tensor, Tensor]:
    """Return the state that enters every chunk, (D, M, n, B), and the one that leaves the last."""
    entering = torch.empty_like(ends)
    for i in order:
        entering[:, :, i] = state
        state = power[..., None] * state + ends[:, :, i]
    return entering, state


def _run(chunk: Chunk, modes: Modes, state: Tensor) -> tuple[Chunk, Tensor, Tensor]:
    """Return the outputs, the states that enter the chunks (D, M, n, B) and the state behind the last."""
    steps = chunk.steps.shape[1]
    table = powers(modes.a, steps + 1)
    ends = chunk.by_chunk(_times(chunk.steps, table[:, :steps].flip(1) * modes.into[:, None]))
    states, state = _carry(table[:, steps], ends, state, range(chunk.count))
    entered = states.flatten(2)
    y = _toeplitz(response(modes.a, modes.both, steps)) @ chunk.steps
    out = stacked((table[:, 1:] * modes.c[:, None]).conj_physical())
    return Chunk(y.baddbmm_(out, torch.cat([entered.real, entered.imag], 1)), chunk.count), states, state


def _run_back(
    chunk: Chunk, gradient: Chunk, states: Tensor, modes: Modes, adjoint: Tensor
) -> tuple[Chunk, Sums, Tensor]:
    """Return the gradient of the inputs, the sums and the adjoint in front of the first chunk.

    g[t] = c e[t] + a g[t+1] with the gradient e of y; `adjoint` is a g behind the last step. The sums are those over
    t of g[t] h[t-1], g[t] x[t] and e[t] h[t], each of which falls into a part within a chunk and parts from outside.
    """
    steps, b, c = chunk.steps.shape[1], modes.into, modes.c
    table = powers(modes.a, steps + 1)
    low, steep = table[:, :steps], slopes(table)
    ahead = _times(gradient.steps, low)  # sum of a^t e[t]
    power = table[:, steps]
    ends = gradient.by_chunk(ahead) * (modes.a * c)[..., None, None]
    behind, adjoint = _carry(power, ends, adjoint, range(chunk.count - 1, -1, -1))
    behind = behind.flatten(2)
    entered = states.flatten(2)
    back = stacked((low.flip(1) * b[:, None]).conj_physical())
    grad_x = (_toeplitz(response(modes.a, modes.both, steps)).mT @ gradient.steps).baddbmm_(
        back, torch.cat([behind.real, behind.imag], 1)
    )
    # products of e[t] and x[k] by t - k, and their sums with a^(t-k)
    inner, inner_steep = moments(modes.a, _lags(gradient.steps @ chunk.steps.flip(1).mT))
    seen = _times(chunk.steps, low.flip(1))  # sum of a^(T-1-k) x[k]
    seen_steep = _times(chunk.steps, steep[:, :steps].flip(1))
    ahead_steep = _times(gradient.steps, steep[:, 1:])
    through = b * (behind * seen_steep).sum(-1) + c * (entered * ahead_steep).sum(-1)
    across = steep[:, steps] * (behind * entered).sum(-1)
    sums = Sums(
        a=modes.both * inner_steep + through + across,
        b=c * inner + (behind * seen).sum(-1),
        c=b * inner + modes.a * (entered * ahead).sum(-1),
    )
    return Chunk(grad_x, chunk.count), sums, adjoint


def _lags(products: Tensor) -> Tensor:
    """Sum (D, t, T-1-k) over its anti-diagonals: (D, T), entry j is the sum of what has t - k = j."""
    steps = products.shape[1]
    skewed = F.pad(products, (0, steps)).flatten(1)[:, : steps * (2 * steps - 1)]
    return skewed.unflatten(1, (steps, 2 * steps - 1)).sum(1)[:, steps - 1 :]
