"""Where weights come from: shipped with the package, a saved folder, or a file, also a published one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import refuse
from .config import ModelConfig, config_from_dict
from .presets import preset as make_config

if TYPE_CHECKING:
    from .models import Network

SHIPPED = Path(__file__).parent / "weights"
DEFAULT = "emoji"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")


def shipped_models() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(f.parent.name for f in SHIPPED.glob("*/model.safetensors") if f.with_name("config.json").is_file())


def shipped(name: str = DEFAULT) -> Path:
    """Return the folder of shipped weights.

    Raises:
        ValueError: None ship under this name; the message lists which do.
    """
    there = shipped_models()
    if name not in there:
        remedy = f"train them with `vim-compress train {DEFAULT} --out runs/emoji` and give --weights runs/emoji/model"
        refuse("shipped", "weights", f"one of: {', '.join(there) or 'none ship yet'}", name, remedy)
    return SHIPPED / name


def load_model(
    weights: str | Path | None = None,
    *,
    preset: str | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """Build a network with weights, ready to run (`eval`), float32.

    Args:
        weights: A folder with config.json and model.safetensors (`save_pretrained`, a run's `model/`, what `prune`
            writes); the name of shipped weights; or a file of weights, also a published checkpoint under its wrappers,
            read with `weights_only=True`. None takes the shipped ones.
        preset: Network of a file without config.json beside it.
        device: Where the parameters are put.

    Raises:
        ValueError: It is missing or holds something else, or the file needs a preset; the message says which keys.
    """
    path = shipped() if weights is None else Path(weights)
    if not path.exists() and str(weights) in shipped_models():
        path = shipped(str(weights))
    if not path.exists():
        wanted = f"a folder or file, or weights that ship ({', '.join(shipped_models())})"
        refuse("load_model", "weights", wanted, f"{path}, which does not exist", "check the path")
    if path.is_file() and path.name == "model.safetensors" and path.with_name("config.json").is_file():
        path = path.parent
    model = _from_folder(path) if path.is_dir() else _from_file(path, preset)
    return model.to(device).eval()


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration of a saved folder.

    Raises:
        ValueError: There is none, or it is not one of this package.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            wanted = "a folder with config.json and model.safetensors"
            refuse("load_model", "weights", wanted, f"{folder} without {name}", "give a run's model/ folder")
    try:
        return config_from_dict(json.loads((folder / "config.json").read_text()))
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"load_model: {folder / 'config.json'} is no configuration: {error}") from error


def start_from(model: Network, weights: str | Path) -> list[str]:
    """Copy weights into a network that goes on training, as far as names and shapes agree.

    Args:
        model: The network; what does not agree keeps its value.
        weights: A folder with model.safetensors, or a file.

    Returns:
        The names of the parameters that were not taken, such as the head's for other classes.

    Raises:
        ValueError: It cannot be read, or not a single parameter agrees.
    """
    from .keymap import filter_published

    path = Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        refuse("start_from", "init", "a model/ folder or a file of weights", str(weights), "check the path")
    found = filter_published(_read(path), model)
    own = model.state_dict()
    taken = {name: x for name, x in found.items() if name in own and x.shape == own[name].shape}
    if not any(name in dict(model.named_parameters()) for name in taken):
        refuse("start_from", "init", "weights of a related network", str(path), "not one parameter has this shape")
    model.load_state_dict(taken, strict=False)
    return [name for name, _ in model.named_parameters() if name not in taken]


def _from_folder(folder: Path) -> Network:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .models import make_network

    model = make_network(read_config(folder))
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"load_model: {folder} does not hold what its config.json says: {_short(error)}") from error
    return model.float()


def _from_file(path: Path, preset: str | None) -> Network:
    from .keymap import filter_published
    from .models import make_network

    if preset is None:
        refuse(
            "load_model", "preset", "given for a file without config.json", "none", "name it, as vim_tiny_patch16_224"
        )
    state = _read(path)
    config = make_config(preset)
    head = state.get("head.weight")
    if head is not None and head.shape[0] != config.classes:
        from dataclasses import replace

        config = replace(config, classes=head.shape[0])
    model = make_network(config)
    state = filter_published(state, model)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    problem = difference({k: tuple(v.shape) for k, v in state.items()}, wanted)
    if problem:
        raise ValueError(f"load_model: {path} does not fit {preset}: {problem}; name the preset that it was made for")
    model.load_state_dict(state)
    return model.float()


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    from .keymap import unwrap

    if path.suffix not in SUFFIXES:
        refuse("load_model", "weights", f"a folder or a file with {', '.join(SUFFIXES)}", path.name, "convert it first")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle makes the unpickler fail in any way
        raise ValueError(f"load_model: {path} cannot be read as weights: {_short(error)}") from error
    if not isinstance(checkpoint, dict):
        found = f"a {type(checkpoint).__name__} in {path}"
        refuse("load_model", "weights", "a file with a state dict", found, "check it")
    return unwrap(checkpoint)


def difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str | None:
    """Say in what two lists of names and shapes differ; None if they agree."""
    missing = [k for k in wanted if k not in found]
    unexpected = [k for k in found if k not in wanted]
    shapes = [f"{k} is {found[k]} and not {wanted[k]}" for k in found if k in wanted and found[k] != wanted[k]]
    parts = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape:", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} {what} {', '.join(names[:3])}{more}")
    return "; ".join(parts) if parts else None


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines)[:300]
