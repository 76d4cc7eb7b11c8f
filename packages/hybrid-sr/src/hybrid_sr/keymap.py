"""Published checkpoints of the family: their parameter names and layouts, turned into ours.

Published names are those of the Contrast and HAT repositories, such as
`layers.0.residual_group.blocks.0.mamba.in_proj.weight`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .blocks import overlap_index_rotation
from .checks import refuse
from .config import PRESETS, ModelConfig
from .deduce import deduce_config

WRAPPERS = ("params_ema", "params", "state_dict", "model")  # an average, where there is one, is the better model

CONFIG_TENSOR = "hybrid_sr_config"  # config.json as bytes, beside the parameters of an exported file

# buffers of the published code that ours computes
DERIVED = re.compile(r"(^|\.)(relative_position_index(_SA|_OCA)?|relative_coords_table|attn_mask|mean)$")

# applied in order; \d+ is a group or block number
RENAME = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^conv_first\.", "stem."),
        (r"^patch_embed\.norm\.", "stem_norm."),
        (r"^norm\.", "final_norm."),
        (r"^conv_after_body\.", "body_conv."),
        (r"^layers\.(\d+)\.conv\.", r"groups.\1.conv."),
        (r"^layers\.(\d+)\.residual_group\.blocks\.", r"groups.\1.blocks."),
        (r"^layers\.(\d+)\.residual_group\.overlap_attn\.(norm|mlp)", r"groups.\1.overlap.\2"),
        (r"^layers\.(\d+)\.residual_group\.overlap_attn\.cpb_mlp\.pos_proj\.", r"groups.\1.overlap.position.embed."),
        (r"^layers\.(\d+)\.residual_group\.overlap_attn\.(qkv|proj|relative_)", r"groups.\1.overlap.attention.\2"),
        (r"\.(mamba|attn)\.", ".mixer."),
        (r"\.conv_block\.cab\.0\.", ".channel_attention.compress."),
        (r"\.conv_block\.cab\.2\.", ".channel_attention.restore."),
        (r"\.conv_block\.cab\.3\.attention\.1\.", ".channel_attention.squeeze."),
        (r"\.conv_block\.cab\.3\.attention\.3\.", ".channel_attention.excite."),
        (r"\.mlp\.fc1\.", ".ffn.expand."),
        (r"\.mlp\.fc2\.", ".ffn.reduce."),
        (r"\.mlp\.dwconv\.", ".ffn.depthwise."),
        (r"\.mlp\.sg\.norm\.", ".ffn.norm."),
        (r"\.mlp\.sg\.conv\.", ".ffn.depthwise."),
    )
]
POSITION_LAYER = re.compile(r"^layers\.(\d+)\.residual_group\.overlap_attn\.cpb_mlp\.pos(\d)\.")
UPSAMPLER = {
    "direct": {"upsample.0": "upsampler.conv"},
    "pixelshuffle": {
        "conv_before_upsample.0": "upsampler.conv",
        "upsample.0": "upsampler.conv0",
        "upsample.2": "upsampler.conv1",
        "upsample.4": "upsampler.conv2",
        "conv_last": "upsampler.to_rgb",
    },
}
OVERLAP_TABLE = ".overlap.attention.relative_position_bias_table"

# ours to published, the same way; the mixer's name depends on the network
RENAME_BACK = [
    (re.compile(pattern), published)
    for pattern, published in (
        (r"^stem\.", "conv_first."),
        (r"^stem_norm\.", "patch_embed.norm."),
        (r"^final_norm\.", "norm."),
        (r"^body_conv\.", "conv_after_body."),
        (r"^groups\.(\d+)\.conv\.", r"layers.\1.conv."),
        (r"^groups\.(\d+)\.blocks\.", r"layers.\1.residual_group.blocks."),
        (r"^groups\.(\d+)\.overlap\.(norm|ffn|mlp)", r"layers.\1.residual_group.overlap_attn.\2"),
        (r"^groups\.(\d+)\.overlap\.position\.embed\.", r"layers.\1.residual_group.overlap_attn.cpb_mlp.pos_proj."),
        (r"^groups\.(\d+)\.overlap\.attention\.", r"layers.\1.residual_group.overlap_attn."),
        (r"\.channel_attention\.compress\.", ".conv_block.cab.0."),
        (r"\.channel_attention\.restore\.", ".conv_block.cab.2."),
        (r"\.channel_attention\.squeeze\.", ".conv_block.cab.3.attention.1."),
        (r"\.channel_attention\.excite\.", ".conv_block.cab.3.attention.3."),
        (r"\.ffn\.expand\.", ".mlp.fc1."),
        (r"\.ffn\.reduce\.", ".mlp.fc2."),
    )
]
POSITION_LAYER_BACK = re.compile(r"^groups\.(\d+)\.overlap\.position\.layers\.(\d)\.")


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict inside a published checkpoint: under `params_ema` or `params`, or the mapping itself.

    Raises:
        ValueError: No tensors were found where they belong.
    """
    for name in WRAPPERS:
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
            break
    state = {k.removeprefix("module."): v for k, v in checkpoint.items()}
    wrong = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if wrong or not state:
        found = f"{wrong[:3]} that hold none" if wrong else "an empty mapping"
        refuse(
            "unwrap", "checkpoint", "names with tensors, plain or under params_ema or params", found, "check the file"
        )
    return state


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Say whether the names are the published ones rather than ours."""
    return any(name.startswith(("conv_first.", "layers.", "conv_after_body.")) for name in state)


def published_config(config: ModelConfig) -> ModelConfig:
    """Return the configuration that reproduces published weights: a generated position bias has rotated offsets."""
    return replace(config, rotated_overlap_index=config.overlap_attention and config.position == "dynamic")


def from_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename a published state dict and bring its tensors into our layout.

    Buffers that only depend on the window (index tables, coordinates, masks) are dropped whether present or not.
    1 x 1 convolutions become matrices. The table of the overlapping attention is renumbered by true offsets, so that
    outputs stay equal.

    Args:
        state: Published names (`unwrap` first); not modified.
        config: Of the network that it is for; only its window and upsampler are used.

    Raises:
        ValueError: A name belongs to no network of the family.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if DERIVED.search(name):
            continue
        renamed = _rename(name, config)
        if renamed is None:
            wanted = f"a published network of this family with upsampler={config.upsampler!r}"
            refuse("from_published", "state", wanted, f"the key {name!r}", "name the preset that it belongs to")
        ours[renamed] = _relayout(tensor, renamed, config)
    return ours


def to_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Bring a network's state dict into the published names and layouts, the reverse of `from_published`.

    The index tables that HAT's programs look for are added.

    Args:
        state: Of a network with `config`; not modified.
        config: Its configuration.

    Raises:
        ValueError: The published code cannot build this network; the message names the field.
    """
    back = {ours: published for published, ours in UPSAMPLER[config.upsampler].items()}
    published: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        renamed = f"{back[stem]}.{leaf}" if stem in back else _rename_back(name, config)
        if renamed is None:
            refuse("to_published", "state", "parameters that the published code has", name, "export it as it is")
        published[renamed] = _relayout_back(tensor, name, renamed, config)
    _check_publishable(config, deduce_config(published))
    if config.mixer == "attention":
        published["relative_position_index_SA"] = window_index(config.window)
    if config.overlap_attention and config.position == "table":
        published["relative_position_index_OCA"] = overlap_index(config.window, config.key_window)
    return published


