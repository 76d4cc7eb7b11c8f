"""Hybrid Mamba/Transformer super-resolution.

    from hybrid_sr import load_model, read_picture, upscale

    model = load_model(scale=4)  # the shipped weights; device="cuda" for a GPU
    picture = read_picture("photo.jpg")
    larger = upscale(model, picture.pixels)  # (4 H, 4 W, C), the depth of the input

Everything is imported when it is first used: `import hybrid_sr` alone does not import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ModelConfig, preset
    from .evaluate import evaluate_images
    from .files import upscale_files
    from .images import Picture, read_picture, write_picture
    from .info import model_info
    from .metrics import psnr_y, ssim_y
    from .model import HybridSR
    from .resize import imresize, modcrop
    from .upscaling import upscale
    from .weights import load_model

    __version__: str

_HOME = {
    "HybridSR": "model",
    "ModelConfig": "config",
    "Picture": "images",
    "evaluate_images": "evaluate",
    "imresize": "resize",
    "load_model": "weights",
    "modcrop": "resize",
    "model_info": "info",
    "preset": "config",
    "psnr_y": "metrics",
    "read_picture": "images",
    "ssim_y": "metrics",
    "upscale": "upscaling",
    "upscale_files": "files",
    "write_picture": "images",
}

__all__ = [
    "HybridSR",
    "ModelConfig",
    "Picture",
    "__version__",
    "evaluate_images",
    "imresize",
    "load_model",
    "modcrop",
    "model_info",
    "preset",
    "psnr_y",
    "read_picture",
    "ssim_y",
    "upscale",
    "upscale_files",
    "write_picture",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        return version("hybrid-sr")
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
