"""Configurations with one thing changed, as a model's own methods change it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from .config import ModelConfig

Config = TypeVar("Config", bound=ModelConfig)


def with_classes(config: Config, classes: int, labels: tuple[str, ...] = (), domain: str = "") -> Config:
    """Return the configuration with another head."""
    return replace(config, classes=classes, labels=labels, domain=domain)


def with_image(config: Config, size: tuple[int, int]) -> Config:
    """Return the configuration for pictures of another size."""
    return replace(config, image=size)


def with_channels(config: Config, channels: int) -> Config:
    """Return the configuration for pictures with another number of channels; their statistics are averaged."""
    if channels == config.channels:
        return config
    mean, std = (sum(v) / len(v) for v in (config.mean, config.std))
    return replace(config, channels=channels, mean=(mean,) * channels, std=(std,) * channels)
