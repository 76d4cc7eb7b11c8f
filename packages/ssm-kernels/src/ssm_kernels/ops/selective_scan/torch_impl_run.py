"""What the PyTorch implementation computes with: the arguments in one form, and one slab over one segment of them.

Letters: B batch, L length, D channels, N state, G groups, S packed sequences; lower case b, g, d for a slab's part of
them; T steps of a chunk, k chunks of a segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_impl_plan import Event, Segment, Slab, segments, slabs


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

    def slabs(self) -> Iterable[Slab]:
        """Cut rows and channels."""
        return slabs(self.x.shape[0], self.B.shape[2], *self.A.shape[1:])

    def segments(self, slab: Slab) -> list[Segment]:
        """Cut time, for one slab."""
        width = slab.weight(self.A.shape[-1])
        return segments(self.x.shape[1], self.chunk, width, self.bounds, self.reverse, self.x.device)

    def in_order(self, found: list[Segment], backwards: bool = False) -> Iterable[Segment]:
        """Put segments in the order of the scan, or against it."""
        return reversed(found) if self.reverse != backwards else found

    def states(self, slab: Slab, x: Tensor) -> Tensor:
        """View (rows, D, N) as the slab's (rows, g, N, d)."""
        return slab.state(x, packed=self.bounds is not None)

    def chunk_states(self, saved: Tensor, slab: Slab, segment: Segment) -> Tensor:
        """View the saved states of the segment's chunks as (b, k, g, N, d)."""
        batch, length = self.x.shape[:2]
        per_row = -(-length // self.chunk)
        part = saved[: batch * per_row].unflatten(0, (batch, per_row))[slab.rows]
        return slab.state(part[:, segment.first_chunk : segment.first_chunk + segment.chunks], packed=True)


class Run:
    """One slab over one segment: its inputs, position first, (T, b, k, g, d or N), and the events of packed rows."""

    def __init__(self, p: Problem, slab: Slab, segment: Segment) -> None:
        self.p, self.slab, self.segment = p, slab, segment
        forwards = range(segment.steps)
        self.order = forwards[::-1] if p.reverse else forwards
        self.chunk_order = range(segment.chunks)[::-1] if p.reverse else range(segment.chunks)
        self.x = self.load(slab.sequence(p.x))
        self.B, self.C = self.load(slab.grouped(p.B)), self.load(slab.grouped(p.C))
        self.raw = self.load(slab.sequence(p.dt))
        if p.dt_bias is not None:
            self.raw += slab.channel(p.dt_bias, packed=True)
        self.delta = F.softplus(self.raw) if p.dt_softplus else self.raw
        self.u = self.delta * self.x
        self.skip = None if p.D is None else self._skip(p.D)
        self.all_rates = p.states(slab, p.A).contiguous()
        self.rates = self.all_rates[:, None]

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
        return self.x.new_empty(*steps, b, k, g, self.B.shape[-1], d)

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
        return torch.mul(delta, self.rates, out=out).exp_()

    def total_decay(self, events: dict[int, Event]) -> Tensor:
        """Return the product of every chunk's decays; 0 where a sequence begins (or ends), since no state passes."""
        total = (self.delta.sum(0).unsqueeze(-2) * self.rates).exp_()
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


def flat_columns(x: Tensor) -> tuple[Tensor, ...]:
    """Cut a contiguous (T, b, k, g, w) into positions (b * k * g, w, 1)."""
    return x.flatten(1, 3).unsqueeze(-1).unbind(0)


def carry(ends: Tensor, totals: Tensor, state: Tensor, order: range) -> Tensor:
    """Return the state that enters every chunk (b, k, g, N, d), from the one that enters the first, (b, g, N, d)."""
    starts = torch.empty_like(ends)
    for k in order:
        starts[:, k] = state
        state = torch.addcmul(ends[:, k], totals[:, k], state)
    return starts
