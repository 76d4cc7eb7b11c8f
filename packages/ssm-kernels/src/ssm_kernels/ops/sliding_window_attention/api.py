"""Public function of sliding-window attention: documentation, checks, one dispatch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import sliding_window_attention_op
from .reference import sliding_window_attention_reference
from .schema import LARGEST_HEAD

OP = "sliding_window_attention"


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, ndim: Literal[1, 2] = 1, impl: Impl = "auto"
) -> Tensor:
    """Softmax attention of every token to the tokens around it, with scores scaled by d ** -0.5.

    In one dimension the query at i sees every key j with |i - j| <= window: up to 2 * window + 1 of them, fewer at the
    ends. In two dimensions it sees a square of exactly window x window pixels, which is centred on it inside the
    picture and moved inwards at the borders (neighbourhood attention). A square of an even side cannot be centred: it
    begins window / 2 pixels before the query and ends window / 2 - 1 behind it.

    Args:
        q: Queries, (B, L, heads, d) or, with `ndim` 2, (B, H, W, heads, d). float32, bfloat16, float16 or float64, any
            strides, any size >= 1.
        k: Keys, the shape of `q`.
        v: Values, the shape of `q`.
        window: In one dimension how far a token sees to either side, >= 0; in two the side of the square, >= 1 and at
            most the smaller side of the picture.
        ndim: 1 for sequences, 2 for pictures.
        impl: "triton" (the default on a GPU) visits blocks of keys that a block of queries sees; "torch" (the default
            elsewhere) works on tiles of queries, with a bounded number of scores in memory; "reference" is the loop
            over queries that defines the result. "auto" takes PyTorch for float64 and for heads of more than 128.

    Returns:
        The shape and dtype of `q`. Scores of half-precision inputs are softmaxed in float32.

    Raises:
        ValueError: A shape, size, dtype, device or `impl` is wrong.

    Cost: proportional to L * window, or H * W * window^2, however large the input is. The backward computes the scores
    again; it is deterministic.

    Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1 (band); Hassani et al. 2023, arXiv:2204.07143, section
    3.1 (neighbourhood).
    """
    check_impl(OP, impl, q)
    _check_tensors(q, k, v, ndim)
    _check_window(q, window, ndim)
    if impl == "triton":
        _check_triton(q, {"k": k, "v": v})
    band = ndim == 1
    if band:
        q, k, v = q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)
    if impl == "reference":
        out = sliding_window_attention_reference(q, k, v, window, band)
    else:
        out = sliding_window_attention_op(q, k, v, window, band, impl)[0]
    return out.squeeze(1) if band else out


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, ndim: int) -> None:
    if ndim not in (1, 2):
        refuse(OP, "ndim", "1 or 2", ndim, "1 is for sequences, 2 for pictures")
    legend = "(B, L, heads, d)" if ndim == 1 else "(B, H, W, heads, d)"
    check_floating(OP, "q", q)
    if q.dim() != ndim + 3:
        refuse(
            OP, "q", f"{legend} with ndim={ndim}", tuple(q.shape), "split the channels with q.unflatten(-1, (heads, d))"
        )
    if min(q.shape) < 1:
        refuse(OP, "q", "without an empty axis", tuple(q.shape), "drop the call for an empty batch")
    for name, x in (("k", k), ("v", v)):
        check_floating(OP, name, x)
        check_device(OP, name, x, q)
        check_shape(OP, name, x, [q.shape], legend, "queries, keys and values belong to the same tokens")


def _check_window(q: Tensor, window: int, ndim: int) -> None:
    if ndim == 1:
        if window < 0:
            refuse(OP, "window", "at least 0 with ndim=1", window, "0 sees the token itself alone")
    elif not 1 <= window <= min(q.shape[1:3]):
        wanted = f"in 1..{min(q.shape[1:3])}, the smaller side of the picture"
        refuse(OP, "window", wanted, window, "every query sees window x window pixels")


def _check_triton(q: Tensor, others: dict[str, Tensor]) -> None:
    for name, x in others.items():
        if x.dtype == torch.float64:
            wanted = "float32 or narrower with impl='triton'"
            refuse(OP, name, wanted, "float64", f"convert it with {name}.float(), or take impl='torch'")
    if q.shape[-1] > LARGEST_HEAD:
        wanted = f"at most {LARGEST_HEAD} with impl='triton'"
        refuse(OP, "d of q", wanted, q.shape[-1], "take impl='torch', or more heads")
