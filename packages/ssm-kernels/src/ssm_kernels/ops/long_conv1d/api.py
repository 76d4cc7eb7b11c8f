"""The public function: documentation, checks, one dispatch. Letters: B batch, L length, D channels, J lags."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..checks import check_device, check_floating, refuse
from ..dispatch import check_impl
from .autograd import long_conv1d_op
from .reference import long_conv1d_reference

_OP = "long_conv1d"


def long_conv1d(
    x: Tensor,
    kernel: Tensor,
    *,
    kernel_back: Tensor | None = None,
    reverse: bool = False,
    impl: Literal["auto", "torch", "reference"] = "auto",
) -> Tensor:
    """Convolve every channel with a filter of its own that may be as long as the row, by FFT.

    y[t] = sum over j of kernel[:, j] * x[t - j], plus kernel_back[:, j] * x[t + j]; outside of the row x is zero. This
    is what a linear state-space model computes from a zero state: `s4_kernel` makes such filters.

    Args:
        x: Input, (B, L, D). float32, bfloat16, float16 or float64.
        kernel: Weights of the present and the past, (D, J); lags from L on meet nothing.
        kernel_back: Weights of the present and the future, (D, J'), for a filter that sees both sides at the price of
            one. None leaves it out.
        reverse: Exchange past and future.
        impl: "auto" and "torch" are the FFT, "reference" the sum. There is no Triton kernel: transforms are cuFFT's.

    Returns:
        y (B, L, D) in x.dtype, computed in float32 (float64 for float64 x). Gradients flow to x and both filters; they
        have none of their own, except with impl="reference".

    Raises:
        ValueError: A shape, a dtype, a device or `impl` is wrong. The message names the argument.

    Cost: B * D transforms of about 2 * L numbers each way; at most 128 MB of them at a time.
    """
    check_impl(_OP, impl, x, ("auto", "torch", "reference"))
    if x.dim() != 3 or x.numel() == 0:
        refuse(_OP, "x", "(B, L, D) with every size at least 1", tuple(x.shape), "add the missing axis")
    for name, tensor in {"x": x, "kernel": kernel, "kernel_back": kernel_back}.items():
        if tensor is None:
            continue
        check_floating(_OP, name, tensor)
        check_device(_OP, name, tensor, x)
        if name != "x" and (tensor.dim() != 2 or tensor.shape[0] != x.shape[2] or tensor.shape[1] == 0):
            wanted = f"(D, J) with D={x.shape[2]} and J at least 1"
            refuse(_OP, name, wanted, tuple(tensor.shape), "give one filter per channel, oldest lag last")
    if impl == "reference":
        return long_conv1d_reference(x, kernel, kernel_back, reverse)
    return long_conv1d_op(x, kernel, kernel_back, reverse, impl)
