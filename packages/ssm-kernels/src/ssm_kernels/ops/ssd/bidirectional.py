"""Two Mamba-2 scans over one row, one from each end.

Letters: B batch, L length, H heads, P head dim, N state, G groups of heads that share B and C.
"""

from __future__ import annotations

from torch import Tensor

from ..checks import check_device, check_shape
from ..dispatch import Impl, check_impl
from .api import ssd
from .arguments import check_chunk, check_gate, check_ssd

_OP = "ssd_bidirectional"


def ssd_bidirectional(
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
    chunk: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Scan x from the first step to the last and x_b from the last to the first; add both and gate the sum.

    That is ssd(x, ...) + ssd(x_b, ..., reverse=True), halved if `average`, times silu(z). Every argument and its place
    in memory is indexed by position: nothing is ever flipped.

    Args:
        x: Input of the forward direction, (B, L, H, P). float32, bfloat16, float16 or float64, as all arguments;
            dtypes may differ.
        dt: Its time step before bias and softplus, (B, L, H), in units of 1 / A.
        A: Its rates, (H,); normally negative.
        B: Its input weights, (B, L, G, N) with G dividing H.
        C: Its output weights, the shape of B.
        D: Its weight of x in y, (H,) or (H, P); None leaves the term out.
        dt_bias: Added to dt, (H,); None for no bias.
        x_b: Input of the backward direction, (B, L, H, P): x itself, or the result of its own convolution.
        dt_b: Time step of the backward direction; this and the following like their partners, indexed by position.
        A_b: Rates of the backward direction.
        B_b: Input weights of the backward direction; its G and N may differ.
        C_b: Output weights of the backward direction.
        D_b: Weight of x_b in y.
        dt_bias_b: Added to dt_b.
        z: Gate of the sum, (B, L, H, P): it is multiplied by silu(z). None leaves it out.
        dt_softplus: Pass dt + dt_bias and dt_b + dt_bias_b through softplus.
        average: Halve the sum.
        chunk: Steps per chunk, as in `ssd`.
        impl: "auto" takes Triton on a GPU and PyTorch elsewhere; "triton", "torch" and "reference" never fall back.

    Returns:
        y (B, L, H, P) in x.dtype.

    Raises:
        ValueError: A shape, a dtype, a device, `chunk` or `impl` is wrong. The message names the argument.

    Cost: two `ssd`, each with the gate inside, and their sum. Each direction's result is rounded to x.dtype.
    Source: Dao and Gu 2024, arXiv:2405.21060; both ends as in Zhu et al. 2024, arXiv:2401.09417, algorithm 1.
    """
    check_impl(_OP, impl, x)
    check_ssd(_OP, x, dt, A, B, C, D, dt_bias)
    check_device(_OP, "x_b", x_b, x)
    check_shape(_OP, "x_b", x_b, [x.shape], "the shape of x", "both directions see one row; x_b may be x")
    check_ssd(_OP, x_b, dt_b, A_b, B_b, C_b, D_b, dt_bias_b, suffix="_b")
    check_gate(_OP, z, x)
    check_chunk(_OP, chunk)
    if average:  # half of B and of D is half of the result, without a pass over it
        B, B_b = 0.5 * B, 0.5 * B_b
        D, D_b = None if D is None else 0.5 * D, None if D_b is None else 0.5 * D_b
    ahead = ssd(x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus, chunk=chunk, impl=impl)
    back = ssd(
        *(x_b, dt_b, A_b, B_b, C_b, D_b),
        z=z,
        dt_bias=dt_bias_b,
        dt_softplus=dt_softplus,
        reverse=True,
        chunk=chunk,
        impl=impl,
    )
    return ahead + back.to(x.dtype)
