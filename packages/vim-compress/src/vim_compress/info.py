"""What a network costs: parameters, multiplications and scan operations, without running or allocating it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .config import ModelConfig, VimConfig
from .models import Network, make_network

SCAN = 9  # operations for each token, channel and state: the rule that VMamba uses
INPUTS_OF_ONE_DIRECTION = 7  # x, dt, A, B, C, D, dt_bias


def model_info(config: ModelConfig, image: tuple[int, int] | None = None) -> dict[str, Any]:
    """Count parameters and operations of a network for one picture.

    Args:
        config: The network.
        image: Height and width in pixels; None takes the configuration's.

    Returns:
        "family"; "image"; "parameters"; "macs": multiply-adds of matrix products and convolutions (attention
        included, the short convolutions of the mixers too); "scan_macs": 9 N L E for each scan; "total_macs": their
        sum; "tokens": of the sequence, or of the last stage's map; "parts": parameters by module.

    Raises:
        ValueError: The network cannot take this size.
    """
    with torch.device("meta"):
        model = make_network(config)
        if image is not None and image != config.image:
            model.set_input_size(image)
        height, width = model.config.image
        x = torch.empty(1, config.channels, height, width)
    macs, scans = count_macs(model, x)
    return {
        "family": config.family,
        "image": [height, width],
        "parameters": count(model),
        "macs": macs,
        "scan_macs": scans,
        "total_macs": macs + scans,
        "parts": parameter_parts(model),
    }


def count_macs(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Return multiply-adds of matrix products and convolutions, and of the scans, of one forward pass.

    The network may be on any device, also on "meta", where nothing is computed.
    """
    counter = FlopCounterMode(display=False, custom_mapping=operator_flops())
    with torch.no_grad(), counter:
        model.eval()(x)
    counts = counter.get_flop_counts()["Global"]
    scans = sum(flops for operator, flops in counts.items() if "scan" in str(operator) or "ssd" in str(operator))
    return (sum(counts.values()) - scans) // 2, scans // 2


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def parameter_parts(model: Network) -> dict[str, Any]:
    """Return parameters by part: the top-level modules, which add up with the loose ones, and one of the blocks."""
    parts: dict[str, Any] = {name: count(module) for name, module in model.named_children()}
    parts |= {name: p.numel() for name, p in model.named_parameters() if "." not in name}
    block = model.get_submodule("layers.0" if isinstance(model.config, VimConfig) else "levels.2.blocks.0")
    parts["block"] = {"total": count(block)} | {name: count(child) for name, child in block.named_children()}
    return parts


def operator_flops() -> dict[Any, Any]:
    """Teach PyTorch's counter the operators of ssm_kernels: two operations a multiply-add."""

    def scan(x: torch.Size, dt: Any, A: torch.Size, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return 2 * SCAN * x[0] * x[1] * x[2] * A[-1]

    def both(*shapes: Any, out_shape: Any = None, **more: Any) -> int:
        back = shapes[INPUTS_OF_ONE_DIRECTION:]
        return scan(*shapes[:3]) + scan(*back[:3])

    def convolution(x: torch.Size, weight: torch.Size, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return 2 * x[0] * x[1] * x[2] * weight[1]

    operators = torch.ops.ssm_kernels
    return {
        operators.selective_scan: scan,
        operators.selective_scan_bidirectional: both,
        operators.depthwise_conv1d: convolution,
    }
