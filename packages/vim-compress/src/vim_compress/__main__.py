"""`python -m vim_compress` is the command `vim-compress`."""

from .cli import run

run()
