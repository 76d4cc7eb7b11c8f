"""How the PyTorch implementation cuts its work: segments of chunks along time, slabs of rows and channels.

A chunk is a run of consecutive steps, a segment a run of chunks that are walked in parallel: position j of every chunk
at once. A slab is a part of the batch and of the channels. Packed sequences become events: at the position where a
sequence is entered or left, the state of that chunk is replaced.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

TILE = 3 << 15  # numbers per position of a segment: large enough to hide the call, small enough for the cache
STEPS = 32  # steps of a chunk where chunks are walked in parallel; TILE * STEPS numbers about fill the last cache
THIN = 4  # what a state of 1 to 3 numbers counts as: next to it the buffers without a state axis weigh more


@dataclass(frozen=True)
class Event:
    """At one position: which chunks of the segment pass into (or out of) which sequences."""

    chunks: Tensor
    sequences: Tensor


@dataclass
class Segment:
    """`chunks` chunks of `steps` steps each, from step `begin` on.

    `entries[j]` and `exits[j]` are the events at position j of the chunks, `sequence_first` and `sequence_last` the
    sequences at every chunk's first and last step in time. All empty when nothing is packed.
    """

    begin: int
    chunks: int
    steps: int
    entries: dict[int, Event] = field(default_factory=dict)
    exits: dict[int, Event] = field(default_factory=dict)
    sequence_first: list[int] = field(default_factory=list)
    sequence_last: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The step behind the last one."""
        return self.begin + self.chunks * self.steps

    def saved(self, length: int, every: int, reverse: bool) -> Iterator[tuple[int, int]]:
        """Yield the chunks whose entering state is saved, once for `every` steps, each with its place in the row."""
        for k in range(self.chunks):
            first = self.begin + k * self.steps
            behind = first + self.steps
            if reverse and (behind % every == 0 or behind == length):
                yield k, (behind - 1) // every
            elif not reverse and first % every == 0:
                yield k, first // every


def _steps(width: int, length: int) -> int:
    """Choose the steps of a chunk: fewer where a row fits into one segment, which then takes fewer calls."""
    return STEPS // 2 if width * length < TILE * STEPS else STEPS


@dataclass(frozen=True)
class Cut:
    """How time is cut: segments of up to `together` chunks of `steps` steps as far as whole `unit`s of steps go.

    What is left behind the last whole unit is a segment of one chunk.
    """

    unit: int
    steps: int
    together: int

    @classmethod
    def forward(cls, width: int, length: int, every: int) -> Cut:
        """Cut for the forward, where one position of one chunk counts as `width`.

        A wide one fills the processor alone, and needs no pass that finds the states at the borders.
        """
        if 3 * width >= TILE:
            return cls(every, every, 1)
        steps = _steps(width, length)
        return cls(steps, steps, TILE // width)

    @classmethod
    def backward(cls, width: int, length: int, every: int) -> Cut:
        """Cut for the backward, whose segments begin where the forward saved a state."""
        steps = _steps(width, length)
        return cls(every, steps, max(1, TILE * steps // (width * every)) * (every // steps))

    def segments(self, length: int, bounds: list[int] | None, reverse: bool, device: torch.device) -> list[Segment]:
        """Cut `length` steps, in time order."""
        whole = length // self.unit * self.unit // self.steps
        found = [
            Segment(k * self.steps, min(self.together, whole - k), self.steps) for k in range(0, whole, self.together)
        ]
        if length > whole * self.steps:
            found.append(Segment(whole * self.steps, 1, length - whole * self.steps))
        if bounds is not None:
            for segment in found:
                _add_events(segment, bounds, reverse, device)
        return found


def _add_events(segment: Segment, bounds: list[int], reverse: bool, device: torch.device) -> None:
    """Find where sequences begin and end within the segment; empty ones never do."""
    entries: dict[int, list[tuple[int, int]]] = {}
    exits: dict[int, list[tuple[int, int]]] = {}
    for s, (begin, end) in enumerate(pairwise(bounds)):
        if end == begin or end <= segment.begin or begin >= segment.end:
            continue
        first, last = (end - 1, begin) if reverse else (begin, end - 1)
        for step, events in ((first, entries), (last, exits)):
            if segment.begin <= step < segment.end:
                k, j = divmod(step - segment.begin, segment.steps)
                events.setdefault(j, []).append((k, s))

    def tensors(events: dict[int, list[tuple[int, int]]]) -> dict[int, Event]:
        return {j: Event(*torch.tensor(pairs, device=device).T) for j, pairs in events.items()}

    segment.entries, segment.exits = tensors(entries), tensors(exits)
    steps = range(segment.begin, segment.end, segment.steps)
    segment.sequence_first = [bisect_right(bounds, t) - 1 for t in steps]
    segment.sequence_last = [bisect_right(bounds, t + segment.steps - 1) - 1 for t in steps]


@dataclass(frozen=True)
class Slab:
    """Rows `rows`, groups `groups` out of `total_groups`, and of each of them the channels `channels`."""

    rows: slice
    groups: slice
    channels: slice
    total_groups: int

    def weight(self, state: int) -> int:
        """Count what one position of one chunk weighs against TILE."""
        parts = self.rows, self.groups, self.channels
        return prod(part.stop - part.start for part in parts) * max(state, THIN)

    def sequence(self, x: Tensor) -> Tensor:
        """View (B, L, D) as this slab's (b, L, g, d)."""
        return x[self.rows].unflatten(-1, (self.total_groups, -1))[:, :, self.groups, self.channels]

    def grouped(self, x: Tensor) -> Tensor:
        """View (B, L, G, N) as this slab's (b, L, g, N)."""
        return x[self.rows, :, self.groups]

    def state(self, x: Tensor, packed: bool) -> Tensor:
        """View (rows, ..., D, N) as this slab's (rows, ..., g, N, d); packed states keep all their rows."""
        part = x if packed or x.shape[0] == 1 else x[self.rows]
        return part.unflatten(-2, (self.total_groups, -1))[..., self.groups, self.channels, :].transpose(-1, -2)

    def channel(self, x: Tensor, packed: bool) -> Tensor:
        """View (rows, D) as this slab's (rows, g, d)."""
        part = x if packed or x.shape[0] == 1 else x[self.rows]
        return part.unflatten(-1, (self.total_groups, -1))[:, self.groups, self.channels]


def slabs(batch: int, groups: int, channels: int, state: int, most: int) -> Iterator[Slab]:
    """Cut batch, groups and channels so that one position of one chunk has about `most` numbers at most.

    The batch is cut before the channels, which are contiguous in memory.
    """
    width, weight = channels // groups, max(state, THIN)
    rows = max(1, most // (channels * weight))
    some = max(1, most // (width * weight)) if rows == 1 else groups
    few = max(1, most // weight) if some == 1 else width
    for b in range(0, batch, rows):
        for g in range(0, groups, some):
            for d in range(0, width, few):
                ends = min(b + rows, batch), min(g + some, groups), min(d + few, width)
                yield Slab(slice(b, ends[0]), slice(g, ends[1]), slice(d, ends[2]), groups)


def backward_slab(length: int, every: int) -> int:
    """Give `most` for the backward: it keeps the states and decays of STEPS steps per TILE, or of a short row."""
    return TILE * STEPS // max(STEPS, min(length, every))