def _check_publishable(config: ModelConfig, deduced: ModelConfig) -> None:
    """Refuse a network that whoever reads the published names would build differently."""
    told = {"rgb_mean", "rotated_overlap_index", "compress_ratio", "squeeze_factor", "mlp_ratio", "ssm_ratio"}
    if config.position != "table":  # no shape tells; the reader has to know
        told |= {"window", "overlap_ratio"} | ({"heads"} if config.position == "none" else set())
    if not config.overlap_attention:
        told.add("overlap_ratio")
    values, found = config.to_dict(), deduced.to_dict()
    for field in values:
        if field not in told and values[field] != found[field]:
            refuse(
                "to_published", field, f"{found[field]}, as the published code has it", values[field], "export as ours"
            )
    if config.position == "dynamic" and not config.rotated_overlap_index:
        remedy = "export as ours; its position bias was learned from true offsets"
        refuse("to_published", "rotated_overlap_index", "True, as the published code has it", False, remedy)


def window_index(window: int) -> Tensor:
    """Return HAT's table of the offset, query minus key, of every pair of pixels in a window, (M * M, M * M) int64."""
    y, x = (-offset for offset in _offsets(window, window))
    return (y + window - 1) * (2 * window - 1) + x + window - 1


def overlap_index(window: int, key_window: int) -> Tensor:
    """Return HAT's table for the overlapping windows, key minus query, (M * M, K * K) int64, in places negative."""
    y, x = _offsets(window, key_window)
    shift = window - key_window + 1
    return (y + shift) * (window + key_window - 1) + x + shift


