"""`python -m mamba_diffusion` is `mamba-diffusion`."""

from .cli import run

run()
