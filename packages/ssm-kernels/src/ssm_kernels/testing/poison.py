"""Fill fresh buffers with NaN, so that memory that a kernel forgot to write shows in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        out = make(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() and not out.is_meta else out

    return filled


@contextmanager
def poisoned_buffers() -> Iterator[None]:
    """Make torch.empty, torch.empty_like and Tensor.new_empty return NaN inside the block (floating dtypes)."""
    kept = torch.empty, torch.empty_like, torch.Tensor.new_empty
    torch.empty, torch.empty_like = _poisoned(kept[0]), _poisoned(kept[1])  # pyright: ignore[reportAttributeAccessIssue]
    torch.Tensor.new_empty = _poisoned(kept[2])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.empty, torch.empty_like, torch.Tensor.new_empty = kept  # pyright: ignore[reportAttributeAccessIssue]
