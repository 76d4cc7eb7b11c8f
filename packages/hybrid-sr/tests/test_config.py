"""Configurations: what is refused, and that they survive JSON."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from hybrid_sr.config import PRESETS, ModelConfig, preset

SCALES = (2, 3, 4)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", SCALES)
def test_presets_survive_json(name, scale):
    config = preset(name, scale)
    assert config.scale == scale
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_lists_become_tuples():
    config = ModelConfig(scale=2, depths=[1, 2], rgb_mean=[0.0, 0.0, 0.0])  # pyright: ignore[reportArgumentType]
    assert config.depths == (1, 2)
    assert hash(config) == hash(ModelConfig(scale=2, depths=(1, 2), rgb_mean=(0.0, 0.0, 0.0)))


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        preset("tiny", 2).scale = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("scale", (1, 2, 3, 4, 5, 6, 7, 8))
def test_direct_upsampler_takes_every_scale(scale):
    assert preset("contrast-no-pe-no-cab", scale).scale == scale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0}, "scale must be a whole number of at least 1, got 0"),
        ({"scale": 9}, "scale must be from 1 to 8, got 9"),
        ({"scale": True}, "scale must be a whole number"),
        ({"upsampler": "pixelshuffle", "scale": 5}, r"scale must be one of \(1, 2, 3, 4, 8\)"),
        ({"depths": ()}, "depths must be a non-empty tuple"),
        ({"depths": (6, 0)}, "depths must be a non-empty tuple"),
        ({"dim": 50}, "dim must be a multiple of heads=6, got 50"),
        ({"window": 0}, "window must be a whole number"),
        (
            {"overlap_ratio": 0.0},
            r"overlap_ratio must be .* even and positive",
        ),
        ({"window": 10}, "overlap_ratio must be such that"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be at least"),
        ({"ssm_ratio": -1.0}, "ssm_ratio must be at least"),
        ({"ffn": "spatial-gate", "dim": 54, "mlp_ratio": 1.5}, "mlp_ratio must be such that dim"),
        ({"channel_attention": True, "squeeze_factor": 60}, "squeeze_factor must be at most dim=54, got 60"),
        ({"mixer": "mamba"}, "mixer must be one of ss2d, attention, ssd, got 'mamba'"),
        ({"ffn": "conv"}, "ffn must be one of mlp, dwconv, geglu, gated-conv, spatial-gate"),
        ({"position": "learned"}, "position must be one of table, dynamic, none"),
        ({"upsampler": "nearest"}, "upsampler must be one of direct, pixelshuffle"),
        ({"position": "dynamic", "mixer": "attention"}, "position must be 'table' or 'none'"),
        ({"position": "table", "overlap_attention": False}, "position must be 'none' without any attention"),
        ({"rotated_overlap_index": True}, "rotated_overlap_index must be False unless"),
        ({"rgb_mean": (0.4, 0.4)}, "rgb_mean must be three numbers"),
    ],
)
def test_contradictions_are_refused(changes, message):
    values = {"scale": 2} | changes
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


def test_replace_validates_too():
    with pytest.raises(ValueError, match="dim must be a multiple"):
        replace(preset("tiny", 2), dim=13)


def test_unknown_and_missing_fields():
    with pytest.raises(ValueError, match="unknown field 'dims'; did you mean dim"):
        ModelConfig.from_dict({"scale": 2, "dims": 4})
    with pytest.raises(ValueError, match="'scale' is missing"):
        ModelConfig.from_dict({})


def test_unknown_preset_names_the_closest_and_all():
    with pytest.raises(ValueError, match=r"did you mean hat-light\? known are contrast-baseline, .*, tiny"):
        preset("HAT_lite", 4)


def test_config_does_not_import_torch():
    """`--help` answers fast only as long as this holds."""
    code = "import sys, hybrid_sr.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
