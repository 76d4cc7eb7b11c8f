"""Attention of every token to its neighbours: a band along a sequence, a square in a picture."""

from .api import sliding_window_attention

__all__ = ["sliding_window_attention"]
