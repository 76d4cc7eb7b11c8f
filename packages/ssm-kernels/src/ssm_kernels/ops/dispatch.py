"""Which implementation runs where: one answer for the operators, their error messages and their tests."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "torch", "reference"]
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not_triton(x: Tensor) -> str | None:
    """Say in a few words why Triton cannot run on `x`; None if it can.

    A CPU tensor is fine when Triton interprets (`TRITON_INTERPRET=1` before triton is first imported), which is how
    the kernels are tested without a GPU.
    """
    if x.dtype not in TRITON_DTYPES:
        return f"{str(x.dtype).removeprefix('torch.')} is for the reference and PyTorch implementations"
    if x.device.type not in ("cuda", "cpu"):
        return f"there is no Triton backend for device '{x.device.type}'"
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if x.device.type == "cpu" and not triton.knobs.runtime.interpret:
        return "the tensors are on the CPU"
    return None


def check_impl(
    op: str, impl: str, x: Tensor, known: tuple[str, ...] = ("auto", "triton", "torch", "reference")
) -> None:
    """Refuse an unknown `impl`, and an explicit "triton" that cannot run; an explicit choice never falls back.

    Raises:
        ValueError: With the operator's name, what was asked for and what would work.
    """
    if impl not in known:
        raise ValueError(f"{op}: impl must be one of {', '.join(known)}, got {impl!r}; impl='auto' picks one")
    if impl == "triton" and (reason := why_not_triton(x)):
        raise ValueError(f"{op}: impl='triton' cannot run here: {reason}; impl='auto' would use PyTorch")


def use_triton(impl: str, x: Tensor) -> bool:
    """Decide inside an operator: "auto" means Triton on a GPU and PyTorch elsewhere (also when interpreting)."""
    return impl == "triton" or (impl == "auto" and x.device.type == "cuda" and why_not_triton(x) is None)
