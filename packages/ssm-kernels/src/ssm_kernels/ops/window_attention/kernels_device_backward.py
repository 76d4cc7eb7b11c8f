"""The device code of window attention's backward pass; kernels.py launches it.

Nothing but the log-sum-exp comes from the forward pass; probabilities are made again, once per kernel: for the
gradient of the queries (a program streams the keys), of keys and values (a program streams the queries), and of the
bias (a program keeps one block of queries and keys of a head, and streams the windows). Parts that programs share are
written and then added in a fixed order: results repeat exactly.
"""
# This is Triton's language: constexpr parameters take plain values, a branch on a constexpr is decided when compiling,
# and tuples are joined by +.
# pyright: reportArgumentType=false, reportCallIssue=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# ruff: noqa: PLR0915, RUF005, SIM108

import triton
import triton.language as tl

from .kernels_device import (
    NOBODY,
    SIZES,
    inner,
    key_term,
    load_bias,
    load_tokens,
    query_term,
    region,
    scores,
    store_rows,
    store_tokens,
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
    windows,
    factor,
    scale,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Make the gradient of one block of queries in a group of windows, and what the softmax subtracts in every row.

    Args as those of the forward kernel, grad, out and grad_q (B, H, W, heads, d) contiguous; delta (windows, heads, Q)
    is written.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    BLOCKS: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    LEFTOVER: tl.constexpr = KEYS % BLOCK_K != 0
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    first_window = program // (heads * BLOCKS) * GROUP
    i = ((program // heads) % BLOCKS) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head_start = head * head_step
    dense_pixel = heads * D
    if bias is not None:
        bias += head * LENGTH
    own_term = query_term(i, WINDOW, KEY_WINDOW)
    queries = ()
    grads = ()
    log = ()
    share = ()
    less = ()
    result = ()
    for n in tl.static_range(GROUP):
        own = tl.minimum(first_window + n, windows - 1)
        line = own.to(tl.int64) * heads + head
        query = load_tokens(
            q, head_start, pixel, own, i, height, width, D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND
        )
        grad_out = load_tokens(
            grad, head * D, dense_pixel, own, i, height, width, D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND
        )
        value_out = load_tokens(
            out, head * D, dense_pixel, own, i, height, width, D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, tl.float32
        )
        own_log, own_share, _ = load_sums(lse, None, line, i, QUERIES, BLOCK_Q, WIDE)
        own_less = tl.sum(value_out * grad_out.to(tl.float32), 1)
        tl.store(delta + line * QUERIES + i, own_less, mask=i < tl.where(first_window + n < windows, QUERIES, 0))
        queries = queries + (query,)
        grads = grads + (grad_out,)
        log = log + (own_log,)
        share = share + (own_share,)
        less = less + (own_less,)
        result = result + (tl.zeros([BLOCK_Q, BLOCK_D], tl.float32),)
    for first in range(0, KEYS, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        block_bias = load_bias(bias, own_term, key_term(j, WINDOW, KEY_WINDOW, BLOCK_K))
        next_result = ()
        for n in tl.static_range(GROUP):
            window = tl.minimum(first_window + n, windows - 1)
            keys = load_tokens(
                k, head_start, pixel, window, j, height, width,
                D, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K, BLOCK_D, KIND,
            )  # fmt: skip
            values = load_tokens(
                v, head_start, pixel, window, j, height, width,
                D, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K, BLOCK_D, KIND,
            )  # fmt: skip
            score = scores(
                inner(queries[n], keys, PRECISION, WIDE), factor, block_bias,
                region(i, window, height, width, WINDOW, SHIFT), region(j, window, height, width, WINDOW, SHIFT),
                j < KEYS, LEFTOVER, SHIFT,
            )  # fmt: skip
            p = probabilities(score, log[n][:, None], share[n][:, None], WIDE)
            grad_p = inner(grads[n], values, PRECISION, WIDE)
            grad_score = p * (grad_p - less[n][:, None])
            next_result = next_result + (tl.dot(grad_score.to(KIND), keys, result[n], input_precision=PRECISION),)
        result = next_result
    for n in tl.static_range(GROUP):
        last = tl.minimum(first_window + n, windows - 1)
        inside = i < tl.where(first_window + n < windows, QUERIES, 0)
        store_tokens(
            grad_q, head * D, dense_pixel, last, i, inside, result[n] * scale, height, width,
            D, WINDOW, SHIFT, BLOCK_Q, BLOCK_D,
        )  # fmt: skip


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
    windows,
    factor,
    scale,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Make the gradients of one block of keys and values in a group of windows.

    Args as those of the forward kernel; grad (B, H, W, heads, d) contiguous. grad_k and grad_v are that too where key
    windows do not overlap, and otherwise what one window adds to each of its keys, (windows, K * K, heads, d).
    """
    pixel *= VECTOR
    head_step *= VECTOR
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    BLOCKS: tl.constexpr = (KEYS + BLOCK_K - 1) // BLOCK_K
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    first_window = program // (heads * BLOCKS) * GROUP
    j = ((program // heads) % BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
    head_start = head * head_step
    dense_pixel = heads * D
    if bias is not None:
        bias += head * LENGTH
    own_term = key_term(j, WINDOW, KEY_WINDOW, BLOCK_K)
    keys = ()
    values = ()
    key_result = ()
    value_result = ()
    for n in tl.static_range(GROUP):
        own = tl.minimum(first_window + n, windows - 1)
        key = load_tokens(
            k, head_start, pixel, own, j, height, width, D, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K, BLOCK_D, KIND
        )
        value = load_tokens(
            v, head_start, pixel, own, j, height, width, D, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K, BLOCK_D, KIND
        )
        keys = keys + (key,)
        values = values + (value,)
        key_result = key_result + (tl.zeros([BLOCK_K, BLOCK_D], tl.float32),)
        value_result = value_result + (tl.zeros([BLOCK_K, BLOCK_D], tl.float32),)
    for first in range(0, QUERIES, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q)
        block_bias = load_bias(bias, own_term, query_term(i, WINDOW, KEY_WINDOW))
        next_key = ()
        next_value = ()
        for n in tl.static_range(GROUP):
            window = tl.minimum(first_window + n, windows - 1)
            queries = load_tokens(
                q, head_start, pixel, window, i, height, width, D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND
            )
            grads = load_tokens(
                grad, head * D, dense_pixel, window, i, height, width,
                D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND,
            )  # fmt: skip
            line = window.to(tl.int64) * heads + head
            log, share, less = load_sums(lse, delta, line, i, QUERIES, BLOCK_Q, WIDE)
            # a key that does not exist may have any score: its row is not stored
            score = scores(
                inner(keys[n], queries, PRECISION, WIDE), factor, block_bias,
                region(j, window, height, width, WINDOW, SHIFT), region(i, window, height, width, WINDOW, SHIFT),
                i < QUERIES, False, SHIFT,
            )  # fmt: skip
            p = probabilities(score, log[None, :], share[None, :], WIDE)
            next_value = next_value + (tl.dot(p.to(KIND), grads, value_result[n], input_precision=PRECISION),)
            grad_p = inner(values[n], grads, PRECISION, WIDE)
            grad_score = p * (grad_p - less[None, :])
            next_key = next_key + (tl.dot(grad_score.to(KIND), queries, key_result[n], input_precision=PRECISION),)
        key_result = next_key
        value_result = next_value
    for n in tl.static_range(GROUP):
        last = tl.minimum(first_window + n, windows - 1)
        inside = j < tl.where(first_window + n < windows, KEYS, 0)
        if KEY_WINDOW != WINDOW:
            start = (last.to(tl.int64) * KEYS * heads + head) * D
            store_rows(grad_k + start, j, dense_pixel, inside, key_result[n] * scale, D, BLOCK_D)
            store_rows(grad_v + start, j, dense_pixel, inside, value_result[n], D, BLOCK_D)
        else:
            store_tokens(
                grad_k, head * D, dense_pixel, last, j, inside, key_result[n] * scale, height, width,
                D, WINDOW, SHIFT, BLOCK_K, BLOCK_D,
            )  # fmt: skip
            store_tokens(
                grad_v, head * D, dense_pixel, last, j, inside, value_result[n], height, width,
                D, WINDOW, SHIFT, BLOCK_K, BLOCK_D,
            )  # fmt: skip


@triton.jit(do_not_specialize=[*SIZES, "run"])
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
    windows,
    factor,
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
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    block = (program // heads) % BLOCKS
    part = program // (heads * BLOCKS)
    i = (block % QUERY_BLOCKS) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    j = (block // QUERY_BLOCKS) * BLOCK_K + tl.arange(0, BLOCK_K)
    head_start = head * head_step
    own = load_bias(bias + head * LENGTH, query_term(i, WINDOW, KEY_WINDOW), key_term(j, WINDOW, KEY_WINDOW, BLOCK_K))
    result = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for window in range(part * run, tl.minimum(part * run + run, windows)):
        queries = load_tokens(
            q, head_start, pixel, window, i, height, width, D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND
        )
        grads = load_tokens(
            grad, head * D, heads * D, window, i, height, width, D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND
        )
        keys = load_tokens(
            k, head_start, pixel, window, j, height, width, D, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K, BLOCK_D, KIND
        )
        values = load_tokens(
            v, head_start, pixel, window, j, height, width, D, KEY_WINDOW, WINDOW, SHIFT, BLOCK_K, BLOCK_D, KIND
        )
        line = tl.cast(window, tl.int64) * heads + head
        log, share, less = load_sums(lse, delta, line, i, QUERIES, BLOCK_Q, WIDE)
        score = scores(
            inner(queries, keys, PRECISION, WIDE), factor, own,
            region(i, window, height, width, WINDOW, SHIFT), region(j, window, height, width, WINDOW, SHIFT),
            j < KEYS, False, SHIFT,
        )  # fmt: skip
        p = probabilities(score, log[:, None], share[:, None], WIDE)
        grad_p = inner(grads, values, PRECISION, WIDE)
        result += p * (grad_p - less[:, None])
    pairs = i[:, None] * KEYS + j[None, :]
    parts += (tl.cast(part, tl.int64) * heads + head) * (QUERIES * KEYS)
    tl.store(parts + pairs, result, mask=(i < QUERIES)[:, None] & (j < KEYS)[None, :])


@triton.jit(do_not_specialize=["heads"])
def pairs_kernel(
    pairs,
    grad_table,
    heads,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the pairs of query and key that share a row of the table; a program makes one row of one head.

    Args:
        pairs: (heads, Q, K * K) float32.
        grad_table: ((w + K - 1)^2, heads), written.
        heads: Number of heads.
        WINDOW: w.
        KEY_WINDOW: K.
        BLOCK: A power of two >= Q.
    """
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    head = tl.program_id(0) % heads
    row = tl.program_id(0) // heads
    query = tl.arange(0, BLOCK)
    y = query // WINDOW + (row // SIDE - (WINDOW - 1))  # of the key
    x = query % WINDOW + (row % SIDE - (WINDOW - 1))
    there = (query < WINDOW * WINDOW) & (y >= 0) & (y < KEY_WINDOW) & (x >= 0) & (x < KEY_WINDOW)
    pairs += tl.cast(head, tl.int64) * (WINDOW * WINDOW * KEYS)
    total = tl.sum(tl.load(pairs + query * KEYS + y * KEY_WINDOW + x, mask=there, other=0.0), 0)
    if KEY_WINDOW == WINDOW:
        row = SIDE * SIDE - 1 - row
    tl.store(grad_table + row * heads + head, total.to(grad_table.dtype.element_ty))


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
