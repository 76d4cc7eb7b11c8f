"""The Mamba-2 scan in chunks of matrix products, forward and backward, for every device and for float64.

A row is walked chunk by chunk with its state, so that memory beyond inputs and results is one chunk's tables and, in
the backward, one state per chunk. Letters: B batch, G groups, R heads per group, Q steps per chunk, P head dim,
N state. A chunk that runs from the last step is turned round when it is read and its results when they are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # steps per chunk where none are asked for


@dataclass(frozen=True)
class _Inputs:
    """One call in the working dtype; the big ones are cast chunk by chunk."""

    x: Tensor  # (B, L, H, P)
    raw: Tensor  # (B, L, H), dt with its bias
    delta: Tensor
    A: Tensor  # (G, R)
    B: Tensor  # (B, L, G, N)
    C: Tensor
    D: Tensor | None  # (G, R, 1, P) or (G, R, 1, 1)
    z: Tensor | None
    kind: torch.dtype
    reverse: bool
    chunk: int

    def parts(self, begin: int, end: int) -> Iterator[slice]:
        """Cut the steps of a row into chunks, in scan order."""
        edges = range(begin, end, self.chunk)
        cut = [slice(edge, min(edge + self.chunk, end)) for edge in edges]
        if self.reverse:  # whole chunks from the end on
            cut = [slice(max(end - (edge - begin) - self.chunk, begin), end - (edge - begin)) for edge in edges]
        return iter(cut)

    def heads(self, x: Tensor, rows: slice, part: slice) -> Tensor:
        """Read (B, Q, H, ...) as (B, G, R, Q, ...) in scan order."""
        x = x[rows, part].to(self.kind)
        x = (x.flip(1) if self.reverse else x).unflatten(2, self.A.shape)
        return x.movedim(1, 3)

    def groups(self, x: Tensor, rows: slice, part: slice) -> Tensor:
        """Read (B, Q, G, N) as (B, G, Q, N) in scan order."""
        x = x[rows, part].to(self.kind)
        return (x.flip(1) if self.reverse else x).movedim(1, 2)

    def write(self, out: Tensor, rows: slice, part: slice, x: Tensor) -> None:
        """Put (B, G, R, Q, ...), or (B, G, Q, N), back to where it was read."""
        x = x.movedim(-2 if x.dim() >= out.dim() else -1, 1)
        x = x.flip(1) if self.reverse else x
        out[rows, part] = x.reshape(out[rows, part].shape).to(out.dtype)


@dataclass(frozen=True)
class _Chunk:
    """What both passes make of a chunk."""

    x: Tensor  # (B, G, R, Q, P)
    delta: Tensor  # (B, G, R, Q)
    B: Tensor  # (B, G, 1, Q, N)
    C: Tensor
    scores: Tensor  # (B, G, 1, Q, Q), C B^T
    within: Tensor  # (B, G, R, Q, Q), decay from the column's step to the row's, 0 above the diagonal
    since_start: Tensor  # (B, G, R, Q), decay from the chunk's beginning
    to_end: Tensor  # (B, G, R, Q), decay to its end
    total: Tensor  # (B, G, R, 1, 1)


def _read(inputs: _Inputs, rows: slice, part: slice) -> _Chunk:
    # in float64 the difference of two long sums keeps the bits of a short one
    delta = inputs.heads(inputs.delta[..., None], rows, part)[..., 0]
    elapsed = (delta.double() * inputs.A.double()[..., None]).cumsum(-1)
    steps = elapsed.shape[-1]
    lower = torch.ones(steps, steps, dtype=torch.bool, device=elapsed.device).tril()
    span = (elapsed[..., :, None] - elapsed[..., None, :]).to(inputs.kind)
    B, C = (inputs.groups(t, rows, part)[:, :, None] for t in (inputs.B, inputs.C))
    last = elapsed[..., -1:]
    return _Chunk(
        x=inputs.heads(inputs.x, rows, part),
        delta=delta,
        B=B,
        C=C,
        scores=C @ B.mT,
        within=span.masked_fill_(~lower, -torch.inf).exp_(),
        since_start=elapsed.to(inputs.kind).exp(),
        to_end=(last - elapsed).to(inputs.kind).exp(),
        total=last[..., None].to(inputs.kind).exp(),
    )


def _prepare(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    chunk: int,
) -> _Inputs:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    heads, groups = x.shape[2], B.shape[2]
    split = (groups, heads // groups)
    raw = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
    skip = None if D is None else (D if D.dim() == 2 else D[:, None]).to(kind).unflatten(0, split)[:, :, None]
    delta = F.softplus(raw) if dt_softplus else raw
    return _Inputs(x, raw, delta, A.to(kind).view(split), B, C, skip, z, kind, reverse, chunk or CHUNK)


def _rows(inputs: _Inputs, cu_seqlens: Tensor | None) -> list[tuple[slice, int, int]]:
    """List which states belong to which steps: all rows at once, or sequence by sequence."""
    if cu_seqlens is None:
        return [(slice(None), 0, inputs.x.shape[1])]
    return [(slice(s, s + 1), begin, end) for s, (begin, end) in enumerate(pairwise(cu_seqlens.tolist()))]


def _first_states(inputs: _Inputs, initial_state: Tensor | None, rows: int) -> Tensor:
    """Return the states (rows, G, R, P, N) before the first steps; never the argument itself."""
    tail = (*inputs.A.shape, inputs.x.shape[-1], inputs.B.shape[-1])
    if initial_state is None:
        return inputs.x.new_zeros(rows, *tail, dtype=inputs.kind)
    return initial_state.to(inputs.kind, copy=True).reshape(rows, *tail)


def _advance(chunk: _Chunk, state: Tensor) -> Tensor:
    """Carry a state (B, G, R, P, N) over a chunk."""
    fed = chunk.x * (chunk.delta * chunk.to_end)[..., None]
    return chunk.total * state + fed.mT @ chunk.B


def _outputs(chunk: _Chunk, state: Tensor, mixed: Tensor, skip: Tensor | None) -> Tensor:
    """Return what the gate is applied to, (B, G, R, Q, P)."""
    y = mixed @ chunk.x + (chunk.C @ state.mT) * chunk.since_start[..., None]
    return y if skip is None else y + skip * chunk.x


def forward(
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
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return y and the final state."""
    inputs = _prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, reverse, chunk)
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = _first_states(inputs, initial_state, rows)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for which, begin, end in _rows(inputs, cu_seqlens):
        state = states[which]
        for part in inputs.parts(begin, end):
            read = _read(inputs, slice(None), part)
            mixed = read.scores * read.within * read.delta[..., None, :]
            out = _outputs(read, state, mixed, inputs.D)
            if z is not None:
                out = out * F.silu(inputs.heads(z, slice(None), part))
            inputs.write(y, slice(None), part, out)
            state = _advance(read, state)
        states[which] = state
    return y, states.flatten(1, 2)


