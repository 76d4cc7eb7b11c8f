"""Networks are what they are said to be: parameter totals, and contradictions that are refused."""

import dataclasses

import pytest
import torch
from mamba_diffusion.config import PRESETS, ModelConfig, preset
from mamba_diffusion.model import SparseField
from mamba_diffusion.recipes import RECIPES, recipe

TOTALS = {
    "v1-legacy": 28_574_819,
    "v2-legacy": 10_930_563,
    "v1": 13_328_387,
    "v2": 5_878_019,
    "v4": 5_662_211,
    "v4-small": 976_387,
    "ours": 971_139,
    "ours-scalar": 968_449,
}


def count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SparseField(config).parameters())


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_are_exact(name):
    assert count(preset(name)) == TOTALS[name]


def test_transformer_at_the_seeds_width():
    assert count(dataclasses.replace(preset("v4"), width=512)) == 22_072_323


def test_custom_depth_of_the_seed_works():
    """12 layers, 3 iterations, 16 heads, with the origin's blocks: the total that its code has."""
    custom = dataclasses.replace(preset("v2-legacy"), layers=12, iterations=3, heads=16)
    assert count(custom) == 15_999_683


@pytest.mark.parametrize("name", PRESETS)
def test_configuration_round_trips(name):
    assert ModelConfig.from_dict(preset(name).to_dict()) == preset(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "v2", "layers": 9, "width": 96, "noise_length": 0.0}, "layers must be even.*take 8 or 10"),
        ({"heads": 5}, "width must be a multiple of heads=5, got 96"),
        ({"dims": 4}, "dims must be 1, 2 or 3, got 4"),
        ({"kind": "v3"}, "kind must be one of v1, v2, v4, ours, got v3"),
        ({"periodic": (True,)}, "periodic must be empty or one value an axis"),
        ({"mixer": "mamba2"}, "mixer must be mamba"),
        ({"length": 0.0}, "length must be above 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"layers": 0}, "layers must be a whole number of at least 1"),
    ],
)
def test_contradictions_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(preset("ours"), **change)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="did you mean v2-legacy"):
        preset("v2_legac")
    with pytest.raises(ValueError, match="unknown field 'widht'; did you mean width"):
        ModelConfig.from_dict({"widht": 3})
    with pytest.raises(ValueError, match="known are ours"):
        recipe("nothing")


@pytest.mark.parametrize("name", RECIPES)
def test_every_run_can_be_made(name):
    cfg = recipe(name)
    assert cfg.to_dict()["model"] == cfg.model.to_dict()


def test_the_seeds_settings():
    """1000 epochs of 50,000 pictures, batch 64, rate 1e-4, saved every 10 epochs, pictured every 50, 204 points."""
    cfg = recipe("v2-seed")
    assert (cfg.steps, cfg.global_batch, cfg.lr, cfg.save_every, cfg.sample_every) == (782_000, 64, 1e-4, 7_820, 39_100)
    assert (cfg.queries, round(cfg.sensors[0] * 32 * 32)) == ((204,), 205)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sensors": (0.5, 0.2)}, "sensors must be two shares"),
        ({"sensors": (0.001, 0.2)}, "sensors must be at least 4 points"),
        ({"min_valid": 0.2}, "min_valid must be at least the largest share of sensors"),
        ({"sides": ()}, "sides must be whole numbers"),
        ({"queries": (0,)}, "queries must be whole numbers"),
        ({"global_batch": 3}, "global_batch must be a multiple of"),
        ({"subject": "sound"}, "subject must be one of rgb"),
    ],
)
def test_runs_that_contradict_themselves(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(recipe("tiny"), **change)
