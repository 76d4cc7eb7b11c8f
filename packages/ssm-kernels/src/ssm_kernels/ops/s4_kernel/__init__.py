"""S4: state matrices that are diagonal plus one rank, as filters for `long_conv1d` and as matrices for single steps."""

from .api import s4_discretize, s4_kernel

__all__ = ["s4_discretize", "s4_kernel"]
