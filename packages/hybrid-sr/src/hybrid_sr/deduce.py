"""Find a network's configuration from a published state dict: the shapes say nearly everything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .checks import refuse
from .config import DIV2K_MEAN, ModelConfig

USUAL_RATIOS = (3, 30, 24)  # of the channel attention's widths in published networks
BLOCK = "layers.0.residual_group.blocks.0."
OVERLAP = "layers.0.residual_group.overlap_attn."
DEFAULT_HEADS, DEFAULT_WINDOW, DEFAULT_OVERLAP = 6, 16, 0.5


def deduce_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """Return the configuration of a network from its published parameters.

    What no shape tells: heads and window of attention without position bias are taken as 6 and 16, as in every
    published network of that kind; the mean colour is subtracted except by window-attention networks with the direct
    upsampler, which the Contrast repository trained without.

    Args:
        state: Published names and tensors, out of any wrapper.

    Raises:
        ValueError: A tensor that every member of the family has is missing, or the sizes contradict each other.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for needed in ("conv_first.weight", "conv_after_body.weight", BLOCK + "norm1.weight", BLOCK + "mlp.fc1.weight"):
        if needed not in shape:
            refuse("deduce_config", "state", "a published network of this family", f"no {needed}", "check the file")
    dim = shape["conv_first.weight"][0]
    attention = BLOCK + "attn.qkv.weight" in shape
    found: dict[str, Any] = {
        "dim": dim,
        "depths": _depths(shape),
        "mixer": "attention" if attention else "ss2d",
        "final_norm": "norm.weight" in shape,
        "overlap_attention": OVERLAP + "qkv.weight" in shape,
        **_windows(shape),
        **_feed_forward(shape, dim),
        **_upsampler(shape),
    }
    if not attention:
        found |= {
            "d_state": shape[BLOCK + "mamba.A_logs"][1],
            "ssm_ratio": shape[BLOCK + "mamba.in_proj.weight"][0] / dim,
        }
    if BLOCK + "conv_block.cab.0.weight" in shape:
        found["channel_attention"] = True
        found["compress_ratio"] = _ratio(dim, shape[BLOCK + "conv_block.cab.0.weight"][0])
        found["squeeze_factor"] = _ratio(dim, shape[BLOCK + "conv_block.cab.3.attention.1.weight"][0])
    plain = attention and found["upsampler"] == "direct"
    return ModelConfig(**found, rgb_mean=(0.0, 0.0, 0.0) if plain else DIV2K_MEAN)


def _depths(shape: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    blocks = {m.groups() for name in shape if (m := re.match(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", name))}
    depths = [0] * (1 + max(int(group) for group, _ in blocks))
    for group, _ in blocks:
        depths[int(group)] += 1
    return tuple(depths)


def _windows(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return heads, window, overlap and kind of position bias."""
    own, wide = (shape.get(f"{part}relative_position_bias_table") for part in (BLOCK + "attn.", OVERLAP))
    index = shape.get("relative_position_index_OCA")
    generated = shape.get(OVERLAP + "cpb_mlp.pos3.2.bias")
    position = "dynamic" if generated else "table" if own or wide else "none"
    heads = own or wide
    window, overlap = DEFAULT_WINDOW, DEFAULT_OVERLAP
    if own:
        window = (math.isqrt(own[0]) + 1) // 2
    elif index:
        window = math.isqrt(index[0])
    elif wide:
        window = round((math.isqrt(wide[0]) + 1) / (2 + DEFAULT_OVERLAP))
    if wide:
        overlap = (math.isqrt(wide[0]) + 1 - window) / window - 1
    elif index:
        overlap = math.isqrt(index[1]) / window - 1
    count = heads[1] if heads else generated[0] if generated else DEFAULT_HEADS
    return {"heads": count, "window": window, "overlap_ratio": overlap, "position": position}


def _feed_forward(shape: Mapping[str, tuple[int, ...]], dim: int) -> dict[str, Any]:
    wide = shape[BLOCK + "mlp.fc1.weight"][0]
    convolved = shape.get(BLOCK + "mlp.dwconv.weight")
    if BLOCK + "mlp.sg.conv.weight" in shape:
        return {"ffn": "spatial-gate", "mlp_ratio": wide / dim}
    if convolved is None:
        return {"ffn": "mlp", "mlp_ratio": wide / dim}
    kind = "dwconv" if convolved[0] == wide else "gated-conv"
    return {"ffn": kind, "mlp_ratio": convolved[0] / dim}


def _upsampler(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if "conv_last.weight" not in shape:
        return {"upsampler": "direct", "scale": math.isqrt(shape["upsample.0.weight"][0] // 3)}
    width = shape["conv_last.weight"][1]
    steps = [
        shape[name][0] // width
        for name in ("upsample.0.weight", "upsample.2.weight", "upsample.4.weight")
        if name in shape
    ]
    return {"upsampler": "pixelshuffle", "upsampler_dim": width, "scale": math.isqrt(math.prod(steps))}


def _ratio(dim: int, width: int) -> int:
    """Return the ratio r with dim // r == width: a usual one, or the smallest."""
    ratios = [r for r in range(1, dim + 1) if dim // r == width]
    if not ratios:
        refuse("deduce_config", "state", f"channel attention narrower than {dim}", width, "check the file")
    return next((r for r in USUAL_RATIOS if r in ratios), ratios[0])