@dataclass(frozen=True)
class _Grads:
    """Where the gradients are put together."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    D: Tensor | None


def backward(
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
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of the nine floating arguments in their order, empty tensors for those that are None."""
    inputs = _prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, reverse, chunk)
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = _first_states(inputs, initial_state, rows)
    adjoints = _first_states(inputs, grad_final, rows)
    grads = _Grads(
        x=torch.empty(x.shape, dtype=x.dtype, device=x.device),
        dt=torch.empty_like(inputs.delta),
        B=torch.empty(B.shape, dtype=B.dtype, device=B.device),
        C=torch.empty(C.shape, dtype=C.dtype, device=C.device),
        z=None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device),
        A=torch.zeros_like(inputs.A),
        D=None if inputs.D is None else torch.zeros_like(inputs.D),
    )
    for which, begin, end in _rows(inputs, cu_seqlens):
        parts, state, entering = list(inputs.parts(begin, end)), states[which], []
        for part in parts:
            entering.append(state)
            state = _advance(_read(inputs, slice(None), part), state)
        adjoint = adjoints[which]
        for part, state in zip(reversed(parts), reversed(entering), strict=True):
            adjoint = _step_back(inputs, grads, grad_y, part, state, adjoint)
        adjoints[which] = adjoint
    grad_dt = grads.dt
    if dt_softplus:
        grad_dt = grad_dt * torch.where(inputs.raw > 20, 1.0, torch.sigmoid(inputs.raw))
    empty = x.new_empty(0)
    return (
        grads.x,
        grad_dt.to(dt.dtype),
        grads.A.flatten().to(A.dtype),
        grads.B,
        grads.C,
        empty if D is None or grads.D is None else grads.D.reshape(D.shape).to(D.dtype),
        empty.clone() if grads.z is None else grads.z,
        empty.clone() if dt_bias is None else grad_dt.sum((0, 1)).to(dt_bias.dtype),
        empty.clone() if initial_state is None else adjoints.flatten(1, 2).to(initial_state.dtype),
    )


