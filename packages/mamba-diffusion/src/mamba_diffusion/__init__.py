"""Flow matching from sparse points to whole fields with bidirectional Mamba."""

from importlib.metadata import version

__version__ = version("mamba-diffusion")
