"""Vectorised PyTorch: every line of the image is cut into segments, and all segments advance one step at a time.

B batch, H height, W width, D channels, N state, K directions; S lines (rows or columns) of n pixels, each cut into
m segments of T steps. Three phases, without a division or a logarithm of a product, so nothing under- or overflows
that the loop would not: (1) every segment from a zero state, keeping its end state and the product of its decays;
(2) the carry over the S * m segments; (3) every segment again, from the state that enters it. Steps are slices
`start::T` of a line, so nothing is copied into scan order; a slab (all segments at one step) is small enough to stay
in the cache. States are taken one by one, so that one state (N = 1) costs no extra axis; more than FEW are taken
together, by torch_impl_bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross import is_column, is_reversed
from .torch_impl_bands import Gradients, Scans, add_backward, add_forward

SLAB = 1 << 16  # values in a slab: enough for two threads, small enough for their caches
SHORTEST = 16  # steps in a segment: below this the carry pass costs more than it saves
CARRY = 32  # segments that the carry pass takes one by one
FEW = 4  # states that are worth taking one by one
LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class _Cut:
    """How the lines of one direction are cut into segments, and what belongs to each step of all of them."""

    column: bool
    reverse: bool
    slab: tuple[int, int, int, int]  # B, S, m, D
    pixels: int  # n, of a line
    steps: int  # T, of a segment

    @property
    def values(self) -> int:
        """Count the values of a buffer that holds every step."""
        batch, lines, segments, channels = self.slab
        return self.steps * batch * lines * segments * channels

    def slices(self, image: Tensor) -> list[Tensor]:
        """View (B, H, W, ...) as one (B, S, m, ...) for each step; m is smaller where a segment has ended by then."""
        lines = image.transpose(1, 2) if self.column else image
        starts = [(self.pixels - 1 - step) % self.steps if self.reverse else step for step in range(self.steps)]
        return [lines[:, :, start :: self.steps] for start in starts]

    def live(self, slab: Tensor, step: int) -> Tensor:
        """View the segments in (B, S, m or fewer, D) that have a step `step`: one at an end of a line may lack it."""
        segments, count = slab.shape[2], (self.pixels - 1 - step) // self.steps + 1
        if count == segments:
            return slab
        return slab[:, :, segments - count :] if self.reverse else slab[:, :, :count]

    def buffer(self, room: Tensor) -> list[Tensor]:
        """Lay a slab for each step into a flat tensor."""
        slabs = room[: self.values].view(self.steps, *self.slab).unbind()
        return [self.live(slab, step) for step, slab in enumerate(slabs)]

    def scratch(self, like: Tensor) -> list[Tensor]:
        """Make a buffer in which every step overwrites the one before."""
        slab = like.new_empty(self.slab)
        return [self.live(slab, step) for step in range(self.steps)]


def _cut(code: int, batch: int, height: int, width: int, channels: int) -> _Cut:
    """Choose segments short enough that a slab fills SLAB, and not shorter than SHORTEST."""
    lines, pixels = (width, height) if is_column(code) else (height, width)
    wanted = max(1, SLAB // (batch * lines * channels))
    steps = min(pixels, max(SHORTEST, -(-pixels // wanted)))
    slab = (batch, lines, -(-pixels // steps), channels)
    return _Cut(is_column(code), is_reversed(code), slab, pixels, steps)


def _groups(shape: Sequence[int]) -> list[slice]:
    """Split the batch so that segments of SHORTEST steps fill a slab, which also bounds the memory."""
    batch, height, width, channels = shape
    size = max(1, SLAB * SHORTEST // (height * width * channels))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _entering(decay: Tensor, end: Tensor) -> Tensor:
    """Return the state that enters each chunk, given its decay and its end state from zero: all (B, chunks, D)."""
    count = decay.shape[1]
    if count <= CARRY:
        entering = torch.empty_like(end)
        state = torch.zeros_like(end[:, 0])
        for c in range(count):
            entering[:, c] = state
            torch.addcmul(end[:, c], decay[:, c], state, out=state)
        return entering
    padding = (0, 0, 0, -count % CARRY)
    decays, ends = (F.pad(t, padding).unflatten(1, (-1, CARRY)).unbind(2) for t in (decay, end))
    product, state = torch.ones_like(decays[0]), torch.zeros_like(ends[0])
    for c in range(CARRY):
        product.mul_(decays[c])
        torch.addcmul(ends[c], decays[c], state, out=state)
    state = _entering(product, state)
    entering = []
    for c in range(CARRY):
        entering.append(state)
        state = torch.addcmul(ends[c], decays[c], state)
    return torch.stack(entering, dim=2).flatten(1, 2)[:, :count]


def _carry(decay: Tensor, end: Tensor, reverse: bool) -> Tensor:
    """Run `_entering` over the segments of all lines, (B, S, m, D), from the first to the last or back."""
    chunks = (t.flatten(1, 2).flip(1) if reverse else t.flatten(1, 2) for t in (decay, end))
    entering = _entering(*chunks)
    return (entering.flip(1) if reverse else entering.contiguous()).unflatten(1, decay.shape[1:3])


class _Direction:
    """One direction of some batch entries: a list over the steps of views of each argument, and of each buffer."""

    def __init__(
        self,
        cut: _Cut,
        k: int,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        bias: Tensor | None,
        softplus: bool,
        rooms: Tensor,
    ) -> None:
        """Take x, dt, A, B, C of the batch entries; `rooms`, (2 or 4, values), becomes the buffers."""
        x, dt, A, B, C = inputs
        self.cut, self.softplus = cut, softplus
        self.x, self.dt, self.B, self.C = (cut.slices(t) for t in (x, dt[..., k, :], B[..., k, :], C[..., k, :]))
        self.A = A[k].t().contiguous()
        # exp2 costs 0.6 of exp on a CPU; a GPU's is biased
        self.power, scale = (torch.exp, 1.0) if self.A.is_cuda else (torch.exp2, LOG2_E)
        self.exponents = self.A * scale
        self.bias = None if bias is None else bias[k]
        self.decay, self.added, *kept = (cut.buffer(room) for room in rooms)
        self.delta, self.scaled = kept or (cut.scratch(x), cut.scratch(x))

    def prepare(self, step: int) -> None:
        """Compute delta and delta * x of one step."""
        delta = self.delta[step]
        if self.bias is None:
            delta.copy_(self.dt[step])
        else:
            torch.add(self.dt[step], self.bias, out=delta)
        if self.softplus:
            torch.ops.aten.softplus.out(delta, out=delta)
        torch.mul(delta, self.x[step], out=self.scaled[step])

    def run_segments(self, n: int) -> tuple[Tensor, Tensor]:
        """Run state `n` of every segment from zero; keeps decays and inputs, returns their product and end state."""
        x, cut = self.x[0], self.cut
        product, state = x.new_ones(cut.slab), x.new_zeros(cut.slab)
        for step, (decay, added) in enumerate(zip(self.decay, self.added, strict=True)):
            if n == 0:
                self.prepare(step)
            self.power(torch.mul(self.delta[step], self.exponents[n], out=decay), out=decay)
            torch.mul(self.scaled[step], self.B[step][..., n : n + 1], out=added)
            now = cut.live(state, step)
            torch.addcmul(added, decay, now, out=now)
            cut.live(product, step).mul_(decay)
        return product, state

    def add_output(self, n: int, y: list[Tensor]) -> None:
        """Add what state `n` contributes to the output of every step."""
        state = _carry(*self.run_segments(n), self.cut.reverse)
        for step, (decay, added) in enumerate(zip(self.decay, self.added, strict=True)):
            now = self.cut.live(state, step)
            torch.addcmul(added, decay, now, out=now)
            y[step].addcmul_(now, self.C[step][..., n : n + 1])


def _direct(x: Tensor, D: Tensor | None) -> Tensor:
    """Start the sum over the directions with the direct path, in a contiguous tensor."""
    if D is None:
        return x.new_zeros(x.shape)
    return torch.mul(x, D.sum(0, dtype=x.dtype), out=x.new_empty(x.shape))


def selective_scan_2d_torch(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
) -> Tensor:
    """Compute `selective_scan_2d`; float32 arithmetic, float64 for float64 `x`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if A.shape[2] > FEW:
        y = _direct(x.to(wide), D)
        add_forward(y, Scans.of(x, dt, A, B, C, dt_bias, dt_softplus, codes))
        return y.to(x.dtype)
    u, A, B, C = (t.to(wide) for t in (x, A, B, C))
    bias = None if dt_bias is None else dt_bias.to(wide)
    y = _direct(u, D)
    for part in _groups(x.shape):
        image, inputs = y[part], (u[part], dt[part], A, B[part], C[part])
        cuts = [_cut(code, *image.shape) for code in codes]
        rooms = u.new_empty(2 if A.shape[2] == 1 else 4, max(cut.values for cut in cuts))
        for k, cut in enumerate(cuts):
            run = _Direction(cut, k, inputs, bias, dt_softplus, rooms)
            for n in range(A.shape[2]):
                run.add_output(n, cut.slices(image))
    return y.to(x.dtype)


