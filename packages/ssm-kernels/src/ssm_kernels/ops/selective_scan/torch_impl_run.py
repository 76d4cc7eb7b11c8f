"""What the PyTorch implementation computes with: the arguments in one form, and one slab over one segment of them.

Letters: B batch, L length, D channels, N state, G groups, S packed sequences; lower case b, g, d for a slab's part of
them; T steps of a chunk, k chunks of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from . import torch_impl_plan as plan
from .torch_impl_plan import Cut, Event, Segment, Slab

LN_2 = math.log(2)
LOG2_E = 1 / LN_2


@dataclass
class Problem:
    """The arguments in one form: A (rows, D, N), B and C (B, L, G, N), D (rows, D), states in the wide dtype."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial: Tensor
    bounds: list[int] | None
    dt_softplus: bool
    reverse: bool
    chunk: int
    kind: torch.dtype
    rooms: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        dt_softplus: bool,
        reverse: bool,
        chunk: int,
    ) -> Problem:
        """Bring the arguments of `selective_scan` into this form."""
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        bounds = None if cu_seqlens is None else cu_seqlens.tolist()
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        A = A.to(kind) if A.dim() == 3 else A.to(kind)[None]
        if initial_state is None:
            initial = torch.zeros(rows, *A.shape[1:], dtype=kind, device=x.device)
        else:
            initial = initial_state.to(kind)
        if B.dim() == 3:
            B, C = B[:, :, None], C[:, :, None]
        if D is not None:
            D = D.to(kind) if D.dim() == 2 else D.to(kind)[None]
        bias = None if dt_bias is None else dt_bias.to(kind)[None]
        return cls(x, dt, A, B, C, D, z, bias, initial, bounds, dt_softplus, reverse, chunk, kind)

    @property
    def own_rates(self) -> bool:
        """Whether every packed sequence has its own A."""
        return self.bounds is not None and self.A.shape[0] > 1

    def saved_rows(self) -> int:
        """How many chunk states are saved over all rows."""
        batch, length = self.x.shape[:2]
        if self.bounds is None:
            return batch * -(-length // self.chunk)
        return length // self.chunk + len(self.bounds) - 1

    def cuts(self, backwards: bool) -> Iterator[tuple[Slab, list[Segment]]]:
        """Cut rows and channels, and time for each slab, in the order of the scan or against it."""
        (batch, length), state = self.x.shape[:2], self.A.shape[-1]
        most = plan.backward_slab(length, self.chunk) if backwards else plan.TILE
        for slab in plan.slabs(batch, self.B.shape[2], self.A.shape[1], state, most):
            width = slab.weight(state)
            cut = (Cut.backward if backwards else Cut.forward)(width, length, self.chunk)
            found = cut.segments(length, self.bounds, self.reverse, self.x.device)
            yield slab, found[::-1] if self.reverse != backwards else found

    def states(self, slab: Slab, x: Tensor) -> Tensor:
        """View (rows, D, N) as the slab's (rows, g, N, d)."""
        return slab.state(x, packed=self.bounds is not None)

    def chunk_states(self, saved: Tensor, slab: Slab, segment: Segment) -> Iterator[tuple[int, Tensor]]:
        """Yield the chunks of a segment whose entering states are saved, with a view of them, (b, g, N, d)."""
        batch, length = self.x.shape[:2]
        per_row = -(-length // self.chunk)
        rows = slab.state(saved[: batch * per_row].unflatten(0, (batch, per_row))[slab.rows], packed=True)
        for k, place in segment.saved(length, self.chunk, self.reverse):
            yield k, rows[:, place]


class Run:
    """One slab over one segment: its inputs, position first, (T, b, k, g, d or N), and the events of packed rows."""

    def __init__(self, p: Problem, slab: Slab, segment: Segment) -> None:
        self.p, self.slab, self.segment = p, slab, segment
        forwards = range(segment.steps)
        self.order = forwards[::-1] if p.reverse else forwards
        self.chunk_order = range(segment.chunks)[::-1] if p.reverse else range(segment.chunks)
        self.x = self.wide(slab.sequence(p.x))
        self.B, self.C = self.load(slab.grouped(p.B)), self.load(slab.grouped(p.C))
        self.delta = self.load(slab.sequence(p.dt))
        if p.dt_bias is not None:
            self.delta += slab.channel(p.dt_bias, packed=True)
        if p.dt_softplus:
            torch.ops.aten.softplus.out(self.delta, out=self.delta)
        self.u = torch.mul(self.delta, self.x, out=self.sequence())
        self.skip = None if p.D is None else self._skip(p.D)
        # decays are exp2(delta * rates) on a CPU, where exp2 costs about 0.6 of exp; a GPU's exp2 is biased
        self.binary = not p.x.is_cuda
        self.all_rates = p.states(slab, p.A).contiguous().mul(LOG2_E if self.binary else 1.0)
        self.rates = self.all_rates[:, None]

    def sequence(self) -> Tensor:
        """Make room for what has a value per channel, (T, b, k, g, d)."""
        return torch.empty(self.x.shape, dtype=self.p.kind, device=self.x.device)

    def wide(self, view: Tensor) -> Tensor:
        """View a slab's (b, L, g, w) as (T, b, k, g, w), or copy it if it is not of the wide dtype."""
        return self.unpack(view) if view.dtype == self.p.kind else self.load(view)

    def load(self, view: Tensor) -> Tensor:
        """Copy a slab's (b, L, g, w) to (T, b, k, g, w) in the wide dtype."""
        part = self.unpack(view)
        return torch.empty(part.shape, dtype=self.p.kind, device=part.device).copy_(part)

    def unpack(self, view: Tensor) -> Tensor:
        """View a slab's (b, L, g, w), or this segment of it, as (T, b, k, g, w)."""
        part = view[:, self.segment.begin : self.segment.end]
        return part.unflatten(1, (self.segment.chunks, self.segment.steps)).permute(2, 0, 1, 3, 4)

    def buffer(self, *steps: int) -> Tensor:
        """Make room for a state per chunk, (*steps, b, k, g, N, d)."""
        _, b, k, g, d = self.x.shape
        return torch.empty(*steps, b, k, g, self.B.shape[-1], d, dtype=self.p.kind, device=self.x.device)

    def steps_buffer(self, name: str, steps: int) -> Tensor:
        """Make room for a state per chunk and step in the place that `name` had before: fresh memory is slow."""
        room = self.p.rooms.get(name)
        shape = self.buffer(0).shape[1:]
        size = steps * prod(shape)
        if room is None or room.numel() < size:
            room = self.p.rooms[name] = self.buffer(steps).flatten()
        return room[:size].view(steps, *shape)

    def _skip(self, D: Tensor) -> Tensor:
        """Shape D so that it multiplies x: (b or 1, 1, g, d), or (T, 1, k, g, d) for a D per packed sequence."""
        bounds, segment = self.p.bounds, self.segment
        if bounds is None or D.shape[0] == 1:
            return self.slab.channel(D, packed=False)[:, None]
        steps = torch.arange(segment.begin, segment.end, device=D.device)
        sequence = torch.bucketize(steps, torch.tensor(bounds[1:], device=D.device), right=True)
        in_time = self.slab.channel(D, packed=True)[sequence]
        return in_time.unflatten(0, (segment.chunks, segment.steps)).transpose(0, 1)[:, None]

    def begin(self, backwards: bool = False) -> None:
        """Take the rates of the sequences at the chunks' first positions (the last ones if `backwards`)."""
        if self.p.own_rates:
            in_time = self.p.reverse == backwards
            self.rates = self.all_rates[self.segment.sequence_first if in_time else self.segment.sequence_last][None]

    def replace(self, event: Event | None, state: Tensor, by: Tensor) -> None:
        """Where chunks pass into another sequence, give them its state and rates."""
        if event is not None:
            state[0, event.chunks] = by[event.sequences]
            if self.p.own_rates:
                self.rates[0, event.chunks] = self.all_rates[event.sequences]

    def decay(self, delta: Tensor, out: Tensor) -> Tensor:
        """Write exp(delta * A) of one position."""
        return self.power_(torch.mul(delta, self.rates, out=out))

    def power_(self, exponents: Tensor) -> Tensor:
        """Replace what is in units of `all_rates` by its exponential."""
        return exponents.exp2_() if self.binary else exponents.exp_()

    def read(self, C: Tensor, states: Tensor, out: Tensor) -> None:
        """Write C.h, (n, 1, N) times (n, N, d): for one state the matrix product is slow."""
        (torch.mul if states.shape[1] == 1 else torch.bmm)(C, states, out=out)

    def total_decay(self, events: dict[int, Event]) -> Tensor:
        """Return the product of every chunk's decays; 0 where a sequence begins (or ends), since no state passes."""
        total = self.power_(self.delta.sum(0).unsqueeze(-2).mul(self.rates))
        total.clamp_(max=torch.finfo(total.dtype).max)  # a growing system may overflow, yet times a zero state is zero
        total = total.expand(self.buffer().shape).contiguous() if events else total
        for event in events.values():
            total[0, event.chunks] = 0
        return total


def rows(x: Tensor) -> tuple[Tensor, ...]:
    """Cut (T, b, k, g, w) into positions (b, k, g, 1, w), to be broadcast against a state."""
    return x.unsqueeze(-2).unbind(0)


def columns(x: Tensor) -> tuple[Tensor, ...]:
    """Cut (T, b, k, g, w) into positions (b, k, g, w, 1)."""
    return x.unsqueeze(-1).unbind(0)


def flat_rows(x: Tensor) -> tuple[Tensor, ...]:
    """Cut a contiguous (T, b, k, g, w) into positions (b * k * g, 1, w), to be multiplied as matrices."""
    return x.flatten(1, 3).unsqueeze(-2).unbind(0)


def local_states(run: Run, decays: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Run all chunks from a zero state; write their decays, return their end states and total decays."""
    state = run.buffer().zero_()
    delta, u, B, decay = rows(run.delta), rows(run.u), columns(run.B), decays.unbind(0)
    run.begin()
    for j in run.order:
        run.replace(run.segment.entries.get(j), state, initial)
        state.mul_(run.decay(delta[j], decay[j])).addcmul_(u[j], B[j])
    return state, run.total_decay(run.segment.entries)


def carry(ends: Tensor, totals: Tensor, state: Tensor, order: range) -> Tensor:
    """Return the state that enters every chunk (b, k, g, N, d), from the one that enters the first, (b, g, N, d)."""
    starts = torch.empty_like(ends)
    end, total, start = (x.unbind(1) for x in (ends, totals, starts))
    start[order[0]].copy_(state)
    for k, following in pairwise(order):
        torch.addcmul(end[k], total[k], start[k], out=start[following])
    return starts
