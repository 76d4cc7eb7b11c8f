"""Window attention with batched matrix products, a slab of windows at a time so that the scores stay small.

Letters: n windows of a slab, h heads, Q = window^2 queries, K = key_window^2 keys, d head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

SCORE_BYTES = {"cpu": 16 * 2**20, "other": 256 * 2**20}
Box = tuple[slice, slice, slice]  # images, window rows, window columns


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """Give the dtype of the matrix products: that of the inputs, but never half precision on a CPU."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return torch.promote_types(dtype, torch.float32) if tensors[0].device.type == "cpu" else dtype


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """View (B, H, W, h, d) as its windows, (B, rows, columns, h, size, size, d); they overlap where size > step."""
    return x.unfold(1, size, step).unfold(2, size, step).permute(0, 1, 2, 3, 5, 6, 4)


def _position_bias(table: Tensor, window: int, key_window: int, dtype: torch.dtype) -> Tensor:
    """Spread the table over all pairs of query and key, (h, Q, K)."""
    side = window + key_window - 1
    ordered = table.flip(0) if key_window == window else table
    grid = ordered.to(dtype).unflatten(0, (side, side))
    # [s, t, h, i, j] = grid[s + i, t + j]: the key at (i, j) as seen from query (window - 1 - s, window - 1 - t)
    pairs = grid.unfold(0, key_window, 1).unfold(1, key_window, 1).flip(0, 1)
    return pairs.permute(2, 0, 1, 3, 4).reshape(table.shape[1], window**2, key_window**2)


def _diagonal_sums(x: Tensor) -> Tensor:
    """Sum (..., n, m) over the pairs with equal j - i, (..., n + m - 1), in the order of j - i. Deterministic."""
    n, m = x.shape[-2:]
    padded = F.pad(x.flip(-2), (0, n)).flatten(-2)[..., : n * (n + m - 1)]  # each row moves one to the right
    return padded.unflatten(-1, (n, n + m - 1)).sum(-2)


def _table_gradient(grad_bias: Tensor, window: int, key_window: int) -> Tensor:
    """Sum the gradient of all pairs of query and key into the rows of the table: the adjoint of `_position_bias`."""
    pairs = grad_bias.unflatten(-1, (key_window, key_window)).unflatten(1, (window, window))  # (h, qy, qx, ky, kx)
    sums = _diagonal_sums(_diagonal_sums(pairs.transpose(2, 3)).movedim(3, 1))  # (h, dx, dy)
    table = sums.permute(2, 1, 0).flatten(0, 1)
    return table.flip(0) if key_window == window else table


def _region_bias(window: int, shift: int, rows: bool, columns: bool, like: Tensor) -> Tensor:
    """Give -inf to pairs of pixels that only the wrap-around of a shift made neighbours, (1, Q, K)."""
    late = torch.arange(window, device=like.device) >= window - shift
    region = (late[:, None] & rows) * 2 + (late[None, :] & columns) * 1
    region = region.flatten()
    return like.new_zeros(1, window**2, window**2).masked_fill(region[:, None] != region[None, :], float("-inf"))


def _chunks(part: range, size: int) -> list[slice]:
    return [slice(i, min(i + size, part.stop)) for i in range(part.start, part.stop, size)]


