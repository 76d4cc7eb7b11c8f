"""Where a command runs."""

from __future__ import annotations

import torch

from .checks import refuse


def pick_device(name: str) -> torch.device:
    """Return a device by name: "auto" is a CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        detail = str(error).splitlines()[0][:100]
        refuse("--device", "device", "auto, cpu, or a GPU of this machine", f"{name} ({detail})", "try --device auto")
    return device
