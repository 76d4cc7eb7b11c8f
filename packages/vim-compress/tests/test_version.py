"""The package imports without anything heavy, and says its version."""

import subprocess
import sys

import vim_compress


def test_version_is_the_one_declared():
    from importlib.metadata import version

    assert vim_compress.__version__ == version("vim-compress")


def test_import_is_light():
    code = "import sys, vim_compress; print([m for m in ('torch', 'triton', 'accelerate') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