def _slabs(images: int, rows: range, columns: range, most: int) -> Iterator[Box]:
    """Cut a block of windows into boxes of at most `most` windows."""
    wide = max(1, min(len(columns), most))
    high = max(1, min(len(rows), most // wide))
    deep = max(1, min(images, most // (wide * high)))
    yield from product(_chunks(range(images), deep), _chunks(rows, high), _chunks(columns, wide))


class _Plan:
    """Where the windows lie and what is added to the scores of which."""

    def __init__(self, q: Tensor, table: Tensor | None, window: int, key_window: int, shift: int, dtype: torch.dtype):
        self.window, self.key_window, self.shift, self.dtype = window, key_window, shift, dtype
        self.border = (key_window - window) // 2
        self.images, self.heads = q.shape[0], q.shape[3]
        self.rows, self.columns = q.shape[1] // window, q.shape[2] // window
        self.bias = None if table is None else _position_bias(table, window, key_window, dtype)
        budget = SCORE_BYTES.get(q.device.type, SCORE_BYTES["other"])
        self.most = max(1, budget // (self.heads * window**2 * key_window**2 * dtype.itemsize))
        self.empty = q.new_empty(0, dtype=dtype)

    def moved(self, x: Tensor) -> Tensor:
        """Shift a picture so that the windows start at its first pixel."""
        return x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x

    def back(self, x: Tensor) -> Tensor:
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def query_windows(self, x: Tensor) -> Tensor:
        return _windows(x, self.window, self.window)

    def padded(self, x: Tensor) -> Tensor:
        """Put the frame of zeros around keys or values that larger key windows reach into."""
        return F.pad(x, (0, 0, 0, 0) + (self.border,) * 4) if self.border else x

    def cropped(self, padded: Tensor, like: Tensor) -> Tensor:
        """Take the gradient of keys or values out of its frame, in the place, dtype and layout of a fresh result."""
        height, width = like.shape[1:3]
        inner = padded[:, self.border : self.border + height, self.border : self.border + width]
        return self.back(torch.empty(like.shape, dtype=like.dtype, device=like.device).copy_(inner))

    def key_windows(self, padded: Tensor) -> Tensor:
        return _windows(padded, self.key_window, self.window)

    def take(self, windows: Tensor, box: Box) -> Tensor:
        """Copy the windows of a box, (n, h, pixels, d); on a GPU d is filled up with zeros to a multiple of 8.

        The products do not change, and aligned rows let them use the tensor cores (d = 9 or 10 otherwise would not).
        """
        copy = windows[box].to(self.dtype).flatten(4, 5).flatten(0, 2)
        missing = -copy.shape[-1] % 8 if copy.is_cuda else 0
        return F.pad(copy, (0, missing)) if missing else copy

    def boxes(self) -> Iterator[tuple[Box, Tensor | None]]:
        """Yield all windows in slabs, each with what is added to its scores, (h or 1, Q, K)."""
        if not self.shift:
            for box in _slabs(self.images, range(self.rows), range(self.columns), self.most):
                yield box, self.bias
            return
        for last_row, last_column in product((False, True), repeat=2):
            bias = self.bias
            if last_row or last_column:
                region = _region_bias(self.window, self.shift, last_row, last_column, self.empty)
                bias = region if bias is None else bias + region
            rows = range(self.rows - 1, self.rows) if last_row else range(self.rows - 1)
            columns = range(self.columns - 1, self.columns) if last_column else range(self.columns - 1)
            for box in _slabs(self.images, rows, columns, self.most):
                yield box, bias


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores of a slab, (n, h, Q, K)."""
    n, h = q.shape[:2]
    scores = q.new_empty(n * h, q.shape[2], k.shape[2])
    # alpha is applied before the rounding to half precision, so that float16 scores do not overflow early
    torch.baddbmm(scores, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=scale, out=scores)
    scores = scores.unflatten(0, (n, h))
    if bias is not None:
        scores += bias
    return scores.softmax(-1)


def window_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
) -> Tensor:
    """Compute window attention slab by slab; without a bias the scores never reach memory."""
    plan = _Plan(q, bias_table, window, key_window, shift, work_dtype(q, k, v))
    queries = plan.query_windows(plan.moved(q))
    keys, values = (plan.key_windows(plan.padded(plan.moved(x))) for x in (k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    out_windows = plan.query_windows(out)
    for box, bias in plan.boxes():
        query, key, value = plan.take(queries, box), plan.take(keys, box), plan.take(values, box)
        if bias is None:
            part = F.scaled_dot_product_attention(query, key, value, scale=scale)
        else:
            part = _probabilities(query, key, bias, scale) @ value
        target = out_windows[box]
        target.copy_(part[..., : q.shape[-1]].reshape(target.shape))
    return plan.back(out)


def _disjoint_passes(window: int, key_window: int) -> list[tuple[slice, slice]]:
    """Divide rows and columns of windows so that the key windows of one pass do not overlap."""
    passes = -(-key_window // window)
    return [(slice(i, None, passes), slice(j, None, passes)) for i, j in product(range(passes), repeat=2)]


def _add_windows(picture: Tensor, box: Box, part: Tensor, plan: _Plan) -> None:
    """Add gradients of key windows to the padded picture, one pass of disjoint windows after the other."""
    target = plan.key_windows(picture)[box]
    part = part[..., : picture.shape[-1]].reshape(target.shape)
    for rows, columns in _disjoint_passes(plan.window, plan.key_window):
        target[:, rows, columns] += part[:, rows, columns]


def window_attention_backward_torch(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor | None,
    window: int,
    key_window: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k, v and the table (an empty tensor without one); the scores are made again."""
    plan = _Plan(q, bias_table, window, key_window, shift, work_dtype(q, k, v))
    grads, queries = (plan.query_windows(plan.moved(x)) for x in (grad, q))
    key_picture, value_picture = (plan.padded(plan.moved(x)) for x in (k, v))
    keys, values = plan.key_windows(key_picture), plan.key_windows(value_picture)
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_q_windows = plan.query_windows(grad_q)
    wide = torch.promote_types(plan.dtype, torch.float32)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (key_picture, value_picture))
    grad_bias = torch.zeros(plan.heads, window**2, key_window**2, dtype=wide, device=q.device)
    for box, bias in plan.boxes():
        query, key, value = plan.take(queries, box), plan.take(keys, box), plan.take(values, box)
        out_grad = plan.take(grads, box)
        p = _probabilities(query, key, bias, scale)
        _add_windows(grad_v, box, p.mT @ out_grad, plan)
        grad_scores = torch.ops.aten._softmax_backward_data(out_grad @ value.mT, p, -1, p.dtype)
        if bias_table is not None:
            grad_bias += grad_scores.sum(0, dtype=wide)
        _add_windows(grad_k, box, (grad_scores.mT @ query).mul_(scale), plan)
        target = grad_q_windows[box]
        target.copy_((grad_scores @ key).mul_(scale)[..., : q.shape[-1]].reshape(target.shape))
    table = q.new_empty(0)
    if bias_table is not None:
        table = _table_gradient(grad_bias, window, key_window).to(bias_table.dtype)
    return plan.back(grad_q), plan.cropped(grad_k, k), plan.cropped(grad_v, v), table
