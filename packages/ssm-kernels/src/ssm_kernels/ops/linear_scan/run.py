"""From modes as real parts to the operators, one for S4D and one for S5.

Letters: B batch, L length, D channels, M modes of a channel; for S5 H channels, P modes shared by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diagonal_scan.autograd import diagonal_scan_op
from .arguments import Modes
from .autograd import linear_scan_op
from .discretize import Complex, Discretization


def run(
    x: Tensor,
    modes: Modes,
    *,
    mode: str = "scan",
    discretization: Discretization = "zoh",
    initial_state: Complex | None = None,
    final: bool = False,
    reverse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Complex]:
    """Return y and the final state as real and imaginary part, (B, D, M) or for S5 (B, P); of no use unless `final`.

    This is what `linear_scan` and the modules call. It checks nothing and knows no complex tensors, so that exported
    graphs hold real ones only.
    """
    unit = not modes.shared and initial_state is None and not final  # states that nobody sees need not be in any unit
    a, b, c = modes.discretized(x, discretization, impl, unit=unit)
    if modes.shared:
        state = None if initial_state is None else torch.stack(initial_state, 1)
        tensors = (x, a, b, c, state)
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        y, last, _ = diagonal_scan_op(*tensors, mode, reverse, save, impl)
        return y, (last[:, 0], last[:, 1])
    if unit:
        y, last = linear_scan_op(x, a, None, c, None, mode, reverse, impl)
        return y, (last, last)
    state = None if initial_state is None else torch.stack([part.mT for part in initial_state], 1)
    y, last = linear_scan_op(x, a, b, c, state, mode, reverse, impl)
    return y, (last[:, 0].mT, last[:, 1].mT)
