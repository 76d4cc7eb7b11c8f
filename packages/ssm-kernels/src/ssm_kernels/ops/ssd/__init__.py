"""The Mamba-2 scan (state-space duality)."""

from .api import ssd
from .bidirectional import ssd_bidirectional

__all__ = ["ssd", "ssd_bidirectional"]
