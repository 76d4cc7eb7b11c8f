"""Sums of partial results in a fixed order, on the device; kernels_single.py launches them."""

# This is Triton's language; the file is left out of pyright (pyproject.toml).

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["size"])
def sum_kernel(parts, out, size, KINDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Add KINDS partial results of `size` numbers each."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    total = tl.load(parts + at, mask=here, other=0.0).to(tl.float32)
    for kind in tl.static_range(1, KINDS):
        total += tl.load(parts + kind * size.to(tl.int64) + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["size"])
def split_kernel(parts, grad_B, grad_C, size, BLOCKS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Add the partial sums of BLOCKS blocks of channels, (BLOCKS, size, 2), and part the two gradients."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    total_B = tl.zeros([BLOCK], tl.float32)
    total_C = tl.zeros([BLOCK], tl.float32)
    for block in range(0, BLOCKS):
        where = parts + 2 * (block * size.to(tl.int64) + at)
        total_B += tl.load(where, mask=here, other=0.0).to(tl.float32)
        total_C += tl.load(where + 1, mask=here, other=0.0).to(tl.float32)
    tl.store(grad_B + at, total_B.to(grad_B.dtype.element_ty), mask=here)
    tl.store(grad_C + at, total_C.to(grad_C.dtype.element_ty), mask=here)
