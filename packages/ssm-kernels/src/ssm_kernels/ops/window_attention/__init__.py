"""Attention inside the windows of a picture: shifted (Swin), overlapping (HAT), with or without a position bias."""

from .api import window_attention

__all__ = ["window_attention"]