def _local_adjoint(run: _Direction, n: int, grad_y: list[Tensor]) -> Tensor:
    """Run the adjoint of every segment from zero at its end; returns the adjoint of the state that enters it."""
    adjoint = torch.zeros(run.cut.slab, dtype=run.x[0].dtype, device=run.x[0].device)
    for step in reversed(range(run.cut.steps)):
        now = run.cut.live(adjoint, step)
        now.addcmul_(grad_y[step], run.C[step][..., n : n + 1]).mul_(run.decay[step])
    return adjoint


def _states_before(run: _Direction, entering: Tensor) -> list[Tensor]:
    """Turn the inputs of every step into the state after it, in place; returns the states before each step."""
    before = [run.cut.live(entering, 0)]
    for step, state in enumerate(run.added):
        state.addcmul_(run.decay[step], run.cut.live(before[step], step))
        before.append(state)
    return before[:-1]


def _backward_state(
    run: _Direction, n: int, k: int, grad_y: list[Tensor], grad_delta: list[Tensor], grads: Gradients
) -> None:
    """Add what state `n` of one direction contributes to every gradient."""
    cut = run.cut
    product, end = run.run_segments(n)
    before = _states_before(run, _carry(product, end, cut.reverse))
    adjoint = _carry(product, _local_adjoint(run, n, grad_y), not cut.reverse)
    grad_A = torch.zeros_like(adjoint)
    grad_x, grad_B, grad_C = (cut.slices(t) for t in (grads.x, grads.B[..., k, n], grads.C[..., k, n]))
    for step in reversed(range(cut.steps)):
        delta, state = run.delta[step], run.added[step]
        now = cut.live(adjoint, step)
        now.addcmul_(grad_y[step], run.C[step][..., n : n + 1])  # adjoint of the state after the step
        torch.sum(grad_y[step] * state, -1, out=grad_C[step])
        torch.sum(now * run.scaled[step], -1, out=grad_B[step])
        grad_scaled = now * run.B[step][..., n : n + 1]
        grad_x[step].addcmul_(grad_scaled, delta)
        grad_delta[step].addcmul_(grad_scaled, run.x[step])
        now.mul_(run.decay[step])  # adjoint of the state before the step
        grad_exponent = now * cut.live(before[step], step)
        grad_delta[step].addcmul_(grad_exponent, run.A[n])
        cut.live(grad_A, step).addcmul_(grad_exponent, delta)
    grads.A[k, :, n] += grad_A.sum((0, 1, 2))


