"""The device code of window attention that the passes share, and the forward pass; kernels.py launches it.

Letters: w side of a window, K side of the square of keys, Q = w * w queries, d head dim. A program takes a block of
queries of one window and one head, and streams the keys past it. Which pixel a query or key is follows from its
number: partition, cyclic shift and frame are arithmetic, and no window is ever copied. Scores are in units of log 2.

The position bias is read from a small table per head, at the sum of a term of the query and a term of the key. Keys
beyond the last one, of a block that is not full, have a term that leads behind the table, to entries that mask.
"""
# This is Triton's language: constexpr parameters take plain values, a branch on a constexpr is decided when compiling,
# and tuples are joined by +.
# pyright: reportArgumentType=false, reportCallIssue=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# ruff: noqa: PLR0915, RUF005, SIM108

import triton
import triton.language as tl

MASKED = tl.constexpr(-1e30)  # a score that leaves nothing; finite, so that a block of nothing else makes no NaN
NOBODY = tl.constexpr(1e30)  # log-sum-exp of a query that does not exist: its probabilities are zero
LOG2_E = tl.constexpr(1.4426950408889634)
SIZES = ["height", "width", "heads", "pixel", "head_step", "windows"]


@triton.jit(do_not_specialize=["heads", "s_row", "s_head"])
def table_kernel(
    table, bias, heads, s_row, s_head, WINDOW: tl.constexpr, KEY_WINDOW: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the table per head, in the order key minus query, in units of log 2, and with masking entries behind it."""
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    ROWS: tl.constexpr = SIDE * SIDE
    LENGTH: tl.constexpr = ROWS + (WINDOW - 1) * (SIDE + 1) + 1
    BLOCKS: tl.constexpr = (LENGTH + BLOCK - 1) // BLOCK
    head = tl.program_id(0) // BLOCKS
    place = (tl.program_id(0) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    if KEY_WINDOW == WINDOW:
        row = ROWS - 1 - place
    else:
        row = place
    value = tl.load(table + row * s_row + head * s_head, mask=place < ROWS, other=0.0).to(tl.float32)
    value = tl.where(place < ROWS, value * LOG2_E, MASKED)
    tl.store(bias + head * LENGTH + place, value, mask=place < LENGTH)


@triton.jit
def locate(window, height, width, WINDOW: tl.constexpr):
    """Give batch row, first row and first column of a window, and whether it is in the last row and column."""
    columns = width // WINDOW
    rows = height // WINDOW
    column = window % columns
    row = (window // columns) % rows
    return window // (columns * rows), row * WINDOW, column * WINDOW, row == rows - 1, column == columns - 1


@triton.jit
def pixels(
    index, row, column, height, width,
    SIDE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Give the pixel of every place in a window or its square of keys, and which places there are in the picture."""
    BORDER: tl.constexpr = (SIDE - WINDOW) // 2
    y = row + index // SIDE + (SHIFT - BORDER)
    x = column + index % SIDE + (SHIFT - BORDER)
    there = index >= 0
    if (SIDE * SIDE) % BLOCK != 0:
        there = index < SIDE * SIDE
    if SHIFT > 0:
        y = tl.where(y >= height, y - height, y)
        x = tl.where(x >= width, x - width, x)
    if BORDER > 0:
        there = there & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y * width + x, there


@triton.jit
def query_term(index, WINDOW: tl.constexpr, KEY_WINDOW: tl.constexpr):
    """Give the part of a query in the place of the bias in its table."""
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    index = tl.minimum(index, WINDOW * WINDOW - 1)
    return (WINDOW - 1) * (SIDE + 1) - index - (index // WINDOW) * (KEY_WINDOW - 1)


@triton.jit
def key_term(index, WINDOW: tl.constexpr, KEY_WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Give the part of a key; that of no key leads behind the table."""
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    term = index + (index // KEY_WINDOW) * (WINDOW - 1)
    if (KEY_WINDOW * KEY_WINDOW) % BLOCK != 0:
        term = tl.where(index < KEY_WINDOW * KEY_WINDOW, term, SIDE * SIDE)
    return term


@triton.jit
def region(index, window, height, width, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Number the parts of a shifted window whose pixels are neighbours in the picture too."""
    _, _, _, last_row, last_column = locate(window, height, width, WINDOW)
    below = (index // WINDOW >= WINDOW - SHIFT) & last_row
    right = (index % WINDOW >= WINDOW - SHIFT) & last_column
    return below.to(tl.int32) * 2 + right.to(tl.int32)


@triton.jit
def load_rows(base, pixel, step, there, D: tl.constexpr, BLOCK_D: tl.constexpr, MASK: tl.constexpr, KIND: tl.constexpr):
    """Load one vector of D numbers per pixel, zero where there is none, in the dtype of the products."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + pixel.to(tl.int64)[:, None] * step + d[None, :]
    if MASK:
        return tl.load(pointers, mask=there[:, None] & (d < D)[None, :], other=0.0).to(KIND)
    if D != BLOCK_D:
        return tl.load(pointers, mask=(d < D)[None, :], other=0.0).to(KIND)
    return tl.load(pointers).to(KIND)


@triton.jit
def store_rows(base, pixel, step, there, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store what `load_rows` loads."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + pixel.to(tl.int64)[:, None] * step + d[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])


@triton.jit
def load_tokens(
    base, head_start, pixel, window, index, height, width,
    D: tl.constexpr, SIDE: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Load the vectors of some places in one window, or in its square of keys: zeros outside the picture.

    Args:
        base: First number of the tensor.
        head_start: What leads from there to the head.
        pixel: Stride.
        window: Number of the window.
        index: Numbers of the places.
        height: H.
        width: W.
        D: d.
        SIDE: w for queries, K for keys.
        WINDOW: w.
        SHIFT: Pixels by which the windows are moved.
        BLOCK: Length of index.
        BLOCK_D: A power of two >= d.
        KIND: Dtype of the result.
    """
    batch, row, column, _, _ = locate(window, height, width, WINDOW)
    place, there = pixels(index, row, column, height, width, SIDE, WINDOW, SHIFT, BLOCK)
    start = batch.to(tl.int64) * height * width * pixel + head_start
    return load_rows(base + start, place, pixel, there, D, BLOCK_D, SIDE != WINDOW or SIDE * SIDE % BLOCK != 0, KIND)


@triton.jit
def store_tokens(
    base, head_start, pixel, window, index, inside, value, height, width,
    D: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store the vectors of some places in one window, where `inside` says so."""
    batch, row, column, _, _ = locate(window, height, width, WINDOW)
    place, there = pixels(index, row, column, height, width, WINDOW, WINDOW, SHIFT, BLOCK)
    start = batch.to(tl.int64) * height * width * pixel + head_start
    store_rows(base + start, place, pixel, there & inside, value, D, BLOCK_D)


@triton.jit
def halves(x):
    """Cut the rows of (n, d) into two."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def inner(a, b, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """Multiply the rows of (n, d) and (m, d) with one another, (n, m).

    Long rows of float32 are summed in two halves: what a sum loses grows with its length.
    """
    if WIDE and a.shape[1] > 64:
        a_left, a_right = halves(a)
        b_left, b_right = halves(b)
        product = tl.dot(a_left, tl.trans(b_left), input_precision=PRECISION)
        product += tl.dot(a_right, tl.trans(b_right), input_precision=PRECISION)
    else:
        product = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return product


@triton.jit
def load_bias(bias, row_term, column_term):
    """Load the bias of pairs of query and key, (rows, columns), of this head's table, or None.

    The hint makes lanes run along the columns, as the rows of shared memory do: the other way round, which the
    compiler takes where the columns are not contiguous, they meet in its banks. Nothing is moved in larger units for
    it, since no address is known to be aligned to more than one number.
    """
    if bias is not None:
        place = row_term[:, None] + column_term[None, :]
        value = tl.load(bias + tl.max_contiguous(place, [1, column_term.shape[0]]))
    else:
        value = None
    return value


@triton.jit
def scores(
    products, factor, bias, row_region, column_region, column_there,
    MASK: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Scale the products of queries and keys, add the bias and mask. Rows are queries or keys, columns the others.

    Args:
        products: (rows, columns) float32.
        factor: Of the products.
        bias: (rows, columns), or None.
        row_region: Number of the region, where windows are shifted.
        column_region: The same.
        column_there: Which columns exist; looked at without a bias only, and
        MASK: only if some may not.
        SHIFT: Windows are shifted.
    """
    score = products * factor
    if bias is not None:
        score += bias
    elif MASK:
        score = tl.where(column_there[None, :], score, MASKED)
    if SHIFT > 0:
        score = tl.where(row_region[:, None] == column_region[None, :], score, MASKED)
    return score


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q,
    k,
    v,
    bias,
    out,
    lse,
    height,
    width,
    heads,
    pixel: tl.int64,
    head_step: tl.int64,
    windows,
    factor,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    KEY_WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUP: tl.constexpr,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attend from one block of queries in a group of windows, which share the bias.

    Args:
        q: (B, H, W, heads, d), as k and v with the same strides, which are
        k: given for pixels and heads
        v: in units of VECTOR: that it divides them is what the compiler must know to move several numbers at once.
        bias: What `table_kernel` made, or None.
        out: (B, H, W, heads, d), contiguous.
        lse: Written: logarithm to base 2 of the sum of exponentials, (windows, heads, 1, Q) float32; where WIDE
            the largest score, and one over the sum of exponentials relative to it, (windows, heads, 2, Q).
        height: H.
        width: W.
        heads: Number of heads.
        pixel: Stride.
        head_step: Stride.
        windows: How many there are.
        factor: Of the products, in units of log 2.
        D: d.
        WINDOW: w.
        KEY_WINDOW: K.
        SHIFT: Pixels by which the windows are moved.
        VECTOR: Divides d and the strides.
        GROUP: Windows of a program.
        FIRST: First query, or key, that the launch is about.
        COUNT: How many of them it is about.
        BLOCK_Q: Queries of each of them.
        BLOCK_K: Keys at a time.
        BLOCK_D: A power of two >= d, at least 16.
        KIND: Dtype of what is multiplied.
        PRECISION: Of float32 products.
        WIDE: Inputs are float32, for which a logarithm is not exact enough.
    """
    pixel *= VECTOR
    head_step *= VECTOR
    QUERIES: tl.constexpr = WINDOW * WINDOW
    KEYS: tl.constexpr = KEY_WINDOW * KEY_WINDOW
    BLOCKS: tl.constexpr = (COUNT + BLOCK_Q - 1) // BLOCK_Q
    LEFTOVER: tl.constexpr = KEYS % BLOCK_K != 0
    SIDE: tl.constexpr = WINDOW + KEY_WINDOW - 1
    LENGTH: tl.constexpr = SIDE * SIDE + (WINDOW - 1) * (SIDE + 1) + 1
    program = tl.program_id(0)
    head = program % heads
    first_window = program // (heads * BLOCKS) * GROUP
    i = FIRST + ((program // heads) % BLOCKS) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if bias is not None:
        bias += head * LENGTH
    own_term = query_term(i, WINDOW, KEY_WINDOW)
    head_start = head * head_step
    queries = ()
    top = ()
    total = ()
    result = ()
    for n in tl.static_range(GROUP):
        queries = queries + (
            load_tokens(
                q, head_start, pixel, tl.minimum(first_window + n, windows - 1), i, height, width,
                D, WINDOW, WINDOW, SHIFT, BLOCK_Q, BLOCK_D, KIND,
            ),
        )  # fmt: skip
        top = top + (tl.full([BLOCK_Q], MASKED, tl.float32),)
        total = total + (tl.zeros([BLOCK_Q], tl.float32),)
        result = result + (tl.zeros([BLOCK_Q, BLOCK_D], tl.float32),)
    for first in range(0, KEYS, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        block_bias = load_bias(bias, own_term, key_term(j, WINDOW, KEY_WINDOW, BLOCK_K))
        next_top = ()
        next_total = ()
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
            higher = tl.maximum(top[n], tl.max(score, 1))
            p = tl.exp2(score - higher[:, None])
            fade = tl.exp2(top[n] - higher)
            next_top = next_top + (higher,)
            next_total = next_total + (total[n] * fade + tl.sum(p, 1),)
            faded = result[n] * fade[:, None]
            next_result = next_result + (tl.dot(p.to(KIND), values, faded, input_precision=PRECISION),)
        top = next_top
        total = next_total
        result = next_result
    for n in tl.static_range(GROUP):
        last = tl.minimum(first_window + n, windows - 1)
        inside = i < tl.where(first_window + n < windows, QUERIES, 0)
        store_tokens(
            out, head * D, heads * D, last, i, inside, result[n] / total[n][:, None], height, width,
            D, WINDOW, SHIFT, BLOCK_Q, BLOCK_D,
        )  # fmt: skip
        line = last.to(tl.int64) * heads + head
        if WIDE:
            tl.store(lse + line * (2 * QUERIES) + i, top[n], mask=inside)
            tl.store(lse + line * (2 * QUERIES) + QUERIES + i, 1.0 / total[n], mask=inside)
        else:
            tl.store(lse + line * QUERIES + i, top[n] + tl.log2(total[n]), mask=inside)
