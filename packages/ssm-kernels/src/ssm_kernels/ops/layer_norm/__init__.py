"""Normalisation of the last axis, with the sum in front of it: layer norm and root mean square norm."""

from .api import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
