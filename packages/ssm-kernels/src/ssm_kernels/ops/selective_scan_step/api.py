"""Public function of one step of the scan: documentation, checks, one dispatch.

Letters: B batch, D channels, N state, G groups of channels that share B and C.
"""

from __future__ import annotations

from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import selective_scan_step_op
from .reference import selective_scan_step_reference

OP = "selective_scan_step"


def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Make the next step of a `selective_scan` from the state before it.

    With delta = dt + dt_bias (through softplus if `dt_softplus`): next = exp(delta * A) * state + delta * B * x, and
    y = sum over n of C * next, plus D * x, times silu(z).

    Args:
        x: Input, (B, D). float32, bfloat16, float16 or float64, as all floating arguments; dtypes may differ.
        dt: Time step before bias and softplus, (B, D), in units of 1 / A.
        A: Rate of every state, (D, N) or one per row, (B, D, N); normally negative.
        B: Input weights, (B, N), or (B, G, N) with G dividing D: group g serves D / G channels in order.
        C: Output weights, the shape of B.
        D: Weight of x in y, (D,) or (B, D). None leaves the term out.
        state: State before the step, (B, D, N), normally float32: zeros at the beginning, or the final state of a
            `selective_scan`. It is not changed.
        z: Gate, (B, D): y is multiplied by silu(z). None leaves it out.
        dt_bias: Added to dt, (D,).
        dt_softplus: Pass dt + dt_bias through softplus (linear above 20, as in PyTorch).
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" (the definition)
            never fall back.

    Returns:
        y (B, D) in x.dtype and the next state (B, D, N) in float32 (float64 for float64 x). Both carry gradient; it
        has none of its own, except with impl="reference".

    Raises:
        ValueError: A shape, a dtype, a device or `impl` is wrong. The message names the argument.

    Cost: B * D * N exponentials and about 6 * B * D * N flop; moves the state twice.
    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2 (the input is discretised by delta * B, as in its code).
    """
    check_impl(OP, impl, x)
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias, "state": state}
    for name, tensor in tensors.items():
        if tensor is not None:
            check_floating(OP, name, tensor)
            check_device(OP, name, tensor, x)
    _check_step(x, dt, z, dt_bias)
    _check_rates(x, A, B, C, D, state)
    arguments = (x, dt, A, B, C, D, z, dt_bias, state, dt_softplus)
    return (
        selective_scan_step_reference(*arguments) if impl == "reference" else selective_scan_step_op(*arguments, impl)
    )


def _check_step(x: Tensor, dt: Tensor, z: Tensor | None, dt_bias: Tensor | None) -> None:
    if x.dim() != 2 or x.numel() == 0:
        refuse(OP, "x", "(B, D) with every size at least 1", tuple(x.shape), "x[:, t] is one step of (B, L, D)")
    check_shape(OP, "dt", dt, [x.shape], "(B, D)", "one time step per element of x; use dt.expand_as(x)")
    if z is not None:
        check_shape(OP, "z", z, [x.shape], "(B, D)", "one gate per element of x")
    if dt_bias is not None:
        check_shape(OP, "dt_bias", dt_bias, [(x.shape[1],)], "(D,)", "give one bias per channel")


def _check_rates(x: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor) -> None:
    batch, channels = x.shape
    if A.dim() not in (2, 3) or A.shape[-1] == 0:
        refuse(OP, "A", "(D, N) or (B, D, N) with N at least 1", tuple(A.shape), "give one rate per state")
    size = A.shape[-1]
    shapes = [(channels, size), (batch, channels, size)]
    check_shape(OP, "A", A, shapes, "(D, N) or (B, D, N)", "D is the last size of x")
    if B.dim() == 3:
        groups = B.shape[1]
        check_shape(OP, "B", B, [(batch, groups, size)], "(B, G, N)", "N is the last size of A")
        if groups == 0 or channels % groups != 0:
            wanted = f"(B, G, N) with G a divisor of D={channels}"
            refuse(OP, "B", wanted, tuple(B.shape), "every group has D / G channels")
    else:
        check_shape(OP, "B", B, [(batch, size)], "(B, N)", "N is the last size of A")
    check_shape(OP, "C", C, [B.shape], "the shape of B", "B and C share N and the groups")
    if D is not None:
        check_shape(OP, "D", D, [(channels,), (batch, channels)], "(D,) or (B, D)", "give one weight per channel")
    check_shape(OP, "state", state, [(batch, channels, size)], "(B, D, N)", "pass the state of the step before")
