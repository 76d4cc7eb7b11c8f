"""Which implementation runs where: one answer for the operators, their error messages and their tests."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

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


def mamba_ssm_function(op: str, module: str, name: str) -> Callable[..., Any]:
    """Return a function of the `mamba_ssm` package for impl="mamba_ssm".

    Args:
        op: Our operator, for the messages.
        module: Where the function is, such as "mamba_ssm.ops.selective_scan_interface".
        name: Its name there.

    Raises:
        ValueError: The package is not installed, or `ssm_kernels.compat` stands in for it.
    """
    try:
        function = getattr(import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"{op}: impl='mamba_ssm' cannot run here: {error}; install the extra ssm-kernels[mamba-ssm] "
            "(pip install 'ssm-kernels[mamba-ssm]' on a machine with an NVIDIA GPU), or use impl='auto'"
        ) from error
    if function.__module__.startswith("ssm_kernels."):
        raise ValueError(
            f"{op}: impl='mamba_ssm' cannot run here: ssm_kernels.compat is in that package's place, so this "
            "would compare the operator with itself; call ssm_kernels.compat.uninstall() before"
        )
    return function
