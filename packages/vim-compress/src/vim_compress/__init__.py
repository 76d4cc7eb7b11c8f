"""Vision Mamba and MambaVision, made smaller and faster."""

from importlib.metadata import version


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: a checkout that is not installed has none, and imports all the same."""
    if name == "__version__":
        return version("vim-compress")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
