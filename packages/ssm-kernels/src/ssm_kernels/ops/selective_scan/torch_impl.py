"""The selective scan vectorised in PyTorch: all chunks of a segment are walked in parallel.

Per segment every chunk runs from a zero state (local pass), the states at the chunk borders follow one from another
(carry pass), and every chunk runs again from its true state and gives its outputs. Where rows and channels alone fill
the processor, chunks follow one another instead and there is one pass. The backward recomputes the states of a segment
from the saved state that enters it and runs the adjoint the same way from the other end. Decays are only ever
multiplied, never divided by, so that a decay of 0 is as good as any other. See docs/selective_scan.md.

Memory: besides inputs, outputs and saved states, one buffer of at most STEPS * TILE numbers (13 MB in float32) in the
forward and two in the backward, and smaller ones; measured under 100 MB in the backward, whatever L is.

Letters: B batch, L length, D channels, N state, G groups; lower case b, g, d for a slab's part of them; T steps of a
chunk, k chunks of a segment. Buffers have the layout (T, b, k, g, N, d): contiguous for one position of all chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_impl_backward import Gradients, backward_segment
from .torch_impl_run import Problem, Run, carry, columns, flat_rows, local_states, rows


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
    save_states: bool,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state and the states before every chunk (rows, D, N); no rows unless `save_states`.

    Rows of the saved states: B * ceil(L / chunk), for packed input L // chunk + S of which the last may be unused.
    """
    p = Problem.of(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_softplus, reverse, chunk)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = p.initial.clone()
    saved = final.new_zeros(p.saved_rows() if save_states else 0, *A.shape[-2:])
    for slab, segments in p.cuts(backwards=False):
        initial, last = p.states(slab, p.initial), p.states(slab, final)
        state = initial if p.bounds is None else torch.zeros_like(initial[:1])
        for segment in segments:
            run = Run(p, slab, segment)
            if segment.chunks == 1:
                decays, starts = run.buffer(1), state[:, None]
            else:
                decays = run.steps_buffer("decays", segment.steps)
                starts = carry(*local_states(run, decays, initial), state, run.chunk_order)
            if save_states:
                for k, place in p.chunk_states(saved, slab, segment):
                    place.copy_(starts[:, k])
            y_raw, state = _outputs(run, decays, starts, initial, last)
            if run.skip is not None:
                y_raw.addcmul_(run.x, run.skip)
            if z is not None:
                y_raw.mul_(F.silu(run.load(slab.sequence(z))))
            run.unpack(slab.sequence(y)).copy_(y_raw)
        if p.bounds is None:
            last.copy_(state)
    return y, final, saved


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
    chunk_states: Tensor,
    grad_y: Tensor,
    grad_final: Tensor | None,
    *,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of the nine floating arguments in their order, empty tensors for those that are None."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    if chunk_states.shape[0] == 0:  # the forward was told that nobody would ask
        chunk_states = forward(*inputs, cu_seqlens, dt_softplus, reverse, save_states=True, chunk=chunk)[2]
    p = Problem.of(*inputs, cu_seqlens, dt_softplus, reverse, chunk)
    grads = Gradients.zeros(p)
    for slab, segments in p.cuts(backwards=True):
        initial, into = p.states(slab, p.initial), p.states(slab, grads.initial)
        final = torch.zeros_like(initial) if grad_final is None else p.states(slab, grad_final.to(p.kind)).contiguous()
        adjoint = final if p.bounds is None else torch.zeros_like(final[:1])
        if p.bounds is not None:
            into.copy_(final)  # what an empty sequence passes through; the others write their own
        for segment in segments:
            run = Run(p, slab, segment)
            state = dict(p.chunk_states(chunk_states, slab, segment))[run.chunk_order[0]]
            adjoint = backward_segment(run, state, adjoint, initial, final, grad_y, grads)
        if p.bounds is None:
            into.copy_(adjoint)
    return grads.like(inputs)


def _outputs(run: Run, decays: Tensor, starts: Tensor, initial: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    """Run all chunks from their states; return C.h (T, b, k, g, d) and the state that leaves the segment.

    With one chunk there was no local pass, so the decays are made here. Packed rows also write `final`.
    """
    state, y = run.buffer().copy_(starts), run.sequence()
    matrices = state.flatten(0, 2)
    delta, u, B, C, out = rows(run.delta), rows(run.u), columns(run.B), flat_rows(run.C), flat_rows(y)
    run.begin()
    for j in run.order:
        run.replace(run.segment.entries.get(j), state, initial)
        decay = run.decay(delta[j], decays[0]) if run.segment.chunks == 1 else decays[j]
        state.mul_(decay).addcmul_(u[j], B[j])
        run.read(C[j], matrices, out[j])
        if event := run.segment.exits.get(j):
            final[event.sequences] = state[0, event.chunks]
    return y, state[:, run.chunk_order[-1]]
