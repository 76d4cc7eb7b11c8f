"""The package imports without anything heavy, and says its version."""

import subprocess
import sys

import muse_mamba


def test_version_is_the_one_declared():
    from importlib.metadata import version

    assert muse_mamba.__version__ == version("muse-mamba")


def test_import_is_light():
    code = "import sys, muse_mamba; print([m for m in ('torch', 'triton', 'accelerate') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
