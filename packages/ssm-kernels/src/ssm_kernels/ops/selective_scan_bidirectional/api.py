"""The public function: documentation, checks, one dispatch.

Letters: B batch, L length, D channels, N state, G groups of channels that share B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_device, check_shape
from ..dispatch import Impl, check_impl
from ..selective_scan.arguments import check_gate, check_scan
from .autograd import selective_scan_bidirectional_op
from .reference import selective_scan_bidirectional_reference

_OP = "selective_scan_bidirectional"


def selective_scan_bidirectional(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    x_b: Tensor,
    dt_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    dt_bias_b: Tensor | None,
    *,
    z: Tensor | None = None,
    dt_softplus: bool = True,
    average: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Scan x from the first step to the last and x_b from the last to the first; add both and gate the sum.

    Equal to selective_scan(x, ..., z=z) + selective_scan(x_b, ..., z=z, reverse=True), halved if `average`, with one
    rounding. Every argument and its place in memory is indexed by position: nothing is ever flipped.

    Args:
        x: Input of the forward direction, (B, L, D). float32, bfloat16, float16 or float64, as all arguments; dtypes
            may differ.
        dt: Its time step before bias and softplus, (B, L, D), in units of 1 / A.
        A: Its rates, (D, N) or (B, D, N); normally negative.
        B: Its input weights, (B, L, N) or (B, L, G, N) with G dividing D.
        C: Its output weights, the shape of B.
        D: Its weight of x in y, (D,) or (B, D); None leaves the term out.
        dt_bias: Added to dt, (D,); None for no bias.
        x_b: Input of the backward direction, (B, L, D): x itself, or in Vim the result of its own convolution.
        dt_b: Time step of the backward direction; this and the following like their partners, indexed by position.
        A_b: Rates of the backward direction; its N may differ.
        B_b: Input weights of the backward direction.
        C_b: Output weights of the backward direction.
        D_b: Weight of x_b in y.
        dt_bias_b: Added to dt_b.
        z: Gate of the sum, (B, L, D): it is multiplied by silu(z), which is read once. None leaves it out.
        dt_softplus: Pass dt + dt_bias and dt_b + dt_bias_b through softplus.
        average: Halve the sum.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" never fall back.

    Returns:
        y (B, L, D) in x.dtype.

    Raises:
        ValueError: A shape, a dtype, a device or `impl` is wrong. The message names the argument.

    Cost: twice that of `selective_scan`, with one gate.
    Source: Zhu et al. 2024, arXiv:2401.09417, algorithm 1 (Vision Mamba).
    """
    check_impl(_OP, impl, x)
    check_scan(_OP, x, dt, A, B, C, D, dt_bias)
    check_device(_OP, "x_b", x_b, x)
    check_shape(_OP, "x_b", x_b, [x.shape], "the shape of x", "both directions see one row; x_b may be x")
    check_scan(_OP, x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b, suffix="_b")
    check_gate(_OP, z, x)
    tensors = (x, dt, A, B, C, D, dt_bias, x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b, z)
    if impl == "reference":
        return selective_scan_bidirectional_reference(*tensors, dt_softplus=dt_softplus, average=average)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return selective_scan_bidirectional_op(*tensors, dt_softplus, average, save, impl)[0]
