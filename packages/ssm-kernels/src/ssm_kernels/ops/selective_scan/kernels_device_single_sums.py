"""Sums of partial results in a fixed order, on the device; kernels_single.py launches them."""

# This is Triton's language; the file is left out of pyright (pyproject.toml).

import triton
import triton.language as tl

ITEMS = tl.constexpr(8)  # numbers that a thread moves at once, where their count is a multiple of it


@triton.jit
def add_kinds(parts, out, at, size, KINDS: tl.constexpr) -> None:
    """Add KINDS partial results of `size` numbers each, at `at`."""
    here = at < size
    total = tl.load(parts + at, mask=here, other=0.0).to(tl.float32)
    for kind in tl.static_range(1, KINDS):
        total += tl.load(parts + kind * size + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=here)


@triton.jit
def add_block(parts, out, program, size, KINDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Add one block of partial results; the compiler is shown a count that is a multiple of ITEMS where it is one."""
    size = size.to(tl.int64)
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if size % ITEMS == 0:
        add_kinds(parts, out, at, size // ITEMS * ITEMS, KINDS)
    else:
        add_kinds(parts, out, at, size, KINDS)


@triton.jit(do_not_specialize=["size"])
def sum_kernel(parts, out, size, KINDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Add KINDS partial results of `size` numbers each."""
    add_block(parts, out, tl.program_id(0), size, KINDS, BLOCK)


@triton.jit
def split_pairs(parts, grad_B, grad_C, program, size, BLOCKS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Add the partial sums of BLOCKS blocks of channels, (BLOCKS, size, 2), and part the two gradients."""
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    both = 2 * at[:, None] + tl.arange(0, 2)[None, :]
    total = tl.zeros([BLOCK, 2], tl.float32)
    for block in range(0, BLOCKS):
        where = parts + 2 * block * size.to(tl.int64) + both
        total += tl.load(where, mask=here[:, None], other=0.0).to(tl.float32)
    total_B, total_C = tl.split(total)
    tl.store(grad_B + at, total_B.to(grad_B.dtype.element_ty), mask=here)
    tl.store(grad_C + at, total_C.to(grad_C.dtype.element_ty), mask=here)


@triton.jit
def add_units(sums, out, program, channels, batches, kinds, spans, UNITS: tl.constexpr, WIDTH: tl.constexpr) -> None:
    """Add (3, batches, kinds, spans, channels) over batches and spans: WIDTH channels of one of 3 * kinds results."""
    blocks = tl.cdiv(channels, WIDTH)
    which = program // blocks
    kind = which % kinds
    d = (program % blocks) * WIDTH + tl.arange(0, WIDTH)
    count = batches * spans
    start = sums + (which // kinds).to(tl.int64) * batches * kinds * spans * channels
    total = tl.zeros([UNITS, WIDTH], tl.float32)
    for first in range(0, count, UNITS):
        unit = first + tl.arange(0, UNITS)
        at = ((unit // spans * kinds + kind) * spans + unit % spans).to(tl.int64)[:, None] * channels + d[None, :]
        total += tl.load(start + at, mask=(unit < count)[:, None] & (d < channels)[None, :], other=0.0)
    tl.store(out + which.to(tl.int64) * channels + d, tl.sum(total, 0), mask=d < channels)


@triton.jit(
    do_not_specialize=["size", "weights", "unit_programs", "split_programs", "channels", "batches", "kinds", "spans"]
)
def finish_kernel(
    sums, summed, part_BC, grad_B, grad_C, parts, out,
    size, weights, unit_programs, split_programs, channels, batches, kinds, spans,
    KINDS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Make gradients of partial sums: those of A, D and the bias, then of B and C, then of x where it has parts."""
    program = tl.program_id(0)
    if program < unit_programs:
        add_units(sums, summed, program, channels, batches, kinds, spans, UNITS, WIDTH)
    elif program < unit_programs + split_programs:
        split_pairs(part_BC, grad_B, grad_C, program - unit_programs, weights, BLOCKS, SPLIT)
    elif parts is not None:
        add_block(parts, out, program - unit_programs - split_programs, size, KINDS, BLOCK)
