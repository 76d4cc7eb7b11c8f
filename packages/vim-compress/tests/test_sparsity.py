"""Schedules, masks, early-bird tickets, and what stays zero while a network trains."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
import vim_compress.models  # noqa: F401  (registers the networks)
from torch.optim.swa_utils import AveragedModel
from vim_compress.earlybird import EarlyBird, gate_mask, mask_distance
from vim_compress.masks import choose, layer_rates, load_masks, prunable, save_masks, sparsity_of
from vim_compress.pruner import Pruner
from vim_compress.recipes import tiny
from vim_compress.sparsity import SparsityConfig, regrow_at, sparsity_at


@pytest.mark.parametrize("schedule", ["cosine", "cubic"])
def test_schedules_are_the_published_ones(golden, schedule):
    case = golden("vim_pruning_schedule")
    cfg = SparsityConfig(score="magnitude", schedule=schedule, start=10, end=70, final=0.6)
    found = [sparsity_at(float(epoch), cfg) for epoch in case.tensors["input.epoch"]]
    np.testing.assert_allclose(found, case.tensors[f"output.{schedule}"].numpy(), atol=1e-6)


def test_cosine_at_epoch_29_is_what_the_origin_logged():
    assert abs(sparsity_at(29, SparsityConfig(start=10, end=70, final=0.6)) - 0.1366) < 1e-4


@pytest.mark.parametrize("schedule", ["const", "linear", "cosine", "cubic"])
def test_schedules_rise_from_first_to_final(schedule):
    cfg = SparsityConfig(schedule=schedule, first=0.1, final=0.7, start=5, end=50)
    values = [sparsity_at(step, cfg) for step in range(60)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.1)
    assert values[-1] == values[50] == pytest.approx(0.7)


def test_half_way_cubic_has_pruned_more_than_cosine():
    half = {s: sparsity_at(50, SparsityConfig(schedule=s, final=0.8, end=100)) for s in ("cosine", "cubic")}
    assert half["cosine"] == pytest.approx(0.4)
    assert half["cubic"] == pytest.approx(0.7)


def scores():
    torch.manual_seed(0)
    return {"a.weight": torch.rand(40, 10), "b.weight": torch.rand(20, 30) + 0.5, "head.weight": torch.rand(5, 20)}


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_masks_have_exactly_the_wanted_number_of_zeros(scope, sparsity):
    masks = choose(scores(), sparsity, scope)
    if scope == "layer":
        assert all(int((~m).sum()) == round(sparsity * m.numel()) for m in masks.values())
    else:
        assert abs(sparsity_of(masks) - sparsity) < 3 / 1100
    ranked = scores()
    for name, mask in masks.items():
        if scope != "global" and mask.any() and not mask.all():
            assert ranked[name][mask].min() >= ranked[name][~mask].max()


def test_scopes_differ_as_they_should():
    masks = choose(scores(), 0.5, "global")
    assert masks["b.weight"].float().mean() > masks["a.weight"].float().mean()  # its scores are higher
    shapes = {n: s.shape for n, s in scores().items()}
    rates = layer_rates(shapes, 0.5, "erk")
    assert rates["b.weight"] > rates["a.weight"] > rates["head.weight"]  # larger layers lose more
    assert layer_rates(shapes, 0.6, "layer", head_factor=0.5)["head.weight"] == pytest.approx(0.3)


def test_masks_nest():
    first = choose(scores(), 0.3, "layer")
    other = {n: torch.rand_like(s) for n, s in scores().items()}
    second = choose(other, 0.6, "layer", before=first)
    assert all(not (second[n] & ~first[n]).any() for n in first)


def test_mask_files_round_trip(tmp_path):
    masks = choose(scores(), 0.5, "global")
    save_masks(tmp_path / "m.safetensors", masks, {"step": 3})
    assert all(torch.equal(masks[n], m) for n, m in load_masks(tmp_path / "m.safetensors").items())
    assert not list(tmp_path.glob("*.tmp"))


def test_what_may_be_pruned_leaves_the_recurrence_alone():
    names = set(prunable(timm.create_model("vim_test_patch4_16")))
    assert {"head.weight", "patch_embed.proj.weight", "layers.0.mixer.in_proj.weight"} <= names
    assert not [n for n in names if any(part in n for part in ("dt_proj", "A_log", ".D", "norm", "pos_embed", "bias"))]


def run_steps(sparsity, steps, *, score_model=None, gates=False):
    """Train a tiny network on noise with a pruner; return model, average, optimizer and pruner."""
    torch.manual_seed(0)
    model = timm.create_model("vim_test_patch4_16", num_classes=3, gates=gates)
    average = AveragedModel(model, use_buffers=True)
    cfg = replace(tiny(), sparsity=sparsity)
    pruner = Pruner(cfg, model, average.module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(1, steps + 1):
        x, label = torch.randn(4, 3, 16, 16), torch.randint(3, (4,))
        torch.nn.functional.cross_entropy(model(x), label).backward()
        pruner.gradients()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        pruner.after(step, optimizer, None)
        check_zero(model, average, optimizer, pruner)
    return model, average, optimizer, pruner


def check_zero(model, average, optimizer, pruner):
    parameters, averaged = dict(model.named_parameters()), dict(average.module.named_parameters())
    for name, mask in pruner.masks.items():
        assert not parameters[name][~mask].any()
        assert not averaged[name][~mask].any()
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not optimizer.state[parameters[name]][moment][~mask].any()


@pytest.mark.parametrize("score", ["magnitude", "taylor", "gradient", "rms_gradient", "random"])
def test_masked_weights_moments_and_averages_stay_zero(score):
    cfg = SparsityConfig(score=score, final=0.5, end=6, update_every=2, scope="layer", head_factor=1.0)
    _, _, _, pruner = run_steps(cfg, 9)
    assert abs(pruner.sparsity() - 0.5) < 0.01


@pytest.mark.parametrize("regrow", ["grad", "magnitude"])
def test_regrowth_exchanges_weights_at_the_same_sparsity(regrow):
    cfg = SparsityConfig(score="magnitude", final=0.5, schedule="const", end=20, update_every=2, regrow=regrow)
    torch.manual_seed(0)
    _, _, _, pruner = run_steps(cfg, 4)
    before = {n: m.clone() for n, m in pruner.masks.items()}
    _, _, _, pruner = run_steps(cfg, 6)
    assert any((pruner.masks[n] & ~before[n]).any() for n in before)
    assert abs(pruner.sparsity() - sparsity_of(before)) < 1e-6
    assert regrow_at(0, cfg) == pytest.approx(0.3)
    assert regrow_at(10, cfg) == pytest.approx(0.15)
    assert regrow_at(20, cfg) == 0.0


def test_without_regrowth_nothing_comes_back():
    cfg = SparsityConfig(score="magnitude", final=0.6, end=8, update_every=2)
    history = [run_steps(cfg, n)[3].masks for n in (2, 4, 8)]
    for earlier, later in pairwise(history):
        assert all(not (later[n] & ~earlier[n]).any() for n in later)


def test_pruner_resumes():
    cfg = SparsityConfig(score="taylor", final=0.5, end=6, update_every=3, regrow="grad")
    _, _, _, pruner = run_steps(cfg, 5)
    _, _, _, other = run_steps(cfg, 0)
    other.load_state_dict(pruner.state_dict())
    assert all(torch.equal(other.masks[n], pruner.masks[n]) for n in pruner.masks)
    assert all(torch.equal(other.sums[n], pruner.sums[n]) for n in pruner.sums)
    assert (other.count, other.ticket_step) == (pruner.count, pruner.ticket_step)


def test_taylor_score_on_a_quadratic_is_the_analytic_value():
    """Loss 1/2 a (w - m)^2: the gradient is a (w - m), the score |w a (w - m)|."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False))
    a, m = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -1.0, 2.0])
    cfg = replace(tiny(), sparsity=SparsityConfig(score="taylor", end=10))
    pruner = Pruner(cfg, model, model)
    w = model[0].weight
    (0.5 * a * (w[0] - m) ** 2).sum().backward()
    pruner.gradients()
    wanted = (w * a * (w - m)).abs()
    assert torch.allclose(pruner.scores(1)["0.weight"], wanted.detach(), atol=1e-6)


