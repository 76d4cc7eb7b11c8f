"""One step of the selective scan with its state passed in and out: token by token generation."""

from .api import selective_scan_step

__all__ = ["selective_scan_step"]
