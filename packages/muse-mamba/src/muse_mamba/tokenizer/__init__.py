"""The VQ-VAE that turns pictures into tokens and back: networks, losses, training in growing sizes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TokenizerConfig, tokenizer_preset
    from .discriminator import Discriminator
    from .network import VQTokenizer

_HOME = {
    "Discriminator": "discriminator",
    "TokenizerConfig": "config",
    "VQTokenizer": "network",
    "tokenizer_preset": "config",
}

__all__ = ["Discriminator", "TokenizerConfig", "VQTokenizer", "tokenizer_preset"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
