"""What a model costs: parameters and operations, without running or allocating it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .checks import nearest, refuse
from .config import MODELS, ModelConfig, model_preset
from .model import TokenModel
from .scan import DirectedScan, Mamba2
from .tokenizer.config import TOKENIZERS, tokenizer_preset
from .tokenizer.network import VQTokenizer

TOKENIZER_SIDES = {"seed": 256, "emoji-64": 64, "tiny": 32}


def model_info(preset: str, method: str | None = None) -> dict[str, Any]:
    """Count a token model or a tokenizer, built on the meta device.

    Args:
        preset: Name of a token model, or of a tokenizer as "tokenizer-NAME".
        method: How text is mixed in.

    Returns:
        "preset"; "method" for token models; "parameters"; "parts": parameters of the top-level modules; "macs":
        multiply-adds of convolutions and matrix products for one picture and one pass; "scan_ops": (9 N + 1) * Di * L
        per scan; "input".

    Raises:
        ValueError: No such model.
    """
    known = [*MODELS, "study", *(f"tokenizer-{name}" for name in TOKENIZERS)]
    if preset not in known:
        refuse("info", "preset", f"one of {', '.join(known)}", repr(preset), nearest(preset, known))
    if preset.startswith("tokenizer-"):
        return _tokenizer_info(preset.removeprefix("tokenizer-"))
    config = model_preset(preset, method)
    with torch.device("meta"):
        model = TokenModel(config)
        ids = torch.empty(1, config.length, dtype=torch.long)
        text = torch.empty(1, config.text_length, config.text_dim)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, text)
    return {
        "preset": preset,
        "method": config.method,
        "parameters": count(model),
        "parts": {name: count(part) for name, part in model.named_children()} | _loose(model),
        "macs": counter.get_total_flops() // 2,
        "scan_ops": scan_operations(model, config),
        "input": f"{config.length} image and {config.text_length} text tokens",
    }


def _tokenizer_info(name: str) -> dict[str, Any]:
    config, side = tokenizer_preset(name), TOKENIZER_SIDES[name]
    with torch.device("meta"):
        network = VQTokenizer(config)
        picture = torch.empty(1, 3, side, side)
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(picture)
    return {
        "preset": f"tokenizer-{name}",
        "parameters": count(network),
        "parts": {part: count(module) for part, module in network.named_children()},
        "codes": config.codes,
        "factor": config.factor,
        "macs": counter.get_total_flops() // 2,
        "input": f"{side}x{side} pixels",
    }


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def _loose(model: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters(recurse=False)}


def scan_operations(model: nn.Module, config: ModelConfig) -> int:
    """Return the operations of the scans over the image tokens, which PyTorch's counter does not see."""
    total = 0
    for module in model.modules():
        if isinstance(module, DirectedScan):
            total += (9 * config.d_state + 1) * config.inner * config.length
        elif isinstance(module, Mamba2):
            total += len(module.convs) * (9 * config.d_state + 1) * config.inner * config.length
    return total