def test_gates_are_pulled_towards_zero():
    pulled = run_steps(SparsityConfig(gate_l1=0.1), 5, gates=True)[0]
    free = run_steps(SparsityConfig(), 5, gates=True)[0]
    assert pulled.layers[0].mixer.gate.abs().sum() < free.layers[0].mixer.gate.abs().sum()
    with pytest.raises(ValueError, match=r"model.gates"):
        run_steps(SparsityConfig(gate_l1=0.1), 1)


@pytest.mark.parametrize("script", ["drift", "steady", "never"])
def test_early_bird_fires_when_the_reference_does(golden, script):
    case = golden("vim_early_bird")
    watch = EarlyBird()
    wanted = case.tensors[f"output.{script}.newest_to_queue"]
    for number, mask in enumerate(case.tensors[f"input.{script}.masks"]):
        distances = watch.add(mask)
        if wanted[number].min() >= 0:  # the reference has no distances while its queue is short
            np.testing.assert_allclose(distances, wanted[number].numpy(), atol=1e-6)
    first = int(case.tensors[f"output.{script}.first_fire_index"][0])
    assert watch.fired == (None if first < 0 else first + 1)


def test_early_bird_needs_five_masks_and_survives_an_interruption():
    mask, watch = torch.ones(10, dtype=torch.bool), EarlyBird()
    for _ in range(4):
        watch.add(mask)
    assert watch.fired is None
    other = EarlyBird()
    other.load_state_dict(watch.state_dict())
    other.add(mask)
    assert other.fired == 5


def test_mask_distance_is_a_share():
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert mask_distance(a, a) == 0
    assert mask_distance(a, b) == 0.5
    assert mask_distance(a, ~a) == 1
    with pytest.raises(ValueError, match="shape"):
        mask_distance(a, b[:2])


def test_gate_masks_rank_over_all_layers():
    kept = gate_mask({"a": torch.tensor([3.0, -0.1, 2.0]), "b": torch.tensor([0.2, -5.0])}, 0.4)
    assert kept.tolist() == [True, False, True, False, True]


def test_ticket_ends_the_search():
    cfg = SparsityConfig(gate_l1=1e-4, ticket=0.5, ticket_every=1)
    _, _, _, pruner = run_steps(cfg, 7, gates=True)
    assert pruner.watch.seen >= 5
    assert pruner.stops == (pruner.ticket_step is not None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"score": "luck"}, "one of none, magnitude"),
        ({"final": 1.0}, r"in \[0, 1\)"),
        ({"first": 0.7, "final": 0.5}, "at most final"),
        ({"start": 5, "end": 5}, "below end"),
        ({"regrow": "grad"}, "without a score"),
        ({"update_every": 0}, "at least 1"),
    ],
)
def test_contradictions_are_one_line(values, said):
    with pytest.raises(ValueError, match=said):
        SparsityConfig(**values)


def test_cosine_is_a_cosine():
    cfg = SparsityConfig(final=0.8, start=0, end=8)
    assert sparsity_at(2, cfg) == pytest.approx(0.4 * (1 - math.cos(math.pi / 4)))
