"""The Mamba-1 selective scan."""

from .api import selective_scan

__all__ = ["selective_scan"]
