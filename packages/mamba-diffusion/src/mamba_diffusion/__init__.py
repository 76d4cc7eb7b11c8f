"""Flow matching from sparse points to whole fields with bidirectional Mamba.

    from mamba_diffusion import Prediction, load_model, read_points, reconstruct

    model = load_model("runs/a")  # a run, its model/ folder; device="cuda" for a GPU
    points = read_points("sensors.csv")
    field = reconstruct(model, points, places, Prediction(samples=16))  # .mean, .std, .quantiles, .samples

Everything is imported when it is first used: `import mamba_diffusion` alone does not import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ModelConfig, preset
    from .info import model_info
    from .model import SparseField
    from .points import Points, read_points
    from .predict import Prediction, sample_fields
    from .reconstruction import Reconstruction, reconstruct
    from .samplers import SamplerConfig
    from .speckles import Speckle, speckle
    from .weights import load_model

    __version__: str

_HOME = {
    "ModelConfig": "config",
    "Points": "points",
    "Prediction": "predict",
    "Reconstruction": "reconstruction",
    "SamplerConfig": "samplers",
    "SparseField": "model",
    "Speckle": "speckles",
    "load_model": "weights",
    "model_info": "info",
    "preset": "config",
    "read_points": "points",
    "reconstruct": "reconstruction",
    "sample_fields": "predict",
    "speckle": "speckles",
}

__all__ = [
    "ModelConfig",
    "Points",
    "Prediction",
    "Reconstruction",
    "SamplerConfig",
    "SparseField",
    "Speckle",
    "__version__",
    "load_model",
    "model_info",
    "preset",
    "read_points",
    "reconstruct",
    "sample_fields",
    "speckle",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; a checkout that is not installed has no version, and imports."""
    if name == "__version__":
        return version("mamba-diffusion")
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
