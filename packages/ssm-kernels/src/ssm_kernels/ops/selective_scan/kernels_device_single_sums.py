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
