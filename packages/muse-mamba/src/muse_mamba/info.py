"""What a model costs: parameters and operations, without running or allocating it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .checks import nearest, refuse
from .config import MODELS, ModelConfig, model_preset
from .model import TokenModel
from .scan import DirectedScan, Mamba2
from .tokenizer.config import TOKENIZERS, TokenizerConfig, tokenizer_preset
from .tokenizer.network import VQTokenizer
from .weights import CONFIG, read_config, shipped_model

TOKENIZER_SIDES = {"seed": 256, "emoji-64": 64, "tiny": 32}


def model_info(preset: str, method: str | None = None) -> dict[str, Any]:
    """Count a token model or a tokenizer, built on the meta device.

    Args:
        preset: Name of a token model, "ship" for the one that ships, a tokenizer as "tokenizer-NAME", or the folder of
            either.
        method: How text is mixed in; only for names.

    Returns:
        "preset"; "method" for token models; "parameters"; "parts": parameters of the top-level modules; "weights_bytes"
        of parameters and buffers in float32; "macs": multiply-adds of convolutions and matrix products for one picture
        and one pass; "scan_ops": (9 N + 1) * Di * L per scan; "input".

    Raises:
        ValueError: No such model, or a method for a folder.
    """
    known = [*MODELS, "study", "ship", *(f"tokenizer-{name}" for name in TOKENIZERS)]
    if preset == "ship" or (Path(preset) / CONFIG).is_file():
        if method is not None:
            refuse("info", "method", "left out for trained weights", method, "they have one already")
        return _folder_info(preset, shipped_model() if preset == "ship" else Path(preset))
    if preset not in known:
        wanted = f"one of {', '.join(known)}, or a folder with {CONFIG}"
        refuse("info", "preset", wanted, repr(preset), nearest(preset, known))
    if preset.startswith("tokenizer-"):
        name = preset.removeprefix("tokenizer-")
        return _tokenizer_info(preset, tokenizer_preset(name), TOKENIZER_SIDES[name])
    return _model_info(preset, model_preset(preset, method))


def _folder_info(name: str, folder: Path) -> dict[str, Any]:
    try:
        kind = json.loads((folder / CONFIG).read_text())["kind"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "give a run's model/ folder, or save the network again"
        raise ValueError(f"info: {folder / CONFIG} is no configuration of a network: {error}; {remedy}") from error
    if kind == VQTokenizer.kind:
        config = TokenizerConfig.from_dict(read_config(folder, VQTokenizer.kind))
        return _tokenizer_info(name, config, TOKENIZER_SIDES["seed"])
    return _model_info(name, ModelConfig.from_dict(read_config(folder, TokenModel.kind)))


def _model_info(name: str, config: ModelConfig) -> dict[str, Any]:
    with torch.device("meta"):
        model = TokenModel(config)
        ids = torch.empty(1, config.length, dtype=torch.long)
        text = torch.empty(1, config.text_length, config.text_dim)
        small = torch.empty(1, math.prod(config.cond_grid), dtype=torch.long) if config.cond_vocab else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, text, cond_ids=small)
    return {
        "preset": name,
        "method": config.method,
        "parameters": count(model),
        "parts": {name: count(part) for name, part in model.named_children()} | _loose(model),
        "weights_bytes": _weights_bytes(model),
        "macs": counter.get_total_flops() // 2,
        "scan_ops": scan_operations(model, config),
        "input": f"{config.length} image and {config.text_length} text tokens",
    }


def _tokenizer_info(name: str, config: TokenizerConfig, side: int) -> dict[str, Any]:
    with torch.device("meta"):
        network = VQTokenizer(config)
        picture = torch.empty(1, 3, side, side)
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(picture)
    return {
        "preset": name,
        "parameters": count(network),
        "parts": {part: count(module) for part, module in network.named_children()},
        "weights_bytes": _weights_bytes(network),
        "codes": config.codes,
        "factor": config.factor,
        "macs": counter.get_total_flops() // 2,
        "input": f"{side}x{side} pixels",
    }


def _weights_bytes(module: nn.Module) -> int:
    return 4 * sum(x.numel() for x in module.state_dict().values())


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
