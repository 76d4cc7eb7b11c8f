"""The time below which no implementation can be: bytes that must move once, or exponentials that must be made."""

from __future__ import annotations

# Both measured on one H100 80GB (torch 2.11, triton 3.6): a copy kernel over 4 GB, and a kernel of nothing but exp2
COPY_BYTES_PER_S = 3.0e12
EXP2_PER_S = 4.13e12


def floor_ms(moved_bytes: float, exponentials: float = 0.0) -> float:
    """Return the lower bound on an H100 in milliseconds.

    Args:
        moved_bytes: Inputs read once plus outputs written once.
        exponentials: Evaluations of exp; one special-function operation each.
    """
    return 1e3 * max(moved_bytes / COPY_BYTES_PER_S, exponentials / EXP2_PER_S)
