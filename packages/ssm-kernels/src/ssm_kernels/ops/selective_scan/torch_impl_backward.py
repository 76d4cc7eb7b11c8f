"""The explicit gradient of one segment: states recomputed forwards, adjoints run from the other end.

With g[t] the gradient of state h[t] and a[t] = exp(delta[t] * A): g[t] = C[t] * grad_y[t] + a[t+1] * g[t+1]. Everything
else is a product of g and what the forward had (docs/selective_scan.md). a[t] * g[t] is what passes to the step before.

Letters as in torch_impl_run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_impl_run import LN_2, Problem, Run, carry, columns, flat_rows, local_states, rows


@dataclass
class Gradients:
    """Gradients in the wide dtype and the form of `Problem`, except those of x, dt and z, which are not sums."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial: Tensor

    @classmethod
    def zeros(cls, p: Problem) -> Gradients:
        """Make room for the gradients of a problem."""

        def wide(x: Tensor) -> Tensor:
            return torch.zeros(x.shape, dtype=p.kind, device=x.device)

        def empty(x: Tensor) -> Tensor:
            return torch.empty(x.shape, dtype=x.dtype, device=x.device)

        return cls(
            empty(p.x),
            empty(p.dt),
            wide(p.A),
            wide(p.B),
            wide(p.C),
            None if p.D is None else wide(p.D),
            None if p.z is None else empty(p.z),
            None if p.dt_bias is None else wide(p.dt_bias),
            wide(p.initial),
        )

    def like(self, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        """Give every gradient the shape and dtype of its argument."""
        found = (self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.dt_bias, self.initial)
        return tuple(
            self.x.new_empty(0) if grad is None or given is None else grad.reshape(given.shape).to(given.dtype)
            for grad, given in zip(found, inputs, strict=True)
        )


def backward_segment(
    run: Run,
    state: Tensor,
    adjoint: Tensor,
    initial: Tensor,
    final: Tensor,
    grad_y: Tensor,
    grads: Gradients,
) -> Tensor:
    """Add one segment's part to the gradients; return the adjoint of the state that entered it, (b, g, N, d).

    Args:
        run: The segment's inputs.
        state: State that enters the segment, (b, g, N, d).
        adjoint: Gradient of the state that leaves the segment, (b, g, N, d).
        initial: Initial states of packed sequences, (S, g, N, d).
        final: Gradients of their final states, (S, g, N, d).
        grad_y: Gradient of y, (B, L, D).
        grads: Written and added to.
    """
    p, slab = run.p, run.slab
    grad = run.load(slab.sequence(grad_y))
    z = None if p.z is None else run.load(slab.sequence(p.z))
    gated = grad if z is None else grad * F.silu(z)
    decays, before = (run.steps_buffer(name, run.segment.steps) for name in ("decays", "before"))
    if run.segment.chunks > 1:
        starts = carry(*local_states(run, decays, initial), state, run.chunk_order)
    else:
        starts = state[:, None]
    y = _states(run, decays, before, starts, initial, gated, grads)
    if run.segment.chunks > 1:
        adjoints = carry(*_local_adjoint(run, decays, gated, final), adjoint, run.chunk_order[::-1])
    else:
        adjoints = adjoint[:, None]
    grad_u, grad_rate, adjoint = _adjoint(run, decays, before, adjoints, final, gated, grads)
    grad_x, grad_delta = run.delta * grad_u, grad_rate.mul_(LN_2 if run.binary else 1.0).addcmul_(run.x, grad_u)
    if run.skip is not None and grads.D is not None:
        grad_x.addcmul_(gated, run.skip)
        _add_skip_gradient(run, gated, grads.D)
    if z is not None and y is not None and grads.z is not None:
        if run.skip is not None:
            y.addcmul_(run.x, run.skip)
        gate = torch.sigmoid(z)
        run.unpack(slab.sequence(grads.z)).copy_(grad * y * gate * (1 + z * (1 - gate)))
    if p.dt_softplus:
        slope = run.delta.neg().expm1_().neg_()  # sigmoid(v) = 1 - exp(-softplus(v))
        grad_delta *= slope.masked_fill_(run.delta > 20, 1.0)  # PyTorch's softplus is linear there
    run.unpack(slab.sequence(grads.x)).copy_(grad_x)
    run.unpack(slab.sequence(grads.dt)).copy_(grad_delta)
    if grads.dt_bias is not None:
        slab.channel(grads.dt_bias, packed=True)[0].add_(grad_delta.sum((0, 1, 2)))
    return adjoint


def _states(
    run: Run, decays: Tensor, before: Tensor, starts: Tensor, initial: Tensor, gated: Tensor, grads: Gradients
) -> Tensor | None:
    """Recompute decays and the state before every step; add C's gradient; return C.h if there is a gate to need it."""
    y = run.sequence() if run.p.z is not None else None
    grad_C = torch.empty_like(run.C)
    delta, u, B, C, decay = rows(run.delta), rows(run.u), columns(run.B), flat_rows(run.C), decays.unbind(0)
    grad, out = flat_rows(gated), flat_rows(grad_C)
    read = None if y is None else flat_rows(y)
    state = (*before.unbind(0), run.buffer())  # the last one takes the state behind the last step
    state[run.order[0]].copy_(starts)
    run.begin()
    for j, following in zip(run.order, (*run.order[1:], -1), strict=True):
        run.replace(run.segment.entries.get(j), state[j], initial)
        if run.segment.chunks == 1:
            run.decay(delta[j], decay[j])
        after = torch.mul(state[j], decay[j], out=state[following]).addcmul_(u[j], B[j])
        matrices = after.flatten(0, 2)
        torch.bmm(grad[j], matrices.mT, out=out[j])  # as rows: the library's product with a column is much slower
        if read is not None:
            run.read(C[j], matrices, read[j])
    run.unpack(run.slab.grouped(grads.C)).add_(grad_C)
    return y


def _local_adjoint(run: Run, decays: Tensor, gated: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    """Run the adjoint of all chunks from zero; return what leaves them at their first step, and their total decays."""
    adjoint = run.buffer().zero_()
    C, grad, decay = columns(run.C), rows(gated), decays.unbind(0)
    run.begin(backwards=True)
    for j in reversed(run.order):
        run.replace(run.segment.exits.get(j), adjoint, final)
        adjoint.addcmul_(C[j], grad[j]).mul_(decay[j])
    return adjoint, run.total_decay(run.segment.exits)


def _adjoint(
    run: Run, decays: Tensor, before: Tensor, adjoints: Tensor, final: Tensor, gated: Tensor, grads: Gradients
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the adjoint of all chunks from its true values; add to the gradients of A, B and the initial states.

    Returns:
        Gradient of delta * x, (T, b, k, g, d); gradient of delta through the decays, the same shape; the adjoint of the
        state that entered the segment, (b, g, N, d).
    """
    grad_u, grad_rate, grad_B = run.sequence(), run.sequence(), torch.empty_like(run.B)
    adjoint, through, grad_A = run.buffer().copy_(adjoints), run.buffer(), run.buffer().zero_()
    matrices = adjoint.flatten(0, 2)
    turned = matrices.mT
    C, grad, delta = columns(run.C), rows(gated), rows(run.delta)
    u, B, out_B, out_u = flat_rows(run.u), flat_rows(run.B), flat_rows(grad_B), flat_rows(grad_u)
    run.begin(backwards=True)
    for j in reversed(run.order):
        run.replace(run.segment.exits.get(j), adjoint, final)
        adjoint.addcmul_(C[j], grad[j])
        torch.bmm(u[j], turned, out=out_B[j])
        run.read(B[j], matrices, out_u[j])
        adjoint.mul_(decays[j])
        torch.mul(adjoint, before[j], out=through)  # the gradient of delta * A
        grad_A.addcmul_(through, delta[j])
        torch.sum(through.mul_(run.rates), -2, out=grad_rate[j])
        if event := run.segment.entries.get(j):
            run.p.states(run.slab, grads.initial)[event.sequences] = adjoint[0, event.chunks]
            if run.p.own_rates:
                run.p.states(run.slab, grads.A)[event.sequences] += grad_A[0, event.chunks]
                grad_A[0, event.chunks] = 0
    run.unpack(run.slab.grouped(grads.B)).add_(grad_B)
    _add_rate_gradient(run, grad_A, grads)
    return grad_u, grad_rate, adjoint[:, run.chunk_order[0]]


def _add_rate_gradient(run: Run, grad_A: Tensor, grads: Gradients) -> None:
    """Add (b, k, g, N, d) to the gradient of A, whose rows are one, the batch, or the packed sequences."""
    into = run.p.states(run.slab, grads.A)
    if run.p.own_rates:  # one by one: several chunks may belong to one sequence, and the order of a sum is fixed
        at_start = run.segment.sequence_last if run.p.reverse else run.segment.sequence_first
        for k, sequence in enumerate(at_start):
            into[sequence] += grad_A[0, k]
    elif into.shape[0] == grad_A.shape[0]:
        into += grad_A.sum(1)
    else:
        into += grad_A.sum((0, 1))


def _add_skip_gradient(run: Run, gated: Tensor, grad_D: Tensor) -> None:
    """Add the sum of gated * x to the gradient of D, whose rows are one, the batch, or the packed sequences."""
    into = run.slab.channel(grad_D, packed=run.p.bounds is not None)
    product = gated * run.x
    if run.p.bounds is not None and into.shape[0] > 1:
        in_time = product.permute(1, 2, 0, 3, 4).flatten(0, 2)
        segment = run.segment
        for s in range(segment.sequence_first[0], segment.sequence_last[-1] + 1):
            begin, end = (min(max(t - segment.begin, 0), len(in_time)) for t in run.p.bounds[s : s + 2])
            into[s] += in_time[begin:end].sum(0)
    elif into.shape[0] == product.shape[1]:
        into += product.sum((0, 2))
    else:
        into += product.sum((0, 1, 2))
