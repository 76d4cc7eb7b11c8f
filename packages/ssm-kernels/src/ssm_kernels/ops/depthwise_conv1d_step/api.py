"""Public function of one step of the convolution: documentation, checks, one dispatch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import depthwise_conv1d_step_op
from .reference import depthwise_conv1d_step_reference

OP = "depthwise_conv1d_step"


def depthwise_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor,
    activation: Literal["silu"] | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Make the next step of a causal `depthwise_conv1d` from the steps before it.

    y = bias + sum over j < k - 1 of weight[:, j] * state[..., j], plus weight[:, k - 1] * x, through the activation.

    Args:
        x: The step, (B, D). float32, bfloat16, float16 or float64.
        weight: Filters, (D, k), k in 2..8.
        bias: Added, (D,).
        state: The k - 1 steps before, (B, D, k - 1), oldest first: zeros at the beginning, and after a sequence of at
            least k - 1 steps `sequence[:, -(k - 1):].mT`. It is not changed.
        activation: "silu" applies y * sigmoid(y) to the result.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere (and where x or weight is float64); "triton", "torch"
            and "reference" (the definition) never fall back.

    Returns:
        y (B, D) in the dtype of x, summed in float32 (float64 if x or weight is float64), and the state for the next
        step, (B, D, k - 1) in the dtype of `state`. Both carry gradient; it has none of its own, except with
        impl="reference".

    Raises:
        ValueError: A shape, size, dtype, device or option is wrong. The message names the argument.

    Cost: 2 * k * B * D flop; moves the state twice.
    Source: Gu and Dao 2023, arXiv:2312.00752, figure 3 (the causal convolution of the block).
    """
    check_impl(OP, impl, x)
    if activation not in (None, "silu"):
        refuse(OP, "activation", "None or 'silu'", repr(activation), "apply any other to the result")
    _check(x, weight, bias, state)
    if impl == "triton" and weight.dtype == torch.float64:
        refuse(OP, "weight", "float32 or narrower with impl='triton'", "float64", "impl='auto' would use PyTorch")
    if impl == "reference":
        return depthwise_conv1d_step_reference(x, weight, bias, state, activation)
    return depthwise_conv1d_step_op(x, weight, bias, state, activation, impl)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> None:
    for name, tensor in {"x": x, "weight": weight, "bias": bias, "state": state}.items():
        if tensor is not None:
            check_floating(OP, name, tensor)
            check_device(OP, name, tensor, x)
    if x.dim() != 2 or x.numel() == 0:
        refuse(OP, "x", "(B, D) with every size at least 1", tuple(x.shape), "x[:, t] is one step of (B, L, D)")
    batch, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels:
        wanted = f"(D, k) = ({channels}, k)"
        refuse(OP, "weight", wanted, tuple(weight.shape), "weight.squeeze(1) is that of a depthwise nn.Conv1d")
    taps = weight.shape[1]
    if not 2 <= taps <= 8:
        refuse(OP, "k of weight", "in 2..8", taps, "longer filters want torch.nn.functional.conv1d")
    if bias is not None:
        check_shape(OP, "bias", bias, [(channels,)], "(D,)", "it has one number per channel")
    check_shape(OP, "state", state, [(batch, channels, taps - 1)], "(B, D, k - 1)", "it holds the steps before x")
