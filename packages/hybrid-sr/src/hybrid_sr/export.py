"""Write a network for other programs: ONNX, torch.export, weights under our names or the published ones.

H and W are the input's size in pixels, M the window, s the scale.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .checks import refuse
from .keymap import CONFIG_TENSOR, to_published

if TYPE_CHECKING:
    from .model import HybridSR
    from .tool_arguments import ExportOptions

SUFFIXES = (".onnx", ".pt2", ".safetensors", ".pth")
LARGEST = 1024  # windows along an axis of a picture of open size

Layout = Literal["ours", "published"]


def export_command(out: str | None, options: ExportOptions) -> int:
    """Run `hybrid-sr export`."""
    from .weights import load_model

    if out is None:
        raise ValueError("no file given; name one ending in " + ", ".join(SUFFIXES) + ", or a new folder")
    target = Path(out)
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target}: exists; add --overwrite to replace it, or choose another name")
    if target.suffix and target.suffix not in SUFFIXES:
        refuse("export", "file", f"one ending in {', '.join(SUFFIXES)}, or a folder", target.name, "choose one of them")
    model = load_model(options.weights, preset=options.preset, scale=options.scale)
    target.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of PyTorch's own empty constants
    if target.suffix:
        export(model, target, layout=options.layout, height=options.height, width=options.width)
    else:
        export_half(model, target)
    size = sum(file.stat().st_size for file in (target.rglob("*") if target.is_dir() else [target]))
    if options.json:
        print(json.dumps({"file": str(target), "bytes": size, "config": model.config.to_dict()}, indent=2))
    else:
        print(f"{target}  {size / 1e6:.2f} MB")
    return 0


def export(model: HybridSR, file: Path, *, layout: Layout = "ours", height: int = 0, width: int = 0) -> None:
    """Write a network.

    Args:
        model: In eval mode on the CPU, float32.
        file: Ends in .onnx (needs the onnx extra), .pt2 (torch.export), .safetensors or .pth (weights). It appears
            under its name only when it is whole. Weights under our names carry the configuration, as the tensor
            `hybrid_sr_config`, for our own and for spandrel's loader; published ones are under `params_ema`, as
            `.pth` files of the Contrast and HAT repositories are.
        layout: Names and layouts of the parameters in a weights file.
        height: H of the pictures that .onnx and .pt2 take, a multiple of M; 0 leaves multiples of M open.
        width: W, likewise.

    Raises:
        ValueError: Another suffix, a size that is no multiple of M, onnx is not installed, or the published code has
            no such network.
    """
    if file.suffix not in SUFFIXES:
        refuse("export", "file", f"one ending in {', '.join(SUFFIXES)}", file.name, "choose one of them")
    half = file.with_name(f"{file.stem}.tmp{file.suffix}")
    if file.suffix in (".safetensors", ".pth"):
        _write_weights(model, half, layout)
    else:
        x, shapes = _example(model, height, width)
        if file.suffix == ".pt2":
            with torch.no_grad():
                torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), half)
        else:
            _write_onnx(model, x, half, shapes)
    half.replace(file)


def export_half(model: HybridSR, folder: Path) -> None:
    """Write a folder like `save_pretrained`, the weights in half precision; it loads as float32."""
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    model.half().save_pretrained(half)
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def portable_state(model: HybridSR) -> dict[str, Tensor]:
    """Return a network's parameters and, as bytes, its configuration: what a file needs to be loaded without flags."""
    text = json.dumps(model.config.to_dict()).encode()
    state = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    return {**state, CONFIG_TENSOR: torch.tensor(list(text), dtype=torch.uint8)}


def _write_weights(model: HybridSR, file: Path, layout: Layout) -> None:
    if layout == "ours":
        state = portable_state(model)
    else:
        plain = {name: x.detach().cpu() for name, x in model.state_dict().items()}
        state = {name: x.contiguous() for name, x in to_published(plain, model.config).items()}
    if file.suffix == ".pth":
        torch.save(state if layout == "ours" else {"params_ema": state}, file)
        return
    from safetensors.torch import save_file

    save_file(state, file, metadata={"format": "pt", "config": json.dumps(model.config.to_dict())})


def _example(model: HybridSR, height: int, width: int) -> tuple[Tensor, Any]:
    """Return an input and which of its sizes are open."""
    window = model.config.window
    for name, size in (("height", height), ("width", width)):
        if size % window:
            down = max(window, size // window * window)
            refuse("export", name, f"a multiple of {window}", size, f"try {down} or {down + window}")
    if height:
        return torch.zeros(1, 3, height, width), None
    rows, columns = (torch.export.Dim(name, min=1, max=LARGEST) for name in ("rows", "columns"))
    return torch.zeros(1, 3, 2 * window, 3 * window), ({2: window * rows, 3: window * columns},)


def _write_onnx(model: HybridSR, x: Tensor, file: Path, shapes: Any) -> None:
    import ssm_kernels.onnx

    try:
        import onnx

        ssm_kernels.onnx.export(model, (x,), file, dynamic_shapes=shapes, input_names=["lr"], output_names=["sr"])
    except ImportError as error:
        raise ValueError(f"export: {error}; pip install 'hybrid-sr[onnx]'") from error
    written = onnx.load(file)
    fixed = "" if shapes else json.dumps(list(x.shape[2:]))
    for key, value in (("hybrid_sr_config", json.dumps(model.config.to_dict())), ("hybrid_sr_size", fixed)):
        entry = written.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(written, file)
