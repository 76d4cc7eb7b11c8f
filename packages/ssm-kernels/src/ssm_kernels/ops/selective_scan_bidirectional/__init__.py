"""Two selective scans over one row, one in each direction, under one gate."""

from .api import selective_scan_bidirectional

__all__ = ["selective_scan_bidirectional"]
