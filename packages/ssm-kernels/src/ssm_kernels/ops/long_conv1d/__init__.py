"""Convolution of channels with filters as long as the row."""

from .api import long_conv1d

__all__ = ["long_conv1d"]
