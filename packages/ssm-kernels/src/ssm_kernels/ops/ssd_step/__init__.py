"""One step of the Mamba-2 scan with explicit state."""

from .api import ssd_step

__all__ = ["ssd_step"]