def _offsets(window: int, key_window: int) -> tuple[Tensor, Tensor]:
    """Return row and column of key minus query for a window and another one with the same corner."""
    places = [
        torch.stack(torch.meshgrid(2 * [torch.arange(n)], indexing="ij")).flatten(1) for n in (window, key_window)
    ]
    y, x = places[1][:, None, :] - places[0][:, :, None]
    return y, x


def _rename_back(name: str, config: ModelConfig) -> str | None:
    layer = POSITION_LAYER_BACK.match(name)
    if layer:
        group, index = layer.groups()
        return f"layers.{group}.residual_group.overlap_attn.cpb_mlp.pos{int(index) + 1}." + name[layer.end() :]
    gate = "mlp.sg" if config.ffn == "spatial-gate" else "mlp"
    convolution = f".{gate}.conv." if config.ffn == "spatial-gate" else f".{gate}.dwconv."
    renamed = name.replace(".ffn.norm.", f".{gate}.norm.").replace(".ffn.depthwise.", convolution)
    renamed = renamed.replace(".mixer.", ".attn." if config.mixer == "attention" else ".mamba.")
    for pattern, replacement in RENAME_BACK:
        renamed = pattern.sub(replacement, renamed)
    return renamed if renamed.startswith(("layers.", "conv_", "patch_embed.", "norm.")) else None


def _relayout_back(tensor: Tensor, ours: str, published: str, config: ModelConfig) -> Tensor:
    squeezed = ".channel_attention.s" in ours or ".channel_attention.e" in ours
    convolved = config.ffn in ("dwconv", "gated-conv") and (".mlp.fc1." in published or ".mlp.fc2." in published)
    if tensor.ndim == 2 and (squeezed or convolved):
        return tensor[..., None, None]
    if ours.endswith(OVERLAP_TABLE):
        return tensor.roll(-overlap_index_rotation(config.window, config.key_window), 0)
    return tensor


def _relayout(tensor: Tensor, renamed: str, config: ModelConfig) -> Tensor:
    pointwise = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    if pointwise and (".ffn." in renamed or ".channel_attention." in renamed):
        return tensor.flatten(1)
    if renamed.endswith(OVERLAP_TABLE):
        return tensor.roll(overlap_index_rotation(config.window, config.key_window), 0)
    return tensor


def _rename(name: str, config: ModelConfig) -> str | None:
    stem, _, leaf = name.rpartition(".")
    if stem in UPSAMPLER[config.upsampler]:
        return f"{UPSAMPLER[config.upsampler][stem]}.{leaf}"
    layer = POSITION_LAYER.match(name)
    if layer:
        group, index = layer.groups()
        return f"groups.{group}.overlap.position.layers.{int(index) - 1}." + name[layer.end() :]
    renamed = name
    for pattern, replacement in RENAME:
        renamed = pattern.sub(replacement, renamed)
    return renamed if renamed != name else None


def fitting_presets(state: Mapping[str, Tensor], scale: int) -> list[str]:
    """Return the presets whose parameters have exactly the names and shapes of `state` (ours or published)."""
    fitting = []
    for name, make in PRESETS.items():
        try:
            config = make(scale)
            renamed = from_published(state, config) if is_published(state) else dict(state)
        except ValueError:  # the names are not those of this preset, which is what is asked here
            continue
        stem = renamed.get("stem.weight")
        if stem is None or len(stem) != config.dim:  # most are told apart without building them
            continue
        if {k: tuple(v.shape) for k, v in renamed.items()} == parameter_shapes(config):
            fitting.append(name)
    return fitting


@lru_cache(maxsize=32)
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every stored tensor, without allocating any."""
    from .model import HybridSR

    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in HybridSR(config).state_dict().items()}
