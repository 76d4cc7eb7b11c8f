"""Public function of window attention: documentation, checks, one dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_device, check_floating, check_shape, refuse
from ..dispatch import Impl, check_impl
from .autograd import window_attention_op
from .reference import window_attention_reference
from .schema import LARGEST_HEAD

OP = "window_attention"


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    key_window: int | None = None,
    shift: int = 0,
    bias_table: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Softmax attention of every window x window block of a picture to the keys in or around that block.

    The picture is cut into windows; each query attends to the keys of its own window (`key_window` equal to `window`)
    or of the larger square around it. Keys outside the picture are zeros and take part in the softmax, as in HAT.

    Args:
        q: Queries, (B, H, W, heads, d); H and W multiples of `window`. float32, bfloat16, float16 or float64, any
            strides, any d >= 1.
        k: Keys, the shape of `q`.
        v: Values, the shape of `q`.
        window: Side of a query window in pixels, >= 1.
        key_window: Side of the square of keys, >= `window` by an even number of pixels; None means `window`. 24 for a
            window of 16 overlaps by 4 pixels on every side.
        shift: Move the windows by this many pixels down and to the right, cyclically, 0 <= shift < window; only with
            `key_window` equal to `window`. Pixels that are neighbours only through the wrap-around do not attend to
            each other (the region mask of Swin).
        bias_table: Relative position bias, ((window + key_window - 1)^2, heads), added to the scores. The row of the
            offset (dy, dx) is (dy + r) * (window + key_window - 1) + dx + r with r = (window + key_window) / 2 - 1.
            The offset is query minus key where `key_window` equals `window` (the tables of Swin, SwinIR, HAT) and key
            minus query where it is larger (HAT's overlapping attention, not rotated): published tables keep their
            order. None adds nothing.
        scale: Factor of the scores; None means d ** -0.5.
        impl: "triton" (the default on a GPU) keeps scores on the chip; "torch" (the default elsewhere) works on a
            bounded number of windows at a time; "reference" is the loop over windows that defines the result. "auto"
            takes PyTorch for float64 and for heads of more than 128.

    Returns:
        (B, H, W, heads, d) in the dtype of `q`. Scores of half-precision inputs are softmaxed in float32.

    Raises:
        ValueError: A shape, size, dtype, device or `impl` is wrong. For H or W the message says how much to pad.

    Cost: 4 * B * H * W * key_window^2 * heads * d flop; no scores in memory with Triton, at most about 256 MB of them
    at any time with PyTorch. The backward computes the scores again; it is deterministic.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2; Chen et al. 2023, arXiv:2205.04437, section 3.1.3.
    """
    check_impl(OP, impl, q)
    key_window = window if key_window is None else key_window
    _check_windows(window, key_window, shift)
    _check_tensors(q, k, v, bias_table, window, key_window)
    factor = float(q.shape[-1]) ** -0.5 if scale is None else float(scale)
    if impl == "triton":
        _check_triton(q, {"k": k, "v": v, "bias_table": bias_table})
    if impl == "reference":
        return window_attention_reference(q, k, v, bias_table, window, key_window, shift, factor)
    return window_attention_op(q, k, v, bias_table, window, key_window, shift, factor, impl)[0]


def _check_windows(window: int, key_window: int, shift: int) -> None:
    if window < 1:
        refuse(OP, "window", "at least 1", window, "8 and 16 are usual")
    if key_window < window or (key_window - window) % 2:
        wanted = f"window + an even number = {window}, {window + 2}, ..."
        refuse(OP, "key_window", wanted, key_window, "the keys reach equally far on both sides of the window")
    if not 0 <= shift < window:
        refuse(OP, "shift", f"in 0..{window - 1}", shift, "a shift by the whole window is no shift")
    if shift and key_window != window:
        refuse(OP, "shift", "0 with overlapping keys", shift, "leave out key_window, or the shift")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor | None, window: int, key_window: int) -> None:
    check_floating(OP, "q", q)
    if q.dim() != 5:
        refuse(OP, "q", "(B, H, W, heads, d)", tuple(q.shape), "split the channels with q.unflatten(-1, (heads, d))")
    if min(q.shape) < 1:
        refuse(OP, "q", "without an empty axis", tuple(q.shape), "drop the call for an empty batch")
    for name, x in (("k", k), ("v", v)):
        check_floating(OP, name, x)
        check_device(OP, name, x, q)
        check_shape(OP, name, x, [q.shape], "(B, H, W, heads, d)", "queries, keys and values cover the same pixels")
    for name, axis in (("H", 1), ("W", 2)):
        if rest := q.shape[axis] % window:
            remedy = f"pad {name} by {window - rest} and crop the result"
            refuse(OP, f"{name} of q", f"a multiple of window = {window}", q.shape[axis], remedy)
    if bias_table is not None:
        check_floating(OP, "bias_table", bias_table)
        check_device(OP, "bias_table", bias_table, q)
        shape = ((window + key_window - 1) ** 2, q.shape[3])
        legend = "((window + key_window - 1)^2, heads)"
        check_shape(OP, "bias_table", bias_table, [shape], legend, "it has one row per offset of key and query")


def _check_triton(q: Tensor, others: dict[str, Tensor | None]) -> None:
    for name, x in others.items():
        if x is not None and x.dtype == torch.float64:
            wanted = "float32 or narrower with impl='triton'"
            refuse(OP, name, wanted, "float64", f"convert it with {name}.float(), or take impl='torch'")
    if q.shape[4] > LARGEST_HEAD:
        wanted = f"at most {LARGEST_HEAD} with impl='triton'"
        refuse(OP, "d of q", wanted, q.shape[4], "take impl='torch', or more heads")
