"""Decoding: the steps of diffusers' scheduler under one generator, what stays, what order, what guidance means."""

from dataclasses import replace

import pytest
import torch
from diffusers import AmusedScheduler
from muse_mamba.config import model_preset
from muse_mamba.decoding import DecodeOptions, decode, draw_tokens, guided_logits, halton_ranks, hidden_share
from muse_mamba.model import TokenModel
from muse_mamba.scheduler import MuseMambaScheduler

V = 32


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize("grid", [False, True])
def test_steps_are_those_of_amused(schedule, steps, grid):
    ours = MuseMambaScheduler(mask_token_id=V, masking_schedule=schedule)
    theirs = AmusedScheduler(mask_token_id=V, masking_schedule=schedule)
    shape = (3, 8, 8) if grid else (3, 64)
    samples = [torch.full(shape, V), torch.full(shape, V)]
    generators = [torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)]
    noise = torch.Generator().manual_seed(4)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps, temperature=(2, 0))
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for timestep in ours.timesteps:
        logits = torch.randn((3, V, 8, 8) if grid else (3, 64, V), generator=noise) * 2
        outputs = [
            scheduler.step(logits, timestep, sample, 1.0, generator)
            for scheduler, sample, generator in zip((ours, theirs), samples, generators, strict=True)
        ]
        assert torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)
        assert torch.equal(outputs[0].pred_original_sample, outputs[1].pred_original_sample)
        samples = [output.prev_sample for output in outputs]
    assert not (samples[0] == V).any()


def test_scheduler_is_saved_with_its_settings(tmp_path):
    scheduler = MuseMambaScheduler(mask_token_id=7, order="halton", top_k=3, sample_temperature=0.5)
    scheduler.save_pretrained(tmp_path)
    again = MuseMambaScheduler.from_pretrained(tmp_path)
    again.set_timesteps(4, temperature=(3.0, 1.0))
    assert again.config["mask_token_id"] == 7
    assert again.options() == DecodeOptions(
        steps=4, order="halton", top_k=3, sample_temperature=0.5, mask_temperature=(3.0, 1.0)
    )


