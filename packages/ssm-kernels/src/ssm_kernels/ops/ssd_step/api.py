"""Public function of one step of the Mamba-2 scan: documentation, checks, one dispatch.

Letters: B batch, H heads, P head dim, N state, G groups of heads that share B and C.
"""

from __future__ import annotations

from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import ssd_step_op
from .reference import ssd_step_reference

OP = "ssd_step"


def ssd_step(
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
    """Make the next step of an `ssd` scan from the state before it.

    With delta = dt + dt_bias (through softplus if `dt_softplus`), for every head:
    next = exp(delta * A) * state + delta * x B^T, and y = next C, plus D * x, times silu(z).

    Args:
        x: Input, (B, H, P). float32, bfloat16, float16 or float64, as all floating arguments; dtypes may differ.
        dt: Time step before bias and softplus, (B, H), in units of 1 / A.
        A: Rate of every head, (H,); normally negative.
        B: Input weights, (B, G, N) with G dividing H: group g serves H / G heads in order.
        C: Output weights, the shape of B.
        D: Weight of x in y, (H,) or (H, P). None leaves the term out.
        state: State before the step, (B, H, P, N), normally float32: zeros at the beginning, or the final state of
            an `ssd`. It is not changed.
        z: Gate, (B, H, P): y is multiplied by silu(z). None leaves it out.
        dt_bias: Added to dt, (H,).
        dt_softplus: Pass dt + dt_bias through softplus (linear above 20, as in PyTorch).
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" (the definition)
            never fall back.

    Returns:
        y (B, H, P) in x.dtype and the next state (B, H, P, N) in float32 (float64 for float64 x). Both carry gradient;
        it has none of its own, except with impl="reference".

    Raises:
        ValueError: A shape, a dtype, a device or `impl` is wrong. The message names the argument.

    Cost: about 6 * B * H * P * N flop; moves the state twice.
    Source: Dao and Gu 2024, arXiv:2405.21060, section 3.
    """
    check_impl(OP, impl, x)
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias, "state": state}
    for name, tensor in tensors.items():
        if tensor is not None:
            check_floating(OP, name, tensor)
            check_device(OP, name, tensor, x)
    _check_token(x, dt, z, dt_bias)
    _check_weights(x, A, B, C, D, state)
    arguments = (x, dt, A, B, C, D, z, dt_bias, state, dt_softplus)
    return ssd_step_reference(*arguments) if impl == "reference" else ssd_step_op(*arguments, impl)


def _check_token(x: Tensor, dt: Tensor, z: Tensor | None, dt_bias: Tensor | None) -> None:
    if x.dim() != 3 or x.numel() == 0:
        remedy = "x[:, t] is one step of (B, L, H, P)"
        refuse(OP, "x", "(B, H, P) with every size at least 1", tuple(x.shape), remedy)
    check_shape(OP, "dt", dt, [x.shape[:2]], "(B, H)", "give one time step per head")
    if z is not None:
        check_shape(OP, "z", z, [x.shape], "(B, H, P)", "one gate per element of x")
    if dt_bias is not None:
        check_shape(OP, "dt_bias", dt_bias, [(x.shape[1],)], "(H,)", "give one bias per head")


def _check_weights(x: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor) -> None:
    batch, heads, width = x.shape
    check_shape(OP, "A", A, [(heads,)], "(H,)", "give one rate per head")
    if B.dim() != 3 or B.shape[-1] == 0:
        wanted = "(B, G, N) with every size at least 1"
        refuse(OP, "B", wanted, tuple(B.shape), "one group is B.unsqueeze(1)")
    groups, size = B.shape[1:]
    check_shape(OP, "B", B, [(batch, groups, size)], "(B, G, N)", "B has the batch of x")
    if groups == 0 or heads % groups != 0:
        wanted = f"(B, G, N) with G a divisor of H={heads}"
        refuse(OP, "B", wanted, tuple(B.shape), "every group has H / G heads")
    check_shape(OP, "C", C, [B.shape], "the shape of B", "B and C share N and the groups")
    if D is not None:
        check_shape(OP, "D", D, [(heads,), (heads, width)], "(H,) or (H, P)", "give one weight per head")
    wanted = [(batch, heads, width, size)]
    check_shape(OP, "state", state, wanted, "(B, H, P, N)", "pass the state of the step before")