def _step_back(inputs: _Inputs, grads: _Grads, grad_y: Tensor, part: slice, state: Tensor, adjoint: Tensor) -> Tensor:
    """Write the gradients of a chunk, given the state before it and the gradient of the state behind it.

    Returns the gradient of the state before it.
    """
    every = slice(None)
    chunk = _read(inputs, every, part)
    mixed = chunk.scores * chunk.within * chunk.delta[..., None, :]
    grad = inputs.heads(grad_y, every, part)
    if inputs.z is not None and grads.z is not None:
        gate = inputs.heads(inputs.z, every, part)
        out = _outputs(chunk, state, mixed, inputs.D)
        inputs.write(grads.z, every, part, torch.ops.aten.silu_backward(grad * out, gate))
        grad = grad * F.silu(gate)
    pair = grad @ chunk.x.mT * chunk.within  # gradient of score * delta
    fed = chunk.B @ adjoint.mT  # gradient of x * delta * to_end
    leaves = chunk.delta * chunk.to_end
    grad_x = mixed.mT @ grad + fed * leaves[..., None]
    if inputs.D is not None and grads.D is not None:
        grad_x = grad_x + inputs.D * grad
        product = (grad * chunk.x).sum((0, -2), keepdim=True)[0]
        grads.D.add_(product if grads.D.shape[-1] > 1 or product.shape[-1] == 1 else product.sum(-1, keepdim=True))
    inputs.write(grads.x, every, part, grad_x)
    spread = pair * chunk.delta[..., None, :]  # gradient of scores, per head
    scores = spread.sum(2, keepdim=True)
    from_state = (grad @ state) * chunk.since_start[..., None]
    into_state = (chunk.x @ adjoint) * leaves[..., None]
    inputs.write(grads.C, every, part, (scores @ chunk.B)[:, :, 0] + from_state.sum(2))
    inputs.write(grads.B, every, part, (scores.mT @ chunk.C)[:, :, 0] + into_state.sum(2))
    arriving = chunk.to_end * (chunk.x * fed).sum(-1)
    grad_delta = (pair * chunk.scores).sum(-2) + arriving
    grad_elapsed = _crossings(spread * chunk.scores)
    grad_elapsed += (from_state * chunk.C).sum(-1).flip(-1).cumsum(-1).flip(-1)
    stored = chunk.delta * arriving
    grad_elapsed += stored.cumsum(-1) - stored
    grad_elapsed += (chunk.total * (state * adjoint).sum((-1, -2), keepdim=True))[..., 0]
    grads.A.add_((grad_elapsed * chunk.delta).sum((0, -1)))
    grad_delta = grad_delta + inputs.A[..., None] * grad_elapsed
    inputs.write(grads.dt[..., None], every, part, grad_delta[..., None])
    return chunk.total * adjoint + (grad * chunk.since_start[..., None]).mT @ chunk.C


def _crossings(pairs: Tensor) -> Tensor:
    """Sum, for every step t, over the pairs (row, column) with column < t <= row: those that its decay lies between."""
    before = pairs.cumsum(-1) - pairs
    return before.tril().sum(-2)
