"""Run code written for mamba-ssm, causal-conv1d or VMamba's extension on the operators of this package.

    import ssm_kernels.compat

    ssm_kernels.compat.install()
    from mamba_ssm import Mamba  # and whatever imports it

`install` makes the names of those packages importable, on CPU and GPU, forward and backward. docs/compat.md lists what
is covered and what differs.
"""

from .importing import PACKAGES, install, installed, uninstall

__all__ = ["PACKAGES", "install", "installed", "uninstall"]
