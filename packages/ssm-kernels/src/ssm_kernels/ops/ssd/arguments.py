"""Checks of the arguments that Mamba-2 scans share. Sizes are compared as they are, so that symbolic ones work too.

Letters: B batch, L length, H heads, P head dim, N state, G groups of heads that share B and C, S packed sequences.
"""

from __future__ import annotations

from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse

CHUNKS = (16, 32, 64, 128)


def check_ssd(
    op: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    *,
    suffix: str = "",
) -> None:
    """Check dtypes, devices and shapes of what one direction takes.

    Args:
        op: Name for the messages.
        x: And the following, as in `ssd`.
        dt: Time steps.
        A: Rates.
        B: Input weights.
        C: Output weights.
        D: Weight of x in y.
        dt_bias: Bias of dt.
        suffix: Behind the names of the arguments in the messages.
    """
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias}
    for name, tensor in tensors.items():
        if tensor is not None:
            check_floating(op, name + suffix, tensor)
            check_device(op, name + suffix, tensor, x)
    if x.dim() != 4 or x.numel() == 0:
        remedy = "split the channels into heads with x.unflatten(-1, (H, P))"
        refuse(op, f"x{suffix}", "(B, L, H, P) with every size at least 1", tuple(x.shape), remedy)
    batch, length, heads, width = x.shape
    check_shape(op, f"dt{suffix}", dt, [(batch, length, heads)], "(B, L, H)", "give one time step per head")
    check_shape(op, f"A{suffix}", A, [(heads,)], "(H,)", "give one rate per head")
    if B.dim() != 4 or B.shape[-1] == 0:
        wanted = "(B, L, G, N) with every size at least 1"
        refuse(op, f"B{suffix}", wanted, tuple(B.shape), "one group is B.unsqueeze(2)")
    groups, state = B.shape[2:]
    check_shape(op, f"B{suffix}", B, [(batch, length, groups, state)], "(B, L, G, N)", "B and L are those of x")
    if groups == 0 or heads % groups != 0:
        wanted = f"(B, L, G, N) with G a divisor of H={heads}"
        refuse(op, f"B{suffix}", wanted, tuple(B.shape), "every group has H / G heads")
    check_shape(op, f"C{suffix}", C, [B.shape], f"the shape of B{suffix}", "B and C share N and the groups")
    if D is not None:
        check_shape(op, f"D{suffix}", D, [(heads,), (heads, width)], "(H,) or (H, P)", "give one weight per head")
    if dt_bias is not None:
        check_shape(op, f"dt_bias{suffix}", dt_bias, [(heads,)], "(H,)", "give one bias per head")


def check_gate(op: str, z: Tensor | None, x: Tensor) -> None:
    """Check the gate."""
    if z is not None:
        check_floating(op, "z", z)
        check_device(op, "z", z, x)
        check_shape(op, "z", z, [x.shape], "(B, L, H, P)", "one gate per element of x")


def check_state(op: str, initial_state: Tensor | None, x: Tensor, B: Tensor, *, rows: int | None, row: str) -> None:
    """Check the initial state."""
    if initial_state is not None:
        check_floating(op, "initial_state", initial_state)
        check_device(op, "initial_state", initial_state, x)
        shape = (x.shape[0] if rows is None else rows, x.shape[2], x.shape[3], B.shape[-1])
        check_shape(op, "initial_state", initial_state, [shape], f"({row}, H, P, N)", "pass the final state of a run")


def check_chunk(op: str, chunk: int | None) -> None:
    """Check the number of steps per chunk."""
    if chunk is not None and chunk not in CHUNKS:
        refuse(op, "chunk", f"None or one of {', '.join(map(str, CHUNKS))}", chunk, "None suits every size")
