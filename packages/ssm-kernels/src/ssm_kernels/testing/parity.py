"""Accuracy of a kernel, measured against float64 and judged by what eager PyTorch reaches in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def error_ratio(x: Tensor, truth: Tensor) -> float:
    """Return RMS(x - truth) / RMS(truth): dimensionless, independent of shape and scale. 0 for two empty tensors."""
    if x.numel() == 0:
        return 0.0
    truth = truth.double()
    return ((x.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-300)).item()


def assert_as_accurate(name: str, kernel: Tensor, eager: Tensor, truth: Tensor, slack: float = 1.5) -> None:
    """Fail unless the kernel is at most `slack` times as far from the truth as eager PyTorch, plus one rounding.

    Args:
        name: What is compared; it heads the message.
        kernel: Result under test.
        eager: The same computation by plain PyTorch in the same dtype, same shape and dtype as `kernel`.
        truth: The same computation in float64 on the same (already rounded) inputs.
        slack: Allowed ratio of the two errors.

    Raises:
        AssertionError: The dtype or shape differs, a value is not finite, or the error is too large.
    """
    assert kernel.dtype == eager.dtype, f"{name}: dtype {kernel.dtype}, eager {eager.dtype}"
    assert kernel.shape == eager.shape, f"{name}: shape {tuple(kernel.shape)}, eager {tuple(eager.shape)}"
    assert torch.isfinite(kernel).all(), f"{name}: the kernel returned NaN or inf"
    ours, theirs = error_ratio(kernel, truth), error_ratio(eager, truth)
    rounding = torch.finfo(kernel.dtype).eps
    assert ours <= slack * theirs + rounding, f"{name}: error ratio {ours:.2e}, eager {theirs:.2e}"