def _backward_direction(run: _Direction, k: int, grad_y: Tensor, room: Tensor, grads: Gradients) -> None:
    """Add what one direction contributes to every gradient but that of D."""
    cut = run.cut
    grad_delta = cut.buffer(room.zero_())
    steps_y = cut.slices(grad_y)
    for n in range(run.A.shape[0]):
        _backward_state(run, n, k, steps_y, grad_delta, grads)
    grad_bias = torch.zeros(cut.slab, dtype=room.dtype, device=room.device)
    for step, grad_dt in enumerate(cut.slices(grads.dt[..., k, :])):
        if run.softplus:  # sigmoid(z) = 1 - exp(-softplus(z))
            grad_delta[step].mul_(run.delta[step].neg().expm1_().neg_())
        grad_dt.copy_(grad_delta[step])
        cut.live(grad_bias, step).add_(grad_delta[step])
    grads.dt_bias[k] += grad_bias.sum((0, 1, 2))


def selective_scan_2d_torch_backward(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    codes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of x, dt, A, B, C, D, dt_bias in their dtypes; empty for a D or dt_bias of None."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gy, u, A_, B_, C_ = (t.to(wide) for t in (grad_y, x, A, B, C))
    bias = None if dt_bias is None else dt_bias.to(wide)
    zeros = (t.new_zeros(t.shape) for t in (A_, B_, C_, A_[..., 0]))
    grads = Gradients(_direct(gy, D), dt.new_empty(dt.shape), *zeros)
    if A.shape[2] > FEW:
        add_backward(grads, gy, Scans.of(x, dt, A, B, C, dt_bias, dt_softplus, codes))
    else:
        for part in _groups(x.shape):
            image, inputs = gy[part], (u[part], dt[part], A_, B_[part], C_[part])
            cuts = [_cut(code, *image.shape) for code in codes]
            rooms = u.new_empty(5, max(cut.values for cut in cuts))
            for k, cut in enumerate(cuts):
                run = _Direction(cut, k, inputs, bias, dt_softplus, rooms[:4])
                _backward_direction(run, k, image, rooms[4], grads.of(part))
    direct = (gy * u).sum((0, 1, 2)).expand(len(codes), -1)
    return (
        grads.x.to(x.dtype),
        grads.dt,
        grads.A.to(A.dtype),
        grads.B.to(B.dtype),
        grads.C.to(C.dtype),
        x.new_empty(0) if D is None else direct.to(D.dtype, copy=True, memory_format=torch.contiguous_format),
        x.new_empty(0) if dt_bias is None else grads.dt_bias.to(dt_bias.dtype),
    )
