"""`python -m hybrid_sr` is `hybrid-sr`."""

from .cli import run

run()
