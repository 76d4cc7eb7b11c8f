"""Costs of the networks: the published table of parameters, multiply-adds and scan operations."""

from dataclasses import replace

import pytest
import torch
from hybrid_sr.config import preset
from hybrid_sr.info import model_info, parameter_parts
from hybrid_sr.model import HybridSR

TABLE = {  # preset -> parameters, G multiply-adds, G scan operations; x4, low-resolution image of 192 x 320
    "contrast-baseline": (745_572, 52.8, 2.1),
    "contrast-no-pe": (718_194, 52.8, 2.1),
    "contrast-no-pe-no-cab": (764_202, 60.3, 3.2),
    "mamba": (759_108, 44.8, 3.2),
    "hat-light": (771_099, 72.4, 0.0),
    "contrast-s": (7_550_007, 545.9, 13.3),
}


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    info = model_info(name, 4)
    parameters, macs, scan_ops = TABLE[name]
    assert (info["preset"], info["scale"], info["input"]) == (name, 4, [192, 320])
    assert info["parameters"] == parameters
    assert round(info["macs"] / 1e9, 1) == macs
    assert round(info["scan_ops"] / 1e9, 1) == scan_ops


def test_size_is_counted_after_padding():
    assert model_info("hat-light", 4, 180, 320)["macs"] == model_info("hat-light", 4)["macs"]
    half, whole = model_info("mamba", 2, 96, 320), model_info("mamba", 2)
    assert (2 * half["macs"], 2 * half["scan_ops"]) == (whole["macs"], whole["scan_ops"])


def test_window_attention_is_counted():
    """One overlapping attention: 2 products of 16 x 16 queries with 24 x 24 keys over all channels, per window."""
    config = preset("contrast-no-pe-no-cab", 2)
    with_attention = model_info(replace(config, depths=(1,)), 2, 16, 16)
    without = model_info(replace(config, depths=(1,), overlap_attention=False), 2, 16, 16)
    linear = 256 * (4 * 54 * 54 + 4 * 54 * 54)  # qkv, proj, feed-forward
    assert with_attention["macs"] - without["macs"] == 2 * 256 * 576 * 54 + linear


def test_scan_rule():
    assert model_info("tiny", 2, 8, 8)["scan_ops"] == 3 * 10 * 4 * 12 * 64


def test_parts_add_up():
    model = HybridSR(preset("tiny", 2))
    parts = parameter_parts(model)
    top = sum(v for k, v in parts.items() if isinstance(v, int) and k != "group_conv")
    assert top + sum(parts["groups"]) == sum(p.numel() for p in model.parameters())
    for name in ("block", "overlap"):
        inside = dict(parts[name])
        assert inside.pop("total") == sum(inside.values())
    assert parts["groups"][0] == 2 * parts["block"]["total"] + parts["overlap"]["total"] + parts["group_conv"]


def test_nothing_is_allocated():
    """A network and picture of many gigabytes are counted in no memory."""
    config = replace(preset("contrast-s", 4), dim=6000, depths=(1,))
    assert model_info(config, 4, 100_000, 100_000)["parameters"] > 10**9
    assert torch.get_default_device().type == "cpu"


def test_custom_configuration_and_errors():
    assert model_info(preset("hat-light", 3), 3, 16, 16)["preset"] == "hat-light"
    assert model_info(replace(preset("hat-light", 3), window=8), 3, 16, 16)["preset"] == "custom"
    with pytest.raises(ValueError, match="height and width must be at least 1"):
        model_info("tiny", 2, 0, 5)
    with pytest.raises(ValueError, match="scale must be 2"):
        model_info(preset("tiny", 2), 4)
    with pytest.raises(ValueError, match="unknown name"):
        model_info("huge", 2)
