"""Public functions: documentation, checks, one dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import selective_scan_2d_op
from .cross import DIRECTIONS, Direction, merge_order, scan_order
from .reference import selective_scan_2d_reference

OP = "selective_scan_2d"


def _codes(op: str, directions: Sequence[Direction]) -> list[int]:
    """Return the index in DIRECTIONS of every direction, or refuse."""
    wanted = "a non-empty tuple of " + ", ".join(repr(name) for name in DIRECTIONS)
    if isinstance(directions, str) or len(directions) == 0 or any(name not in DIRECTIONS for name in directions):
        refuse(op, "directions", wanted, repr(directions), "name one for each index of the direction axis")
    return [DIRECTIONS.index(name) for name in directions]


def _check_rank(op: str, argument: str, x: Tensor, legend: str) -> None:
    if x.dim() != 4 or any(size < 1 for size in x.shape):
        remedy = "add the axes that are missing, for example with .unsqueeze(0)"
        refuse(op, argument, f"of shape {legend} with every size at least 1", tuple(x.shape), remedy)


def cross_scan(x: Tensor, directions: Sequence[Direction] = DIRECTIONS) -> Tensor:
    """Copy an image into one sequence for each scan direction.

    `selective_scan_2d` never needs this copy; the function says what its directions mean, and tests compare with it.

    Args:
        x: Image, (B, H, W, D), any dtype and unit.
        directions: K names. "row" reads along the rows from the top left, "column" down the columns from the top
            left; "row_reversed" and "column_reversed" are the same backwards, from the bottom right.

    Returns:
        (B, K, H * W, D), every direction in its scan order, in the dtype of `x`.

    Raises:
        ValueError: `x` has not four axes, or a direction is unknown.

    Cost: K copies of the image. Adjoint: `cross_merge`.
    Source: Liu et al. 2024 (VMamba), arXiv:2401.10166, section 4.2, figure 3.
    """
    codes = _codes("cross_scan", directions)
    _check_rank("cross_scan", "x", x, "(B, H, W, D)")
    return scan_order(x, codes)


def cross_merge(y: Tensor, height: int, width: int, directions: Sequence[Direction] = DIRECTIONS) -> Tensor:
    """Put every direction's sequence back to its pixels and sum over the directions: the adjoint of `cross_scan`.

    Args:
        y: Sequences in scan order, (B, K, H * W, D), any dtype and unit.
        height: H, in pixels.
        width: W, in pixels.
        directions: The K names that `cross_scan` was called with.

    Returns:
        (B, H, W, D) in the dtype of `y`. cross_merge(cross_scan(x), H, W) is 4 * x.

    Raises:
        ValueError: The shape of `y` does not fit `height`, `width` and `directions`, or a direction is unknown.

    Cost: K copies of the image.
    Source: Liu et al. 2024 (VMamba), arXiv:2401.10166, section 4.2, figure 3.
    """
    codes = _codes("cross_merge", directions)
    _check_rank("cross_merge", "y", y, "(B, K, H * W, D)")
    if height < 1 or width < 1:
        refuse("cross_merge", "height and width", "at least 1", (height, width), "pass the size of the image")
    shape = (y.shape[0], len(codes), height * width, y.shape[3])
    check_shape("cross_merge", "y", y, [shape], "(B, K, H * W, D)", "pass the size and directions of cross_scan")
    return merge_order(y, height, width, codes)


def _check_inputs(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None, count: int
) -> None:
    """Refuse anything but floating tensors of fitting shapes on one device."""
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias}
    for name, tensor in named.items():
        if tensor is not None:
            check_floating(OP, name, tensor)
            check_device(OP, name, tensor, x)
    _check_rank(OP, "x", x, "(B, H, W, D)")
    batch, height, width, channels = x.shape
    remedy = "K is the number of directions"
    check_shape(OP, "dt", dt, [(batch, height, width, count, channels)], "(B, H, W, K, D)", remedy)
    if A.dim() != 3 or A.shape[0] != count or A.shape[1] != channels or A.shape[2] < 1:
        wanted = f"of shape (K, D, N) = ({count}, {channels}, N) with N at least 1"
        refuse(OP, "A", wanted, tuple(A.shape), "pass one (D, N) matrix for each direction")
    state = A.shape[2]
    for name, tensor in (("B", B), ("C", C)):
        check_shape(OP, name, tensor, [(batch, height, width, count, state)], "(B, H, W, K, N)", "N is A.shape[2]")
    for name, tensor in (("D", D), ("dt_bias", dt_bias)):
        if tensor is not None:
            check_shape(
                OP, name, tensor, [(count, channels)], "(K, D)", "pass one value for each direction and channel"
            )


def selective_scan_2d(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    directions: Sequence[Direction] = DIRECTIONS,
    impl: Impl = "auto",
) -> Tensor:
    """Run one selective scan over an image in each of K directions and sum the outputs pixel by pixel.

    Along direction k, with t counting its steps and p(t) the pixel that it reads at step t:
    delta[t] = softplus(dt[p(t), k] + dt_bias[k]), from h = 0
    h[t] = exp(delta[t] * A[k]) * h[t-1] + delta[t] * B[p(t), k] * x[p(t)], and
    y[p(t)] += <C[p(t), k], h[t]> + D[k] * x[p(t)].
    Every argument is indexed by pixel, never by step: no copy in scan order is made.

    Args:
        x: Image, (B, H, W, D), in the unit of the output. float32, bfloat16, float16 or float64; any strides.
        dt: Step size before bias and softplus, (B, H, W, K, D). A time; only its product with A has no unit.
        A: Rate, (K, D, N), normally negative.
        B: Input weights, (B, H, W, K, N), shared by the channels.
        C: Output weights, (B, H, W, K, N), shared by the channels.
        D: Weight of the direct path, (K, D). No direct path if None.
        dt_bias: Added to dt, (K, D). Zero if None.
        dt_softplus: Make the step size positive; False takes dt + dt_bias as it is.
        directions: K names of "row", "column", "row_reversed", "column_reversed" (see `cross_scan`), in the order of
            the direction axes. Any subset, in any order, with repeats.
        impl: "auto" uses Triton on a GPU and PyTorch elsewhere; "triton" raises rather than fall back. "reference"
            is the definition, one step at a time.

    Returns:
        Sum over the directions, (B, H, W, D), in the dtype of `x`. The state, the exponentials and the sum are
        float32, float64 for float64 `x` (which only "torch" and "reference" take).

    Raises:
        ValueError: A shape, a dtype, a device, a direction or `impl` is wrong. The message names the argument.

    Cost: about 10 * B * H * W * K * D * N flop and as many exponentials as states, B * H * W * K * D * N. For the
    backward Triton keeps the inputs and K states per 64 pixels, PyTorch the inputs alone. Every size is at least 1 and
    none has an upper limit.
    Source: Liu et al. 2024 (VMamba), arXiv:2401.10166, section 4.2; Gu and Dao 2023, arXiv:2312.00752, section 3.2.
    """
    codes = _codes(OP, directions)
    _check_inputs(x, dt, A, B, C, D, dt_bias, len(codes))
    check_impl(OP, impl, x)
    if impl == "reference":
        return selective_scan_2d_reference(x, dt, A, B, C, D, dt_bias, dt_softplus, codes)
    tensors = (x, dt, A, B, C, D, dt_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return selective_scan_2d_op(*tensors, dt_softplus, codes, impl, save)[0]
