"""The Mamba-2 scan (state-space duality)."""

from .api import ssd

__all__ = ["ssd"]
