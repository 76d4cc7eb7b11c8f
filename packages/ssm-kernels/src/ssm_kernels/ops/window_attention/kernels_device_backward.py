"""The device code of window attention's backward pass; kernels.py launches it.

Nothing but the log-sum-exp comes from the forward pass; probabilities are made again, once per kernel: for the
gradient of the queries (a program streams the keys), of keys and values (a program streams the queries), and of the
bias (a program keeps one block of queries and keys of a head, and streams the windows). Parts that programs share are
written and then added in a fixed order: results repeat exactly.
"""
# This is Triton's language: constexpr parameters take plain values, a branch on a constexpr is decided when compiling.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# ruff: noqa: SIM108

import triton
import triton.language as tl

from .kernels_device import (
    NOBODY,
    SIZES,
    key_term,
    load_rows,
    locate,
    pixels,
    query_term,
    region,
    scores,
    store_rows,
)


@triton.jit
def load_sums(lse, delta, row, index, COUNT: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Load what the softmax of a query needs: the two numbers of the forward pass, and delta.

    Args:
        lse: What the forward pass saved.
        delta: What the softmax subtracts from the gradient of every row, or None.
        row: Number of window and head.
        index: Of the queries; those that do not exist get probabilities of zero.
        COUNT: How many there are.
        BLOCK: Length of index.
        WIDE: There are two numbers.
    """
    mask = index < COUNT
    if WIDE:
        log = tl.load(lse + row * (2 * COUNT) + index, mask=mask, other=NOBODY)
        share = tl.load(lse + row * (2 * COUNT) + COUNT + index, mask=mask, other=0.0)
    else:
        log = tl.load(lse + row * COUNT + index, mask=mask, other=NOBODY)
        share = log
    if delta is not None:
        less = tl.load(delta + row * COUNT + index, mask=mask, other=0.0)
    else:
        less = log
    return log, share, less


@triton.jit
def probabilities(score, log, share, WIDE: tl.constexpr):
    """Divide the exponentials of scores by their sum."""
    p = tl.exp2(score - log)
    if WIDE:
        p = p * share
    return p


@triton.jit(do_not_specialize=SIZES)
def query_kernel(
    grad,
    q,
    k,
    v,
    bias,
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
    KEY_WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Make the gradient of one block of queries, and what the softmax subtracts from the gradient of every row.

    Args as those of the forward kernel, grad, out and grad_q (B, H, W, heads, d) contiguous; delta (windows, heads, Q)
    is written.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    BLOCKS: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    FRAME: tl.constexpr = KEY_WINDOW != WINDOW
    LEFTOVER: tl.constexpr = KEYS % BLOCK_K != 0
    PARTIAL: tl.constexpr = QUERIES % BLOCK_Q != 0
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    window = program // (heads * BLOCKS)
    i = ((program // heads) % BLOCKS) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    batch, row, column, last_row, last_column = locate(window, height, width, WINDOW)
    picture = batch.to(tl.int64) * height * width
    start = picture * pixel + head * head_step
    dense = (picture * heads + head) * D
    dense_pixel = heads * D
    if bias is not None:
        bias += head * LENGTH
    place, there = pixels(i, row, column, height, width, WINDOW, WINDOW, SHIFT, BLOCK_Q)
    queries = load_rows(q + start, place, pixel, there, D, BLOCK_D, PARTIAL, KIND)
    grads = load_rows(grad + dense, place, dense_pixel, there, D, BLOCK_D, PARTIAL, KIND)
    outs = load_rows(out + dense, place, dense_pixel, there, D, BLOCK_D, PARTIAL, tl.float32)
    line = window.to(tl.int64) * heads + head
    log, share, _ = load_sums(lse, None, line, i, QUERIES, BLOCK_Q, WIDE)
    less = tl.sum(outs * grads.to(tl.float32), 1)
    tl.store(delta + line * QUERIES + i, less, mask=i < QUERIES)
    own_term = query_term(i, WINDOW, KEY_WINDOW)
    own_region = region(i, last_row, last_column, WINDOW, SHIFT)
    result = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for first in range(0, KEYS, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        key_place, key_there = pixels(j, row, column, height, width, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K)
        keys = load_rows(k + start, key_place, pixel, key_there, D, BLOCK_D, FRAME or LEFTOVER, KIND)
        values = load_rows(v + start, key_place, pixel, key_there, D, BLOCK_D, FRAME or LEFTOVER, KIND)
        score = scores(
            tl.dot(queries, tl.trans(keys), input_precision=PRECISION), factor, bias,
            own_term, key_term(j, WINDOW, KEY_WINDOW, BLOCK_K),
            own_region, region(j, last_row, last_column, WINDOW, SHIFT), j < KEYS, LEFTOVER, SHIFT,
        )  # fmt: skip
        p = probabilities(score, log[:, None], share[:, None], WIDE)
        grad_p = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        grad_score = p * (grad_p - less[:, None])
        result = tl.dot(grad_score.to(KIND), keys, result, input_precision=PRECISION)
    store_rows(grad_q + dense, place, dense_pixel, there, result * scale, D, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def key_kernel(
    grad,
    q,
    k,
    v,
    bias,
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
    KEY_WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Make the gradients of one block of keys and values.

    Args as those of the forward kernel; grad (B, H, W, heads, d) contiguous. grad_k and grad_v are that too where key
    windows do not overlap, and otherwise what one window adds to each of its keys, (windows, K * K, heads, d).
    """
    pixel *= VECTOR
    head_step *= VECTOR
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    BLOCKS: tl.constexpr = (KEYS + BLOCK_K - 1) // BLOCK_K
    FRAME: tl.constexpr = KEY_WINDOW != WINDOW
    LEFTOVER: tl.constexpr = KEYS % BLOCK_K != 0
    PARTIAL: tl.constexpr = QUERIES % BLOCK_Q != 0
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    window = program // (heads * BLOCKS)
    j = ((program // heads) % BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
    batch, row, column, last_row, last_column = locate(window, height, width, WINDOW)
    picture = batch.to(tl.int64) * height * width
    start = picture * pixel + head * head_step
    dense = (picture * heads + head) * D
    dense_pixel = heads * D
    if bias is not None:
        bias += head * LENGTH
    place, there = pixels(j, row, column, height, width, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K)
    keys = load_rows(k + start, place, pixel, there, D, BLOCK_D, FRAME or LEFTOVER, KIND)
    values = load_rows(v + start, place, pixel, there, D, BLOCK_D, FRAME or LEFTOVER, KIND)
    own_term = key_term(j, WINDOW, KEY_WINDOW, BLOCK_K)
    own_region = region(j, last_row, last_column, WINDOW, SHIFT)
    line = window.to(tl.int64) * heads + head
    key_result = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    value_result = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for first in range(0, QUERIES, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q)
        query_place, query_there = pixels(i, row, column, height, width, WINDOW, WINDOW, SHIFT, BLOCK_Q)
        queries = load_rows(q + start, query_place, pixel, query_there, D, BLOCK_D, PARTIAL, KIND)
        grads = load_rows(grad + dense, query_place, dense_pixel, query_there, D, BLOCK_D, PARTIAL, KIND)
        log, share, less = load_sums(lse, delta, line, i, QUERIES, BLOCK_Q, WIDE)
        # a key that does not exist may have any score: its row is not stored
        score = scores(
            tl.dot(keys, tl.trans(queries), input_precision=PRECISION), factor, bias,
            own_term, query_term(i, WINDOW, KEY_WINDOW),
            own_region, region(i, last_row, last_column, WINDOW, SHIFT), query_there, False, SHIFT,
        )  # fmt: skip
        p = probabilities(score, log[None, :], share[None, :], WIDE)
        value_result = tl.dot(p.to(KIND), grads, value_result, input_precision=PRECISION)
        grad_p = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
        grad_score = p * (grad_p - less[None, :])
        key_result = tl.dot(grad_score.to(KIND), queries, key_result, input_precision=PRECISION)
    if FRAME:
        place = j
        there = j < KEYS
        dense = (window.to(tl.int64) * KEYS * heads + head) * D
    store_rows(grad_k + dense, place, dense_pixel, there, key_result * scale, D, BLOCK_D)
    store_rows(grad_v + dense, place, dense_pixel, there, value_result, D, BLOCK_D)


@triton.jit(do_not_specialize=[*SIZES, "windows", "run"])
def bias_kernel(
    grad,
    q,
    k,
    v,
    bias,
    lse,
    delta,
    parts,
    height,
    width,
    heads,
    pixel: tl.int64,
    head_step: tl.int64,
    factor,
    windows,
    run,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add the gradient of one block of pairs of query and key up over `run` windows.

    Args as those of the forward kernel; parts (runs, heads, Q, K * K) float32 is written.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    QUERY_BLOCKS: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    BLOCKS: tl.constexpr = QUERY_BLOCKS * ((KEYS + BLOCK_K - 1) // BLOCK_K)
    FRAME: tl.constexpr = KEY_WINDOW != WINDOW
    LEFTOVER: tl.constexpr = KEYS % BLOCK_K != 0
    PARTIAL: tl.constexpr = QUERIES % BLOCK_Q != 0
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    block = (program // heads) % BLOCKS
    part = program // (heads * BLOCKS)
    i = (block % QUERY_BLOCKS) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    j = (block // QUERY_BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
    dense_pixel = heads * D
    own = tl.load(
        bias + head * LENGTH
        + (query_term(i, WINDOW, KEY_WINDOW)[:, None] + key_term(j, WINDOW, KEY_WINDOW, BLOCK_K)[None, :])
    )  # fmt: skip
    result = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for window in range(part * run, tl.minimum(part * run + run, windows)):
        batch, row, column, last_row, last_column = locate(window, height, width, WINDOW)
        picture = tl.cast(batch, tl.int64) * height * width
        start = picture * pixel + head * head_step
        dense = (picture * heads + head) * D
        line = tl.cast(window, tl.int64) * heads + head
        place, there = pixels(i, row, column, height, width, WINDOW, WINDOW, SHIFT, BLOCK_Q)
        queries = load_rows(q + start, place, pixel, there, D, BLOCK_D, PARTIAL, KIND)
        grads = load_rows(grad + dense, place, dense_pixel, there, D, BLOCK_D, PARTIAL, KIND)
        log, share, less = load_sums(lse, delta, line, i, QUERIES, BLOCK_Q, WIDE)
        key_place, key_there = pixels(j, row, column, height, width, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K)
        keys = load_rows(k + start, key_place, pixel, key_there, D, BLOCK_D, FRAME or LEFTOVER, KIND)
        values = load_rows(v + start, key_place, pixel, key_there, D, BLOCK_D, FRAME or LEFTOVER, KIND)
        score = scores(
            tl.dot(queries, tl.trans(keys), input_precision=PRECISION), factor, None, i, j,
            region(i, last_row, last_column, WINDOW, SHIFT), region(j, last_row, last_column, WINDOW, SHIFT),
            j < KEYS, False, SHIFT,
        )  # fmt: skip
        p = probabilities(score + own, log[:, None], share[:, None], WIDE)
        grad_p = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        result += p * (grad_p - less[:, None])
    pairs = i[:, None] * KEYS + j[None, :]
    parts += (tl.cast(part, tl.int64) * heads + head) * (QUERIES * KEYS)
    tl.store(parts + pairs, result, mask=(i < QUERIES)[:, None] & (j < KEYS)[None, :])


@triton.jit(do_not_specialize=["runs", "heads"])
def pairs_kernel(
    parts,
    grad_table,
    runs,
    heads,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Add up the pairs of query and key that share a row of the table.

    Args:
        parts: (runs, heads, Q, K * K) float32.
        grad_table: ((w + K - 1)^2, heads), written.
        runs: How many parts there are.
        heads: Number of heads.
        WINDOW: w.
        KEY_WINDOW: K.
        BLOCK: Rows of the table of a program.
        BLOCK_Q: Queries at a time: each has at most one key in a row.
    """
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    ROWS: tl.constexpr = SIDE * SIDE
    BLOCKS: tl.constexpr = (ROWS + BLOCK - 1) // BLOCK
    head = tl.program_id(0) // BLOCKS
    place = (tl.program_id(0) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)  # in the order key minus query
    result = tl.zeros([BLOCK], tl.float32)
    for first in range(0, QUERIES, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q)
        y = (place // SIDE)[:, None] + (i // WINDOW)[None, :] - (WINDOW - 1)
        x = (place % SIDE)[:, None] + (i % WINDOW)[None, :] - (WINDOW - 1)
        mask = (y >= 0) & (y < KEY_WINDOW) & (x >= 0) & (x < KEY_WINDOW)
        mask = mask & (i < QUERIES)[None, :] & (place < ROWS)[:, None]
        pair = i[None, :] * KEYS + y * KEY_WINDOW + x
        total = tl.zeros([BLOCK, BLOCK_Q], tl.float32)
        for part in range(0, runs):
            base = parts + (tl.cast(part, tl.int64) * heads + head) * (QUERIES * KEYS)
            total += tl.load(base + pair, mask=mask, other=0.0)
        result += tl.sum(total, 1)
    if KEY_WINDOW == WINDOW:
        place = ROWS - 1 - place
    tl.store(
        grad_table + place * heads + head, result.to(grad_table.dtype.element_ty), mask=(place >= 0) & (place < ROWS)
    )


@triton.jit(do_not_specialize=["height", "width", "channels"])
def merge_kernel(
    key_parts,
    value_parts,
    grad_k,
    grad_v,
    height,
    width,
    channels,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up what the windows that see a pixel made of its key and value.

    Args:
        key_parts: (windows, K * K, channels), as
        value_parts: those of values.
        grad_k: (B, H, W, channels), written, and
        grad_v: the same.
        height: H.
        width: W.
        channels: heads * d.
        WINDOW: w.
        KEY_WINDOW: K.
        BLOCK: Numbers of a row of pixels of a program.
    """
    BORDER: tl.constexpr = (KEY_WINDOW - WINDOW) // 2
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    REACH: tl.constexpr = (KEY_WINDOW + WINDOW - 1) // WINDOW  # windows that see one row of pixels, at most
    blocks = (width * channels + BLOCK - 1) // BLOCK
    line = tl.program_id(0) // blocks
    number = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    y = line % height + tl.zeros_like(number)  # a vector, as the interpreter joins masks of vectors alone
    x = number // channels
    channel = number % channels
    rows = height // WINDOW
    columns = width // WINDOW
    last_row = (y + BORDER) // WINDOW
    last_column = (x + BORDER) // WINDOW
    key_sum = tl.zeros([BLOCK], tl.float32)
    value_sum = tl.zeros([BLOCK], tl.float32)
    for up in tl.static_range(REACH):
        row = last_row - up
        inner_y = y + BORDER - row * WINDOW
        for left in tl.static_range(REACH):
            column = last_column - left
            inner_x = x + BORDER - column * WINDOW
            mask = (row >= 0) & (row < rows) & (inner_y < KEY_WINDOW) & (x < width)
            mask = mask & (column >= 0) & (column < columns) & (inner_x < KEY_WINDOW)
            window = (tl.cast(line // height, tl.int64) * rows + row) * columns + column
            place = (window * KEYS + inner_y * KEY_WINDOW + inner_x) * channels + channel
            key_sum += tl.load(key_parts + place, mask=mask, other=0.0).to(tl.float32)
            value_sum += tl.load(value_parts + place, mask=mask, other=0.0).to(tl.float32)
    place = tl.cast(line, tl.int64) * width * channels + number
    tl.store(grad_k + place, key_sum.to(grad_k.dtype.element_ty), mask=x < width)
    tl.store(grad_v + place, value_sum.to(grad_v.dtype.element_ty), mask=x < width)
