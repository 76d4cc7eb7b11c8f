"""`python -m muse_mamba` is `muse-mamba`."""

from .cli import run

run()
