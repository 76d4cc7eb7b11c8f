"""Selective scan over an image in several directions, and the scan order itself as public functions."""

from .api import cross_merge, cross_scan, selective_scan_2d
from .cross import DIRECTIONS, Direction

__all__ = ["DIRECTIONS", "Direction", "cross_merge", "cross_scan", "selective_scan_2d"]
