"""Both families in timm's registry: importing this module registers them for `timm.create_model`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .config import CnnConfig, ModelConfig, VimConfig
from .keymap import filter_published
from .mambavision import MambaVision
from .presets import PRESETS
from .reshape import with_channels
from .vim import VisionMamba

Network = VisionMamba | MambaVision


def make_network(config: ModelConfig) -> Network:
    """Build the network of a configuration, with first weights."""
    if isinstance(config, CnnConfig):
        from .cnn import SmallCnn

        return cast(Network, SmallCnn(config))  # trained and evaluated alike; it is not cut
    return VisionMamba(config) if isinstance(config, VimConfig) else MambaVision(config)


def pretrained_cfg(config: ModelConfig) -> dict[str, Any]:
    """Return what timm wants to know about a network and its pictures; no weights are offered for download."""
    vim = isinstance(config, VimConfig)
    return {
        "url": "",
        "num_classes": config.classes,
        "input_size": (config.channels, *config.image),
        "fixed_input_size": vim,
        "pool_size": None,
        "crop_pct": config.crop_pct,
        "interpolation": "bicubic",
        "mean": config.mean,
        "std": config.std,
        "first_conv": "patch_embed.proj" if vim else "patch_embed.conv_down.0",
        "classifier": "head",
        "license": "apache-2.0",
    }


def create(name: str, config: ModelConfig, pretrained: bool, options: dict[str, Any]) -> Network:
    """Build a registered network with timm's usual options.

    Args:
        name: In the registry.
        config: The configuration behind the name.
        pretrained: Load the weights that `pretrained_cfg_overlay` names, such as {"file": "vim_t.pth"}.
        options: num_classes, in_chans, img_size, drop_rate, drop_path_rate, dynamic_img_size, global_pool,
            features_only, out_indices, and any field of the configuration.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if "num_classes" in options:
        config = replace(config, classes=options.pop("num_classes"))
    if "in_chans" in options:
        config = with_channels(config, options.pop("in_chans"))
    size = options.pop("img_size", None)
    if size is not None:
        config = replace(config, image=(size, size) if isinstance(size, int) else tuple(size))
    if "drop_path_rate" in options:
        config = replace(config, drop_path=options.pop("drop_path_rate"))
    fields = {key: options.pop(key) for key in list(options) if key in type(config).__dataclass_fields__}
    config = replace(config, **fields)
    pool = options.pop("global_pool", None)
    network = VisionMamba if isinstance(config, VimConfig) else MambaVision
    out_indices = 3 if isinstance(config, VimConfig) else (0, 1, 2, 3)
    built = build_model_with_cfg(
        cast(Any, network),
        name,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        pretrained_filter_fn=filter_published,
        kwargs_filter=cast(Any, ("num_classes", "in_chans", "img_size", "global_pool")),
        config=config,
        **options,
    )
    if pool is not None and hasattr(built, "reset_classifier") and pool != built.global_pool:
        built.reset_classifier(config.classes, pool)
    return built


def _register(name: str, make: Callable[[], ModelConfig]) -> None:
    def entry(pretrained: bool = False, **options: Any) -> Network:
        return create(name, make(), pretrained, options)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__  # timm files a model under the module that it came from
    entry.__doc__ = make.__doc__
    setattr(sys.modules[__name__], name, entry)
    register_model(entry)


default_cfgs = generate_default_cfgs({name: pretrained_cfg(make()) for name, make in PRESETS.items()})
for _name, _make in PRESETS.items():
    _register(_name, _make)
