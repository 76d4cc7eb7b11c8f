"""Linear time-invariant state-space models with diagonal state matrices: S4D and S5."""

from .api import linear_scan, linear_scan_bidirectional, linear_scan_step

__all__ = ["linear_scan", "linear_scan_bidirectional", "linear_scan_step"]
