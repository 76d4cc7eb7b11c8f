"""Vision Mamba and MambaVision, made smaller and faster."""

from importlib.metadata import version

__version__ = version("vim-compress")
