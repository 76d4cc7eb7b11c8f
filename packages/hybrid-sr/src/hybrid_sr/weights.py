"""Where weights come from: shipped with the package, a saved folder, a file of ours, or a published checkpoint."""

import json
from pathlib import Path

import torch
from torch import Tensor

from .checks import refuse
from .config import DEFAULT_PRESET, ModelConfig
from .config import preset as make_config
from .deduce import deduce_config
from .keymap import (
    CONFIG_TENSOR,
    fitting_presets,
    from_published,
    is_published,
    parameter_shapes,
    published_config,
    unwrap,
)
from .model import HybridSR

SHIPPED = Path(__file__).parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def shipped_models() -> list[str]:
    """Return the names of the weights that come with the package, such as "contrast-no-pe-no-cab-x4"."""
    return sorted(f.parent.name for f in SHIPPED.glob("*/model.safetensors") if f.with_name("config.json").is_file())


def shipped(preset: str, scale: int) -> Path:
    """Return the folder of shipped weights, for `HybridSR.from_pretrained`.

    Raises:
        ValueError: None ship for this preset and scale; the message lists which do.
    """
    name = f"{preset}-x{scale}"
    there = shipped_models()
    if name not in there:
        remedy = "train it with `hybrid-sr train`, or give the weights of a file or folder"
        refuse("shipped", "preset and scale", f"one of: {', '.join(there) or 'none ship'}", name, remedy)
    return SHIPPED / name


def load_model(
    weights: str | Path | None = None,
    *,
    preset: str | None = None,
    scale: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HybridSR:
    """Build a network with weights, ready to run (`eval`).

    Args:
        weights: None for the shipped ones; a folder with config.json and model.safetensors (`save_pretrained`, a
            run's `model/`); a .safetensors file; or a published .pth, .pt or .ckpt, read with `weights_only=True`
            (plain, or under `params_ema`, `params` or `state_dict`).
        preset: Network of a file without config.json beside it; found from the shapes if None. For shipped weights the
            default is contrast-no-pe-no-cab. A folder knows its own.
        scale: Upscaling factor that is expected.
        device: Where the parameters are put.
        dtype: Of the parameters, whatever the file holds.

    Raises:
        ValueError: The file is missing or holds something else, no preset fits, the named one does not (the message
            says which keys, and what would fit), or the scale differs.
    """
    path = shipped(preset or DEFAULT_PRESET, scale) if weights is None else Path(weights)
    if not path.exists():
        refuse("load_model", "weights", "a folder or file", f"{path}, which does not exist", "check the path")
    if path.is_dir():
        model = _from_folder(path)
    elif path.suffix == ".safetensors" and path.name == "model.safetensors" and (path.parent / "config.json").is_file():
        model = _from_folder(path.parent)
    else:
        model = _from_file(path, preset, scale)
    if model.config.scale != scale:
        remedy = f"use --scale {model.config.scale}, or other weights"
        refuse("load_model", "scale", f"{model.config.scale}, which {path} was trained for", scale, remedy)
    return model.to(device=device, dtype=dtype).eval()


def start_from(model: HybridSR, weights: str | Path) -> list[str]:
    """Copy weights into a network that goes on training, as far as names and shapes agree.

    Args:
        model: The network; what does not agree keeps its value.
        weights: A folder with model.safetensors, or a .safetensors file, of this or another scale or preset.

    Returns:
        The names of the parameters that were not taken, such as the upsampler's for weights of another scale.

    Raises:
        ValueError: It cannot be read, or not a single parameter agrees.
    """
    path = Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        refuse("start_from", "init", "a model/ folder or a .safetensors file", str(weights), "check the path")
    found, own = read_state(path), dict(model.named_parameters())
    taken = {name: x for name, x in found.items() if name in own and x.shape == own[name].shape}
    if not taken:
        refuse("start_from", "init", "weights of a related network", str(path), "not one parameter has this shape")
    model.load_state_dict(taken, strict=False)
    return [name for name in own if name not in taken]


def _from_folder(folder: Path) -> HybridSR:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            wanted = "a folder with config.json and model.safetensors"
            refuse("load_model", "weights", wanted, f"{folder} without {name}", "give a run's model/ folder")
    try:
        return HybridSR.from_pretrained(folder)
    except (RuntimeError, TypeError, OSError) as error:
        raise ValueError(f"load_model: {folder} does not hold what its config.json says: {_short(error)}") from error


def _from_file(path: Path, preset: str | None, scale: int) -> HybridSR:
    state = read_state(path)
    carried = state.pop(CONFIG_TENSOR, None)
    published = is_published(state)
    if carried is not None:
        config = carried_config(carried)
    elif preset is None:
        config = find_config(state, scale, path)
    else:
        config = make_config(preset, scale)
    config = published_config(config) if published else config
    _check_fit(path, state, config, preset or "the network that its shapes tell")
    model = HybridSR(config)
    model.load_state_dict(from_published(state, config) if published else state)
    return model


def find_config(state: dict[str, Tensor], scale: int, path: Path) -> ModelConfig:
    """Return the configuration of weights that do not carry one: of the preset that fits, or what their shapes tell.

    Raises:
        ValueError: Weights under our own names fit no preset at this scale.
    """
    fitting = fitting_presets(state, scale)
    if fitting:
        return make_config(fitting[0], scale)
    if not is_published(state):
        remedy = "name the scale that it was trained for"
        refuse("load_model", "weights", f"weights of a preset at scale {scale}", str(path), remedy)
    return deduce_config(state)


def carried_config(tensor: Tensor) -> ModelConfig:
    """Read the configuration that an exported file carries as a tensor of bytes."""
    try:
        return ModelConfig.from_dict(json.loads(bytes(tensor.tolist())))
    except (ValueError, TypeError) as error:
        raise ValueError(f"load_model: the configuration in the file cannot be read: {_short(error)}") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, out of any wrapper; nothing in it is run.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    from safetensors.torch import load_file

    if path.suffix not in (".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
        refuse(
            "load_model", "weights", "a folder, .safetensors, .pth, .pt, .ckpt or .bin", path.name, "convert it first"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle makes the unpickler fail in any way
        raise ValueError(f"load_model: {path} cannot be read as weights: {_short(error)}") from error
    if not isinstance(checkpoint, dict):
        refuse(
            "load_model", "weights", "a file with a state dict", f"a {type(checkpoint).__name__} in {path}", "check it"
        )
    return unwrap(checkpoint)


def _check_fit(path: Path, state: dict[str, Tensor], config: ModelConfig, preset: str) -> None:
    try:
        renamed = from_published(state, config) if is_published(state) else state
        problem = _difference({k: tuple(v.shape) for k, v in renamed.items()}, parameter_shapes(config))
    except ValueError as error:
        problem = str(error)
    if problem is None:
        return
    fitting = fitting_presets(state, config.scale)
    others = [f"{name} at scale {s}" for s in (2, 3, 4) if s != config.scale for name in fitting_presets(state, s)]
    remedy = f"it fits {', '.join(fitting + others)}" if fitting or others else "no preset fits it"
    raise ValueError(f"load_model: {path} does not fit {preset} at scale {config.scale}: {problem}; {remedy}")


def _difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str | None:
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
    return lines[0][:300]
