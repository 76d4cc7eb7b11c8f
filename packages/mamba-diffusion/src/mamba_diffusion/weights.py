"""Where weights come from: shipped with the package, a run's folder, or a file of the origin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .checks import refuse
from .config import ModelConfig
from .config import preset as make_config
from .model import SparseField

SHIPPED = Path(__file__).parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
ORIGIN = ("model_state_dict", "state_dict", "params_ema")
FLOAT32 = ("mean", "std", "network.fourier.B")  # what ships in full precision: 285 K has no room in half precision


def shipped_models() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(f.parent.name for f in SHIPPED.glob("*/model.safetensors") if f.with_name("config.json").is_file())


def shipped(name: str) -> Path:
    """Return the folder of shipped weights.

    Raises:
        ValueError: None ship under this name; the message lists which do.
    """
    there = shipped_models()
    if name not in there:
        remedy = "train them with `mamba-diffusion train ship-rgb` or `ship-temperature`, or give --weights RUN/model"
        refuse("shipped", "weights", f"one of: {', '.join(there) or 'none ship with this version'}", name, remedy)
    return SHIPPED / name


def load_model(weights: str | Path, *, device: torch.device | str = "cpu", preset: str | None = None) -> SparseField:
    """Build a model with weights, ready to run (`eval`).

    Args:
        weights: The name of shipped weights; a run's folder or its `model/` folder; or a checkpoint of the origin
            (.pth, read with weights_only) or bare .safetensors, which need `preset`.
        device: Where the parameters are put.
        preset: Network of a file without a configuration, such as "v1-legacy"; found from the parameters if None.

    Raises:
        ValueError: It is missing or holds something else.
    """
    path = Path(weights)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            refuse("load_model", "weights", "a run, its model/ folder or a file", str(path), "check the path")
        path = shipped(str(weights))
    if path.is_dir():
        path = path / "model" if (path / "model" / "config.json").is_file() else path
        for name in ("config.json", "model.safetensors"):
            if not (path / name).is_file():
                refuse("load_model", "weights", f"a folder with {name}", str(path), "give a run or its model/ folder")
        try:
            return SparseField.from_pretrained(path).to(device).eval()
        except (RuntimeError, TypeError, OSError) as error:
            raise ValueError(f"load_model: {path} does not hold what its config.json says: {_short(error)}") from error
    return _from_file(path, preset).to(device).eval()


def _from_file(path: Path, preset: str | None) -> SparseField:
    state = read_state(path)
    names = [preset] if preset else ["v1-legacy", "v2-legacy"]
    problems = []
    for name in names:
        model = SparseField(origin_config(state, make_config(name)))
        wanted = {k: x.shape for k, x in model.network.state_dict().items()}
        wrong = [k for k in {*wanted, *state} if k not in wanted or k not in state or wanted[k] != state[k].shape]
        if not wrong:
            model.network.load_state_dict(state)
            return model
        problems.append(f"{name} differs in {len(wrong)} tensors, the first is {sorted(wrong)[0]}")
    raise ValueError(f"load_model: {path} fits no network: {'; '.join(problems)}; name another --preset")


def origin_config(state: dict[str, Tensor], config: ModelConfig) -> ModelConfig:
    """Take sizes from the origin's parameters: its checkpoints carry no configuration. Heads cannot be seen in them."""
    values = config.to_dict()
    if "fourier.B" in state and "time_mlp.0.weight" in state:
        layers = {k.split(".")[1] for k in state if k.startswith(("mamba_blocks.", "layers."))}
        both = {tuple(k.split(".")[1:3]) for k in state if k.startswith("bidirectional_mamba.") and "_blocks." in k}
        steps = {k.split(".")[2] for k in state if k.startswith("perceiver.iterations.")}
        values |= {"fourier": state["fourier.B"].shape[0], "width": state["time_mlp.0.weight"].shape[0]}
        values |= {"layers": len(layers) + len(both) or config.layers, "iterations": len(steps) or config.iterations}
    return ModelConfig.from_dict(values)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, the model's own names without "network.".

    Raises:
        ValueError: It cannot be read, or is no state dict.
    """
    from safetensors.torch import load_file

    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file() or path.suffix not in SUFFIXES:
        refuse("read_state", "weights", f"a file ({', '.join(SUFFIXES)}) or a model/ folder", str(path), "check it")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle makes the unpickler fail in any way
        raise ValueError(f"read_state: {path} cannot be read as weights: {_short(error)}") from error
    for key in ORIGIN:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        refuse("read_state", "weights", "a state dict", type(state).__name__, "give a checkpoint")
    return {k.removeprefix("module.").removeprefix("network."): x for k, x in state.items()}


def start_from(model: SparseField, weights: str | Path) -> tuple[list[str], list[str]]:
    """Copy weights into a model that goes on training, as far as names and shapes agree.

    Args:
        model: What does not agree keeps its value, as does the scaling of the data.
        weights: A run's model/ folder or a file, of this or another network: V2 takes from V1 what they share.

    Returns:
        Which parts of the network were taken, and which parameters start anew.

    Raises:
        ValueError: It cannot be read, or nothing agrees.
    """
    path = Path(weights)
    path = path / "model" if (path / "model" / "config.json").is_file() else path
    found, own = read_state(path), model.network.state_dict()
    taken = {k: x for k, x in found.items() if k in own and x.shape == own[k].shape}
    if not taken:
        refuse("start_from", "init", "weights of a related network", str(weights), "no parameter has this shape")
    model.network.load_state_dict(taken, strict=False)
    return parts_of(taken), [k for k in own if k not in taken]


def parts_of(names: Iterable[str]) -> list[str]:
    """Return the modules that parameters belong to, in order: fourier, time_mlp, ..."""
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in float16, as they ship; what float16 would spoil stays float32."""
    return {k: x if k in FLOAT32 or not x.is_floating_point() else x.half() for k, x in state.items()}


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
