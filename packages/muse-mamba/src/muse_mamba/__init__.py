"""Masked-token text-to-image generation with Mamba."""

from importlib.metadata import version


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: a checkout that is not installed has none, and imports all the same."""
    if name == "__version__":
        return version("muse-mamba")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
