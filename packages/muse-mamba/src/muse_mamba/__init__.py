"""Masked-token text-to-image generation with Mamba."""

from importlib.metadata import version

__version__ = version("muse-mamba")
