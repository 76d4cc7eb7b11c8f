"""The compiled scans that vision code calls directly: `selective_scan_cuda` and VMamba's `_core` and `_oflex`.

They are calls without autograd: a forward and a backward that a `torch.autograd.Function` around them ties together.
Letters: B batch, L length, D channels, N state, G groups of channels that share B and C.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.checks import check_shape, refuse
from .scan import selective_scan_fn

SEGMENT = 2048  # steps per entry of the tensor of states that the extensions return


def mamba_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Scan as `selective_scan_cuda.fwd`.

    Args:
        u: Input, (B, D, L).
        delta: Time step, (B, D, L).
        A: Rate, (D, N), real.
        B: Input weights, (B, G, N, L) or (D, N).
        C: Output weights, (B, G, N, L) or (D, N).
        D: Weight of u in the output, (D,), or None.
        z: Gate, (B, D, L), or None.
        delta_bias: Added to delta, (D,), or None.
        delta_softplus: Pass the step through softplus.

    Returns:
        The output before the gate (B, D, L) in u.dtype; a tensor (B, D, ceil(L / 2048), 2 N) in float32 that holds the
        last state in [:, :, -1, 1::2] and is for `mamba_bwd` otherwise; with z the output behind the gate.
    """
    if z is None:
        return _scanned(u, delta, A, B, C, D, delta_bias, delta_softplus)
    y, states = _scanned(u.float(), delta, A, B, C, D, delta_bias, delta_softplus)  # rounded once, before and behind z
    return [y.to(u.dtype), states, (y * torch.nn.functional.silu(z.float())).to(u.dtype)]


def mamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Differentiate `mamba_fwd`, as `selective_scan_cuda.bwd`.

    Args:
        u: And the following, as in the forward.
        delta: Time step.
        A: Rate.
        B: Input weights.
        C: Output weights.
        D: Weight of u.
        z: Gate.
        delta_bias: Bias of the step.
        dout: Gradient of the output (behind the gate), (B, D, L).
        x: The forward's second result; not needed here, the scan is run again.
        out: The forward's first result; not needed here.
        dz: Where to write the gradient of z; None makes a new tensor.
        delta_softplus: As in the forward.
        recompute_out_z: Also return the output behind the gate.

    Returns:
        The gradients of u, delta, A, B, C, D (None without), delta_bias (None without); with z also that of z; and
        with `recompute_out_z` the output.
    """
    tensors = (u, delta, A, B, C, D, delta_bias, z)

    def forward(u, delta, A, B, C, D, delta_bias, z):
        y = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        assert isinstance(y, Tensor)
        return y

    y, (*gradients, of_z) = _differentiated(forward, tensors, dout)
    if of_z is not None:
        gradients.append(of_z if dz is None else dz.copy_(of_z))
        if recompute_out_z:
            gradients.append(y)
    return gradients


def core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor]:
    """Scan as `selective_scan_cuda_core.fwd`: `oflex_fwd` whose output has the dtype of u."""
    return oflex_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, False)


def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
    out_float: bool,
) -> list[Tensor]:
    """Scan as VMamba's `selective_scan_cuda_oflex.fwd`.

    Args:
        u: Input, (B, D, L), float32, bfloat16 or float16.
        delta: Time step, (B, D, L), or (B, D / r, L): each serves r channels in a row.
        A: Rate, (D, N), real.
        B: Input weights, (B, G, N, L).
        C: Output weights, (B, G, N, L).
        D: Weight of u in the output, (D,), or None.
        delta_bias: Added to delta, one number per channel of delta, or None.
        delta_softplus: Pass the step through softplus.
        nrows: How many channels a block of threads takes; without effect.
        out_float: Give the output in float32, whatever the dtype of u.

    Returns:
        The output (B, D, L), and (B, D, ceil(L / 2048), 2 N) in float32 as in `mamba_fwd`.
    """
    delta, delta_bias = _spread(u, delta, delta_bias)
    return _scanned(u.float() if out_float else u, delta, A, B, C, D, delta_bias, delta_softplus)


def core_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """Differentiate `core_fwd` and `oflex_fwd`, as the `bwd` of both extensions.

    Args:
        u: And the following, as in the forward.
        delta: Time step.
        A: Rate.
        B: Input weights.
        C: Output weights.
        D: Weight of u.
        delta_bias: Bias of the step.
        dout: Gradient of the output, (B, D, L), float32 or the dtype of u.
        x: The forward's second result; not needed here, the scan is run again.
        delta_softplus: As in the forward.
        nrows: Without effect.

    Returns:
        The gradients of u, delta, A, B, C, D (None without) and delta_bias (None without), each in the dtype and shape
        of what it belongs to.
    """

    def forward(u, delta, A, B, C, D, delta_bias):
        delta, delta_bias = _spread(u, delta, delta_bias)
        y = selective_scan_fn(u.to(dout.dtype), delta, A, B, C, D, None, delta_bias, delta_softplus)
        assert isinstance(y, Tensor)
        return y

    return _differentiated(forward, (u, delta, A, B, C, D, delta_bias), dout)[1]


def _scanned(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    with torch.no_grad():
        done = selective_scan_fn(u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True)
    assert not isinstance(done, Tensor)
    y, last = done
    states = last.new_zeros(*last.shape[:2], -(-u.shape[2] // SEGMENT), 2 * last.shape[2])
    states[:, :, -1, 1::2] = last
    return [y, states]


def _spread(u: Tensor, delta: Tensor, delta_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Give every channel of u the step that it shares with its neighbours."""
    if delta.dim() != 3 or delta.shape[1] == 0 or u.shape[1] % delta.shape[1]:
        wanted = f"(B, D / r, L) with D / r a divisor of D={u.shape[1]}"
        refuse("selective_scan_cuda_oflex", "delta", wanted, tuple(delta.shape), "every step serves r channels")
    shared = u.shape[1] // delta.shape[1]
    if delta_bias is not None:
        shape = (delta.shape[1],)
        check_shape("selective_scan_cuda_oflex", "delta_bias", delta_bias, [shape], "(D / r,)", "as delta")
    if shared == 1:
        return delta, delta_bias
    return delta.repeat_interleave(shared, dim=1), (
        None if delta_bias is None else delta_bias.repeat_interleave(shared)
    )


def _differentiated(
    forward: Callable[..., Tensor], tensors: tuple[Tensor | None, ...], grad: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """Run `forward` and its backward; give the output and one gradient, or None, for each of `tensors`."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        y = forward(*leaves)
        gradients = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad))
    return y.detach(), [None if leaf is None else next(gradients) for leaf in leaves]
