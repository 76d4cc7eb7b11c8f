"""Which device a verb runs on, and files that are not overwritten."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from .checks import refuse


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes a CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        refuse("device", "--device", "auto, cpu, cuda, cuda:1 or mps", f"{name} ({reason})", "choose another")
    return device


def check_free(files: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse to write where files are; make the folders they go to.

    Raises:
        ValueError: A file is there and `overwrite` is off, or a folder cannot be made.
    """
    for file in files:
        if file.exists() and not overwrite:
            raise ValueError(f"{file} is there already; choose another place, or add --overwrite")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{file.parent} cannot be made: {error}; choose another place") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error)
