"""Public function of the depthwise convolution: documentation, checks, one dispatch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import depthwise_conv1d_op
from .reference import depthwise_conv1d_reference
from .schema import check_bounds

OP = "depthwise_conv1d"


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: Literal["causal", "same"] = "causal",
    reverse: bool = False,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Convolve every channel of a sequence with its own short filter.

    Causal: y[t] = bias + sum over j < k of weight[:, j] * x[t - (k - 1) + j], so weight[:, k - 1] meets the present.

    Args:
        x: Sequences, (B, L, D), any L >= 1. float32, bfloat16, float16 or float64, any strides.
        weight: Filters, (D, k), k in 2..8.
        bias: Added to every step, (D,).
        padding: "causal" sees the step and the k - 1 before it; "same" is centred, as `torch.nn.Conv1d` with
            padding="same": (k - 1) // 2 steps before and, for an even k, one more after.
        reverse: Do the same to the sequence read from its end (the flipped result of the flipped sequence, without
            the flips): a causal filter then sees the future.
        activation: "silu" applies y * sigmoid(y) to the result.
        initial_state: The k - 1 steps before the first, (B, D, k - 1), oldest first: index 0 is the step farthest
            from the sequence, which `reverse` puts farthest behind its end. Only with padding="causal". None is zero.
        cu_seqlens: Bounds of packed sequences, (S + 1,), int32 or int64, from 0 to L without decreasing; then B is 1,
            `initial_state` is (S, D, k - 1), and no filter reaches across a bound. On a GPU reading the bounds to
            check them waits for the device.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere (and where x or weight is float64); "triton", "torch"
            and "reference" (the definition, a loop) never fall back.

    Returns:
        (B, L, D) in the dtype of `x`; sums and activation are computed in float32 (float64 if x or weight is float64).

    Raises:
        ValueError: A shape, size, dtype, device or option is wrong.

    Cost: 2 * k * B * L * D flop. x is read and y written once; the backward reads x and the gradient of y once and
        computes the convolution again where there is an activation.

    Source: Gu and Dao 2023, arXiv:2312.00752, figure 3 (the causal convolution of the block).
    """
    check_impl(OP, impl, x)
    if padding not in ("causal", "same"):
        refuse(OP, "padding", "'causal' or 'same'", repr(padding), "these are the two of this operator")
    if activation not in (None, "silu"):
        refuse(OP, "activation", "None or 'silu'", repr(activation), "apply any other to the result")
    _check_tensors(x, weight, bias)
    if impl == "triton" and weight.dtype == torch.float64:
        refuse(OP, "weight", "float32 or narrower with impl='triton'", "float64", "impl='auto' would use PyTorch")
    _check_sequences(x, weight, padding, initial_state, cu_seqlens)
    if impl == "reference":
        if cu_seqlens is not None:
            check_bounds(cu_seqlens, x.shape[1])
        return depthwise_conv1d_reference(
            x, weight, bias, initial_state, cu_seqlens, padding=padding, reverse=reverse, activation=activation
        )
    return depthwise_conv1d_op(x, weight, bias, initial_state, cu_seqlens, padding, reverse, activation, impl)


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(OP, "x", x)
    if x.dim() != 3:
        refuse(OP, "x", "(B, L, D)", tuple(x.shape), "channels come last; x.mT turns (B, D, L) into it")
    if min(x.shape) < 1:
        refuse(OP, "x", "without an empty axis", tuple(x.shape), "drop the call for an empty batch")
    check_floating(OP, "weight", weight)
    check_device(OP, "weight", weight, x)
    if weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        wanted = f"(D, k) = ({x.shape[2]}, k)"
        refuse(OP, "weight", wanted, tuple(weight.shape), "weight.squeeze(1) is that of a depthwise nn.Conv1d")
    if not 2 <= weight.shape[1] <= 8:
        refuse(OP, "k of weight", "in 2..8", weight.shape[1], "longer filters want torch.nn.functional.conv1d")
    if bias is not None:
        check_floating(OP, "bias", bias)
        check_device(OP, "bias", bias, x)
        check_shape(OP, "bias", bias, [(x.shape[2],)], "(D,)", "it has one number per channel")


def _check_sequences(
    x: Tensor, weight: Tensor, padding: str, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    sequences = x.shape[0]
    if cu_seqlens is not None:
        check_device(OP, "cu_seqlens", cu_seqlens, x)
        if cu_seqlens.dtype not in (torch.int32, torch.int64):
            refuse(OP, "cu_seqlens", "int32 or int64", cu_seqlens.dtype, "convert it with cu_seqlens.int()")
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
            refuse(OP, "cu_seqlens", "(S + 1,)", tuple(cu_seqlens.shape), "one sequence is [0, L]")
        if x.shape[0] != 1:
            refuse(OP, "B of x", "1 with cu_seqlens", x.shape[0], "pack all sequences into one row")
        sequences = cu_seqlens.shape[0] - 1
    if initial_state is not None:
        if padding != "causal":
            refuse(OP, "initial_state", "None with padding='same'", "a tensor", "a centred filter has no state")
        check_floating(OP, "initial_state", initial_state)
        check_device(OP, "initial_state", initial_state, x)
        shape = (sequences, x.shape[2], weight.shape[1] - 1)
        legend = "(B, D, k - 1)" if cu_seqlens is None else "(S, D, k - 1)"
        check_shape(OP, "initial_state", initial_state, [shape], legend, "it holds the steps before the first")
