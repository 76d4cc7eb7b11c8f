"""What a network costs: parameters, multiplications and scan operations, without running or allocating it."""

from typing import Any

import torch
from ssm_kernels.nn.ss2d import SS2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .config import PRESETS, ModelConfig
from .config import preset as make_config
from .mixers import SSD2D
from .model import HybridSR

DIRECTIONS = 4  # of the scan


def model_info(preset: str | ModelConfig, scale: int, height: int = 192, width: int = 320) -> dict[str, Any]:
    """Count parameters and operations of a network for one low-resolution image.

    The default size is what papers quote for an output of 1280 x 720 at x4: 180 rows padded to 192.

    Args:
        preset: Name of a preset, or a configuration.
        scale: Upscaling factor.
        height: Rows of the LR image; counted after padding to the window.
        width: Columns of the LR image.

    Returns:
        "preset"; "scale"; "input" [height, width]; "parameters"; "macs": multiply-adds of convolutions and matrix
        products (half of PyTorch's flop count, attention included); "scan_ops": (9 N + 1) * 4 * C * L per scan, the
        rule that VMamba uses; "parts": parameters per kind of module and of one block, overlapping attention and group.

    Raises:
        ValueError: Unknown preset, or a size below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"model_info: height and width must be at least 1, got {height} x {width}; give LR pixels")
    config = preset if isinstance(preset, ModelConfig) else make_config(preset, scale)
    if config.scale != scale:
        raise ValueError(f"model_info: scale must be {config.scale} like the configuration's, got {scale}")
    name = preset if isinstance(preset, str) else _name_of(config)
    with torch.device("meta"):
        model = HybridSR(config)
        image = torch.empty(1, 3, height, width)
    counter = FlopCounterMode(display=False, custom_mapping=_operator_flops())
    with torch.no_grad(), counter:
        model(image)
    pixels = (height + -height % config.window) * (width + -width % config.window)
    return {
        "preset": name,
        "scale": scale,
        "input": [height, width],
        "parameters": count(model),
        "macs": counter.get_total_flops() // 2,
        "scan_ops": _scan_ops(model, config, pixels),
        "parts": parameter_parts(model),
    }


def count(module: nn.Module | None) -> int:
    """Return the number of parameters of a module; 0 for None."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def parameter_parts(model: HybridSR) -> dict[str, Any]:
    """Return parameters by part: the top-level modules (which add up), and the inside of the first group."""
    group = model.get_submodule("groups.0")
    children = dict(group.named_children())
    block, overlap = group.get_submodule("blocks.0"), children.get("overlap")
    parts: dict[str, Any] = {name: count(module) for name, module in model.named_children() if name != "groups"}
    parts["groups"] = [count(child) for child in model.groups]
    parts["group_conv"] = count(children["conv"])
    parts["block"] = {"total": count(block)} | {name: count(child) for name, child in block.named_children()}
    if overlap is not None:
        parts["overlap"] = {"total": count(overlap)} | {name: count(child) for name, child in overlap.named_children()}
    return parts


def _name_of(config: ModelConfig) -> str:
    return next((name for name, make in PRESETS.items() if make(config.scale) == config), "custom")


def _scan_ops(model: HybridSR, config: ModelConfig, pixels: int) -> int:
    inner = int(config.dim * config.ssm_ratio)
    scans = sum(isinstance(module, SS2D | SSD2D) for module in model.modules())
    return scans * (9 * config.d_state + 1) * DIRECTIONS * inner * pixels


def _operator_flops() -> dict[Any, Any]:
    """Teach PyTorch's counter the matrix products inside window attention, which is one operator to it."""

    def window_attention(q: torch.Size, *rest: Any, out_shape: torch.Size | None = None) -> int:
        batch, height, width, heads, channels = q
        key_window = rest[4]  # after k, v, bias_table and window
        return 4 * batch * height * width * key_window**2 * heads * channels

    return {torch.ops.ssm_kernels.window_attention: window_attention}
