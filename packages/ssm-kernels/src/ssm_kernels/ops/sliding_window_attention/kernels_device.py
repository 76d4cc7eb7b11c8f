"""The device code of sliding-window attention; kernels.py launches it.

A sequence is a picture of one row. A program takes a tile of queries of one head and visits, block by block, the box
of keys that any of them sees: the work grows with the window, not with the picture. The gradient of keys is the same
from the other side: a tile of keys visits the box of queries that see any of them; at the borders, where squares are
moved inwards, that box reaches to the border. Scores are in units of log 2.
"""
# This is Triton's language: constexpr parameters take plain values, a branch on a constexpr is decided when compiling.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# ruff: noqa: SIM108

import triton
import triton.language as tl

from ..window_attention.kernels_device import MASKED, NOBODY, inner, load_rows, store_rows
from ..window_attention.kernels_device_backward import probabilities

SIZES = ["height", "width", "heads", "pixel", "head_step"]


@triton.jit
def first_key(i, size, WINDOW: tl.constexpr, BAND: tl.constexpr):
    """Give the first key that a query sees along an axis; the band may begin before the first token."""
    if BAND:
        first = i - WINDOW
    else:
        first = tl.maximum(tl.minimum(i - WINDOW // 2, size - WINDOW), 0)
    return first


@triton.jit
def keys_of(first, end, size, WINDOW: tl.constexpr, BAND: tl.constexpr):
    """Give the first key that any of the queries first .. end - 1 sees, and the one behind the last."""
    end = tl.minimum(end, size)
    start = first_key(first, size, WINDOW, BAND)
    stop = first_key(end - 1, size, WINDOW, BAND)
    if BAND:
        stop += 2 * WINDOW + 1
    else:
        stop += WINDOW
    return tl.maximum(start, 0), tl.minimum(stop, size)


@triton.jit
def queries_of(first, end, size, WINDOW: tl.constexpr, BAND: tl.constexpr):
    """Give the first query that sees any of the keys first .. end - 1, and the one behind the last."""
    end = tl.minimum(end, size)
    if BAND:
        start = first - WINDOW
        stop = end + WINDOW
    else:
        start = tl.where(first < WINDOW, 0, first - (WINDOW - 1) + WINDOW // 2)
        stop = tl.where(end > size - WINDOW, size, end + WINDOW // 2)
    return tl.maximum(start, 0), tl.minimum(stop, size)


@triton.jit
def tile_of(height, width, heads, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Give head, batch row, first row and first column of this program's tile."""
    program = tl.program_id(0)
    head = program % heads
    program = program // heads
    columns = (width + TILE_X - 1) // TILE_X
    rows = (height + TILE_Y - 1) // TILE_Y
    row = (program // columns) % rows
    return head, program // (columns * rows), row * TILE_Y, (program % columns) * TILE_X


@triton.jit
def block_of(block, columns, top, left, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr):
    """Give rows and columns of the tokens of one block of a box."""
    index = tl.arange(0, BLOCK_Y * BLOCK_X)
    y = top + (block // columns) * BLOCK_Y + index // BLOCK_X
    x = left + (block % columns) * BLOCK_X + index % BLOCK_X
    return y, x


@triton.jit
def sees(
    query_y, query_x, key_y, key_x, height, width,
    WINDOW: tl.constexpr, BAND: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Say which query sees which key, (queries, keys) or the other way round. No key beyond a border is ever seen."""
    left = first_key(query_x, width, WINDOW, BAND)
    if BAND:
        key_x = tl.where(key_x < width, key_x, -(2**30))  # one unsigned comparison stands for two
        if TRANSPOSED:
            answer = (key_x[:, None] - left[None, :]).to(tl.uint32) <= 2 * WINDOW
        else:
            answer = (key_x[None, :] - left[:, None]).to(tl.uint32) <= 2 * WINDOW
    else:
        top = first_key(query_y, height, WINDOW, BAND)
        if TRANSPOSED:
            answer = (key_x[:, None] - left[None, :]).to(tl.uint32) < WINDOW
            answer = answer & ((key_y[:, None] - top[None, :]).to(tl.uint32) < WINDOW)
        else:
            answer = (key_x[None, :] - left[:, None]).to(tl.uint32) < WINDOW
            answer = answer & ((key_y[None, :] - top[:, None]).to(tl.uint32) < WINDOW)
    return answer


@triton.jit
def load_sums(lse, row, place, there, tokens, WIDE: tl.constexpr):
    """Load the two numbers that the forward pass saved of every query; nobody's probabilities are zero."""
    if WIDE:
        lse += row * (2 * tokens)
        log = tl.load(lse + place, mask=there, other=NOBODY)
        share = tl.load(lse + tokens + place, mask=there, other=0.0)
    else:
        log = tl.load(lse + row * tokens + place, mask=there, other=NOBODY)
        share = log
    return log, share


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    height,
    width,
    heads,
    pixel: tl.int64,
    head_step: tl.int64,
    factor,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    BAND: tl.constexpr,
    VECTOR: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attend from one tile of queries.

    Args:
        q: (B, H, W, heads, d), as k and v with the same strides, which are
        k: given for pixels and heads
        v: in units of VECTOR: that it divides them is what the compiler must know to move several numbers at once.
        out: (B, H, W, heads, d), contiguous.
        lse: Written: logarithm to base 2 of the sum of exponentials, (B, heads, 1, H * W) float32; where WIDE the
            largest score, and one over the sum of exponentials relative to it, (B, heads, 2, H * W).
        height: H, 1 for a sequence.
        width: W.
        heads: Number of heads.
        pixel: Stride.
        head_step: Stride.
        factor: Of the products, in units of log 2.
        D: d.
        WINDOW: Reach of the band, or side of the square.
        BAND: Which of the two it is.
        VECTOR: Divides d and the strides.
        TILE_Y: Rows of queries of a program.
        TILE_X: Columns of them.
        BLOCK_Y: Rows of keys at a time.
        BLOCK_X: Columns of them.
        BLOCK_D: A power of two >= d, at least 16.
        KIND: Dtype of what is multiplied.
        PRECISION: Of float32 products.
        WIDE: Inputs are float32, for which a logarithm is not exact enough.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    TILE: tl.constexpr = TILE_Y * TILE_X
    head, batch, row, column = tile_of(height, width, heads, TILE_Y, TILE_X)
    tokens = tl.cast(height, tl.int64) * width
    start = batch * tokens * pixel + head * head_step
    dense = (batch * tokens * heads + head) * D
    y, x = block_of(0, 1, row, column, TILE_Y, TILE_X)
    there = (y < height) & (x < width)
    place = y * width + x
    queries = load_rows(q + start, place, pixel, there, D, BLOCK_D, True, KIND)
    left, right = keys_of(column, column + TILE_X, width, WINDOW, BAND)
    if BAND:
        above = row
        below = row + 1
    else:
        above, below = keys_of(row, row + TILE_Y, height, WINDOW, BAND)
    columns = (right - left + BLOCK_X - 1) // BLOCK_X
    blocks = columns * ((below - above + BLOCK_Y - 1) // BLOCK_Y)
    highest = tl.full([TILE], MASKED, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    result = tl.zeros([TILE, BLOCK_D], tl.float32)
    for block in range(0, blocks):
        key_y, key_x = block_of(block, columns, above, left, BLOCK_Y, BLOCK_X)
        key_there = (key_y < height) & (key_x < width)
        key_place = key_y * width + key_x
        keys = load_rows(k + start, key_place, pixel, key_there, D, BLOCK_D, True, KIND)
        values = load_rows(v + start, key_place, pixel, key_there, D, BLOCK_D, True, KIND)
        score = inner(queries, keys, PRECISION, WIDE) * factor
        score = tl.where(sees(y, x, key_y, key_x, height, width, WINDOW, BAND, False), score, MASKED)
        higher = tl.maximum(highest, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        highest = higher
        total = total * fade + tl.sum(p, 1)
        result = tl.dot(p.to(KIND), values, result * fade[:, None], input_precision=PRECISION)
    store_rows(out + dense, place, heads * D, there, result / total[:, None], D, BLOCK_D)
    line = tl.cast(batch, tl.int64) * heads + head
    if WIDE:
        lse += line * (2 * tokens)
        tl.store(lse + place, highest, mask=there)
        tl.store(lse + tokens + place, 1.0 / total, mask=there)
    else:
        tl.store(lse + line * tokens + place, highest + tl.log2(total), mask=there)


@triton.jit(do_not_specialize=SIZES)
def query_kernel(
    grad,
    q,
    k,
    v,
    out,
    lse,
    grad_q,
    delta,
    height,
    width,
    heads,
    pixel: tl.int64,
    head_step: tl.int64,
    factor,
    scale,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    BAND: tl.constexpr,
    VECTOR: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Make the gradient of one tile of queries, and what the softmax subtracts from the gradient of every row.

    Args as those of the forward kernel, grad, out and grad_q (B, H, W, heads, d) contiguous; delta (B, heads, H * W)
    is written.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    TILE: tl.constexpr = TILE_Y * TILE_X
    head, batch, row, column = tile_of(height, width, heads, TILE_Y, TILE_X)
    tokens = tl.cast(height, tl.int64) * width
    start = batch * tokens * pixel + head * head_step
    dense = (batch * tokens * heads + head) * D
    line = tl.cast(batch, tl.int64) * heads + head
    y, x = block_of(0, 1, row, column, TILE_Y, TILE_X)
    there = (y < height) & (x < width)
    place = y * width + x
    queries = load_rows(q + start, place, pixel, there, D, BLOCK_D, True, KIND)
    grads = load_rows(grad + dense, place, heads * D, there, D, BLOCK_D, True, KIND)
    outs = load_rows(out + dense, place, heads * D, there, D, BLOCK_D, True, tl.float32)
    log, share = load_sums(lse, line, place, there, tokens, WIDE)
    less = tl.sum(outs * grads.to(tl.float32), 1)
    tl.store(delta + line * tokens + place, less, mask=there)
    left, right = keys_of(column, column + TILE_X, width, WINDOW, BAND)
    if BAND:
        above = row
        below = row + 1
    else:
        above, below = keys_of(row, row + TILE_Y, height, WINDOW, BAND)
    columns = (right - left + BLOCK_X - 1) // BLOCK_X
    blocks = columns * ((below - above + BLOCK_Y - 1) // BLOCK_Y)
    result = tl.zeros([TILE, BLOCK_D], tl.float32)
    for block in range(0, blocks):
        key_y, key_x = block_of(block, columns, above, left, BLOCK_Y, BLOCK_X)
        key_there = (key_y < height) & (key_x < width)
        key_place = key_y * width + key_x
        keys = load_rows(k + start, key_place, pixel, key_there, D, BLOCK_D, True, KIND)
        values = load_rows(v + start, key_place, pixel, key_there, D, BLOCK_D, True, KIND)
        score = inner(queries, keys, PRECISION, WIDE) * factor
        score = tl.where(sees(y, x, key_y, key_x, height, width, WINDOW, BAND, False), score, MASKED)
        p = probabilities(score, log[:, None], share[:, None], WIDE)
        grad_p = inner(grads, values, PRECISION, WIDE)
        grad_score = p * (grad_p - less[:, None])
        result = tl.dot(grad_score.to(KIND), keys, result, input_precision=PRECISION)
    store_rows(grad_q + dense, place, heads * D, there, result * scale, D, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def key_kernel(
    grad,
    q,
    k,
    v,
    lse,
    delta,
    grad_k,
    grad_v,
    height,
    width,
    heads,
    pixel: tl.int64,
    head_step: tl.int64,
    factor,
    scale,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    BAND: tl.constexpr,
    VECTOR: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Make the gradients of one tile of keys and values, from the box of queries that see any of them.

    Args as those of the query kernel; here a tile is one of keys, and a block one of queries.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    TILE: tl.constexpr = TILE_Y * TILE_X
    head, batch, row, column = tile_of(height, width, heads, TILE_Y, TILE_X)
    tokens = tl.cast(height, tl.int64) * width
    start = batch * tokens * pixel + head * head_step
    dense = (batch * tokens * heads + head) * D
    line = tl.cast(batch, tl.int64) * heads + head
    y, x = block_of(0, 1, row, column, TILE_Y, TILE_X)
    there = (y < height) & (x < width)
    place = y * width + x
    keys = load_rows(k + start, place, pixel, there, D, BLOCK_D, True, KIND)
    values = load_rows(v + start, place, pixel, there, D, BLOCK_D, True, KIND)
    left, right = queries_of(column, column + TILE_X, width, WINDOW, BAND)
    if BAND:
        above = row
        below = row + 1
    else:
        above, below = queries_of(row, row + TILE_Y, height, WINDOW, BAND)
    columns = (right - left + BLOCK_X - 1) // BLOCK_X
    blocks = columns * ((below - above + BLOCK_Y - 1) // BLOCK_Y)
    key_result = tl.zeros([TILE, BLOCK_D], tl.float32)
    value_result = tl.zeros([TILE, BLOCK_D], tl.float32)
    for block in range(0, blocks):
        query_y, query_x = block_of(block, columns, above, left, BLOCK_Y, BLOCK_X)
        query_there = (query_y < height) & (query_x < width)
        query_place = query_y * width + query_x
        queries = load_rows(q + start, query_place, pixel, query_there, D, BLOCK_D, True, KIND)
        grads = load_rows(grad + dense, query_place, heads * D, query_there, D, BLOCK_D, True, KIND)
        log, share = load_sums(lse, line, query_place, query_there, tokens, WIDE)
        less = tl.load(delta + line * tokens + query_place, mask=query_there, other=0.0)
        score = inner(keys, queries, PRECISION, WIDE) * factor
        score = tl.where(sees(query_y, query_x, y, x, height, width, WINDOW, BAND, True), score, MASKED)
        p = probabilities(score, log[None, :], share[None, :], WIDE)
        value_result = tl.dot(p.to(KIND), grads, value_result, input_precision=PRECISION)
        grad_p = inner(values, grads, PRECISION, WIDE)
        grad_score = p * (grad_p - less[None, :])
        key_result = tl.dot(grad_score.to(KIND), queries, key_result, input_precision=PRECISION)
    store_rows(grad_k + dense, place, heads * D, there, key_result * scale, D, BLOCK_D)
    store_rows(grad_v + dense, place, heads * D, there, value_result, D, BLOCK_D)
