"""The members of both families by name. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from .config import HALF_MEAN, HALF_STD, MambaVisionConfig, ModelConfig, VimConfig


def vim_tiny_patch16_224() -> ModelConfig:
    """Vim-T: 7,148,008 parameters, 76.1 % on ImageNet-1k."""
    return VimConfig(init="official", crop_pct=0.9)


def vim_small_patch16_224() -> ModelConfig:
    """Vim-S: 25,796,584 parameters, 80.5 %."""
    return VimConfig(dim=384, init="official", crop_pct=0.9)


def vim_base_patch16_224() -> ModelConfig:
    """Vim-B: 97,598,440 parameters, 81.9 %."""
    return VimConfig(dim=768, init="official", crop_pct=0.9)


def vim_tiny_patch16_stride8_224() -> ModelConfig:
    """Vim-T with overlapping patches: 7,250,344 parameters, 78.3 %."""
    return VimConfig(stride=8, init="official", crop_pct=0.9)


def vim_small_patch16_stride8_224() -> ModelConfig:
    """Vim-S with overlapping patches: 26,001,256 parameters, 81.6 %."""
    return VimConfig(dim=384, stride=8, init="official", crop_pct=0.9)


def vim_micro_patch4_32() -> ModelConfig:
    """A Vim for pictures of 32 pixels: 64 tokens, 8 blocks."""
    return VimConfig(image=(32, 32), patch=4, stride=4, dim=128, depth=8, mean=HALF_MEAN, std=HALF_STD)


def vim_micro_patch8_64() -> ModelConfig:
    """A Vim for pictures of 64 pixels: 225 overlapping patches, 8 blocks."""
    return VimConfig(image=(64, 64), patch=8, stride=4, dim=128, depth=8, mean=HALF_MEAN, std=HALF_STD)


def vim_test_patch4_16() -> ModelConfig:
    """A Vim for tests and first tries: 16 pixels, 2 blocks."""
    return VimConfig(image=(16, 16), patch=4, stride=4, dim=16, depth=2, d_state=4, mean=HALF_MEAN, std=HALF_STD)


def mambavision_t() -> ModelConfig:
    """MambaVision-T: 31,794,248 parameters, 82.3 %."""
    return MambaVisionConfig(drop_path=0.2)


def mambavision_t2() -> ModelConfig:
    """MambaVision-T2: 35,104,008 parameters, 82.7 %."""
    return MambaVisionConfig(depths=(1, 3, 11, 4), drop_path=0.2, crop_pct=0.98)


def mambavision_s() -> ModelConfig:
    """MambaVision-S: 50,140,584 parameters, 83.3 %."""
    return MambaVisionConfig(dim=96, in_dim=64, depths=(3, 3, 7, 5), drop_path=0.2, crop_pct=0.93)


def mambavision_b() -> ModelConfig:
    """MambaVision-B: 97,685,288 parameters, 84.2 %."""
    return MambaVisionConfig(dim=128, in_dim=64, depths=(3, 3, 10, 5), layer_scale=1e-5, drop_path=0.3)


def mambavision_l() -> ModelConfig:
    """MambaVision-L: 227,961,048 parameters, 85.0 %."""
    return _large((3, 3, 10, 5))


def mambavision_l2() -> ModelConfig:
    """MambaVision-L2: 241,554,824 parameters, 85.3 %."""
    return _large((3, 3, 12, 5))


def _large(depths: tuple[int, ...]) -> ModelConfig:
    return MambaVisionConfig(dim=196, in_dim=64, depths=depths, heads=(4, 8, 16, 32), layer_scale=1e-5, drop_path=0.3)


def mambavision_micro_32() -> ModelConfig:
    """A MambaVision for pictures of 32 pixels: maps of 16, 8, 4 and 2 tokens a side."""
    return MambaVisionConfig(
        image=(32, 32),
        dim=32,
        in_dim=16,
        depths=(1, 1, 4, 2),
        heads=(1, 2, 4, 8),
        windows=(8, 8, 8, 4),
        stem_strides=(1, 1),
        dt_bias_twice=False,
        mean=HALF_MEAN,
        std=HALF_STD,
    )


def mambavision_micro_64() -> ModelConfig:
    """`mambavision_micro_32` for pictures of 64 pixels: the stem halves them first."""
    small = mambavision_micro_32()
    assert isinstance(small, MambaVisionConfig)
    return MambaVisionConfig(**{**small.to_dict(), "image": (64, 64), "stem_strides": (2, 1)})


def mambavision_test_32() -> ModelConfig:
    """A MambaVision for tests and first tries: 32 pixels, 7 blocks."""
    return MambaVisionConfig(
        image=(32, 32),
        dim=8,
        in_dim=8,
        depths=(1, 1, 3, 2),
        heads=(1, 2, 4, 8),
        windows=(4, 4, 4, 2),
        stem_strides=(2, 1),
        mlp_ratio=2.0,
        d_state=4,
        dt_bias_twice=False,
        mean=HALF_MEAN,
        std=HALF_STD,
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    make.__name__: make
    for make in (
        vim_tiny_patch16_224,
        vim_small_patch16_224,
        vim_base_patch16_224,
        vim_tiny_patch16_stride8_224,
        vim_small_patch16_stride8_224,
        vim_micro_patch4_32,
        vim_micro_patch8_64,
        vim_test_patch4_16,
        mambavision_t,
        mambavision_t2,
        mambavision_s,
        mambavision_b,
        mambavision_l,
        mambavision_l2,
        mambavision_micro_32,
        mambavision_micro_64,
        mambavision_test_32,
    )
}


def preset(name: str) -> ModelConfig:
    """Return the configuration of a named network.

    Raises:
        ValueError: No such name; the message gives the nearest ones.
    """
    if name not in PRESETS:
        close = get_close_matches(name.lower().replace("-", "_"), PRESETS, n=3, cutoff=0.4)
        hint = f"nearest are {', '.join(close)}" if close else f"known are {', '.join(PRESETS)}"
        raise ValueError(f"preset: unknown network {name!r}; {hint}")
    return PRESETS[name]()
