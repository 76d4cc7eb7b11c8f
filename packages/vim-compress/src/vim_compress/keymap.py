"""Published checkpoints of Vim and MambaVision: what is around the weights, and which network they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_ema", "model", "state_dict_ema")
PREFIXES = ("module.", "encoder.", "_orig_mod.", "model.")


def unwrap(checkpoint: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """Return the weights of a checkpoint under their plain names.

    Args:
        checkpoint: What a file holds: weights, or a dictionary with them under "model", "state_dict", "model_ema".
        ema: Take the averaged weights where a training file has both, as timm does.

    Raises:
        ValueError: No tensors are found.
    """
    order = sorted(WRAPPERS, key=lambda name: ("ema" in name) != ema)
    for name in order:
        if isinstance(checkpoint.get(name), Mapping):
            return unwrap(checkpoint[name], ema=ema)
    state = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"unwrap: a checkpoint must hold weights, found only {', '.join(list(checkpoint)[:5])}")
    for prefix in PREFIXES * 2:  # training wrappers nest
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def filter_published(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Make a published checkpoint fit a network: unwrapped, and positions resampled where the size differs.

    A position embedding of another number of patches is taken to be square.
    """
    from .vim import VisionMamba, resize_positions

    weights = unwrap(state)
    if isinstance(model, VisionMamba) and "pos_embed" in weights:
        patches = weights["pos_embed"].shape[1] - 1
        wanted = model.config.grid
        if patches != wanted[0] * wanted[1]:
            side = round(patches**0.5)
            if side * side != patches:
                raise ValueError(f"pos_embed must be of a square grid to be resampled, got {patches} patches")
            weights["pos_embed"] = resize_positions(weights["pos_embed"].float(), (side, side), wanted)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked") and name not in weights:  # it has no effect; old files lack it
            weights[name] = torch.zeros_like(buffer)
    return weights