def test_share_falls_from_almost_all_to_none():
    for schedule in ("cosine", "linear"):
        shares = [hidden_share(step, 18, schedule) for step in range(18)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 0.9
        assert shares[-1] == pytest.approx(0, abs=1e-6)
    counts = [int(256 * hidden_share(step, 18, "cosine")) for step in range(3)]
    assert counts == [255, 252, 247]


def test_halton_order_covers_every_quarter_early():
    ranks = halton_ranks(8, 8)
    assert sorted(ranks.tolist()) == list(range(64))
    early = (ranks.view(8, 8) < 8).float()
    quarters = early.view(2, 4, 2, 4).sum((1, 3))
    assert quarters.min() >= 1


def test_top_k_and_temperature_zero():
    logits = torch.randn(2, 9, V)
    likeliest, _ = draw_tokens(logits, DecodeOptions(sample_temperature=0), None)
    assert torch.equal(likeliest, logits.argmax(-1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn, odds = draw_tokens(logits, DecodeOptions(top_k=3), generator)
        best = logits.topk(3, -1).indices
        assert (best == drawn[..., None]).any(-1).all()
    torch.testing.assert_close(odds, logits.softmax(-1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TokenModel(replace(model_preset("tiny"), method="mamba-xattn")).eval()


def texts(model, rows=2):
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(rows, 3, model.config.text_dim, generator=generator)
    return text, torch.ones(rows, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"order": "halton"},
        {"order": "random"},
        {"guidance": 1.0},
        {"guidance_ramp": True},
        {"revise": True},
        {"top_k": 2, "sample_temperature": 0.5},
        {"steps": 1},
        {"steps": 40},
    ],
    ids=str,
)
def test_every_token_is_settled_and_the_seed_decides(model, fields):
    options = DecodeOptions(**{"steps": 5, **fields})
    text, mask = texts(model)
    made = [decode(model, text, mask, options, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].shape == (2, model.config.length)
    assert ((made[0] >= 0) & (made[0] < model.config.vocab)).all()
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_given_tokens_stay(model):
    text, mask = texts(model)
    start = torch.full((2, model.config.length), model.config.vocab)
    start[:, ::3] = 5
    for fields in ({}, {"revise": True}, {"order": "halton"}):
        made = decode(model, text, mask, DecodeOptions(steps=4, **fields), ids=start)
        assert (made[:, ::3] == 5).all()
        assert (made < model.config.vocab).all()


def test_callback_is_told_every_step(model):
    seen = []
    text, mask = texts(model)
    decode(model, text, mask, DecodeOptions(steps=4), callback=lambda step, ids: seen.append((step, ids.clone())))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert all((ids < model.config.vocab).all() for _, ids in seen)


def test_guidance_moves_away_from_no_text_or_the_negative_one(model):
    text, mask = texts(model)
    ids = torch.full((2, model.config.length), model.config.vocab)
    with torch.no_grad():
        told, untold = model(ids, text, mask).logits, model(ids, None).logits
        other = text.flip(0)
        negative = model(ids, other, mask).logits
        torch.testing.assert_close(
            guided_logits(model, ids, text, mask, 3.0)[0], untold + 3 * (told - untold), rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            guided_logits(model, ids, text, mask, 2.0, negative=(other, mask))[0],
            negative + 2 * (told - negative),
            rtol=1e-3,
            atol=1e-4,
        )
        torch.testing.assert_close(guided_logits(model, ids, text, mask, 1.0)[0], told, rtol=1e-4, atol=1e-5)


def test_guidance_ramp():
    options = DecodeOptions(steps=5, guidance=5.0, guidance_ramp=True)
    assert [options.guidance_at(step) for step in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("critic", ["self", "transformer", "mamba"])
def test_critic_decides_what_is_hidden_again(critic):
    torch.manual_seed(0)
    model = TokenModel(replace(model_preset("tiny"), critic=critic, critic_depth=1)).eval()
    text, mask = texts(model)
    start = torch.full((2, model.config.length), model.config.vocab)
    start[:, 0] = 3
    made = decode(model, text, mask, DecodeOptions(steps=4), ids=start)
    assert (made < model.config.vocab).all()
    assert (made[:, 0] == 3).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance": -1}, "guidance must be at least 0"),
        ({"order": "haltn"}, "did you mean halton"),
        ({"mask_temperature": (1,)}, "two numbers"),
    ],
)
def test_options_without_a_meaning(fields, message):
    with pytest.raises(ValueError, match=message):
        DecodeOptions(**fields)


def test_steps_for_a_recording_are_those_of_decode(model):
    """What the benchmark records never asks the device, and draws the same tokens."""
    from muse_mamba.benchmark import every_step

    config = model.config
    text, mask = torch.randn(2, 5, config.text_dim), torch.ones(2, 5, dtype=torch.bool)
    options = DecodeOptions(steps=5)
    torch.manual_seed(1)
    expected = decode(model, text, mask, options)
    torch.manual_seed(1)
    assert torch.equal(every_step(model, text, mask, options), expected)
    assert not (expected == config.vocab).any()


def test_logits_that_are_not_finite_are_refused():
    """Activations that leave the range of float16 end in one line, not in an error of the random numbers."""
    torch.manual_seed(0)
    model = TokenModel(model_preset("tiny", "mamba-xattn")).eval()
    text, mask = torch.randn(1, 5, model.config.text_dim), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        model.norm.weight.mul_(1e5)
    decode(model, text, mask, DecodeOptions(steps=2))
    with pytest.raises(ValueError, match=r"logits must be finite, got NaN or infinity, states in torch\.float16; run"):
        decode(model.half(), text, mask, DecodeOptions(steps=2))
