"""Every way of mixing text in, under one contract; and what each starts as."""

from dataclasses import replace

import pytest
import torch
from muse_mamba.config import CONCATENATED, METHODS, ModelConfig, model_preset, study_model
from muse_mamba.model import TokenModel

B, T = 3, 4
VARIANTS = {
    "parallel-mul-last": {"method": "parallel", "merge": "mul", "align": "last"},
    "parallel-weighted-pad-one": {
        "method": "parallel",
        "merge": "weighted",
        "align": "pad",
        "parallel_text_depth": "one",
    },
    "text-b-pooled": {"method": "text-b", "text_summary": "pooled"},
    "text-d-attn": {"method": "text-d", "text_summary": "attn"},
    "attn-xz-interleave": {"method": "attn-xz", "attn_repeat": "interleave"},
    "text-skip-gate": {"method": "text-skip", "skip_gate": True},
    "hybrid-every-block": {"method": "hybrid", "attention_every": 1},
    "layer-critic-narrow": {"method": "layer-critic", "layer_critic_dim": 8},
    "concat-both-ways": {"method": "concat", "direction": "bidirectional"},
    "text-a-both-ways": {"method": "text-a", "direction": "bidirectional"},
    "text-state-both-ways": {"method": "text-state", "direction": "bidirectional"},
    "mamba2-both-ways": {"method": "mamba2-xattn", "direction": "bidirectional"},
    "self-conditioning": {"self_conditioning": True},
    "geglu": {"channel_mixer": "geglu"},
    "einfft": {"channel_mixer": "einfft"},
}
FIRST_MIXED = {f"{m}-first-mixed": {"method": m, "text_layers": "first", "text_mixer": "mamba1"} for m in METHODS}
CASES = {method: {"method": method} for method in METHODS} | VARIANTS | FIRST_MIXED


def config_of(case):
    return replace(model_preset("tiny"), **CASES[case])


def make(config, seed=0):
    """A model whose parts that start at zero have been moved, so that they show."""
    torch.manual_seed(seed)
    model = TokenModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
        if model.over_positions is not None:
            model.over_positions.weight.add_(0.2 * torch.randn_like(model.over_positions.weight))
    return model


def inputs(config, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab + 1, (B, config.length), generator=generator)
    text = torch.randn(B, T, config.text_dim, generator=generator)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])
    return ids, text, mask


@pytest.mark.parametrize("case", CASES)
def test_contract(case):
    """Shapes; text matters; pads, wherever they are, do not; rows do not mix; no text is dropped text; gradients."""
    config = config_of(case)
    model = make(config)
    ids, text, mask = inputs(config)
    with torch.no_grad():
        logits = model(ids, text, mask).logits
        assert logits.shape == (B, config.length, config.vocab)
        assert torch.isfinite(logits).all()
        other = model(ids, text.roll(1, 0), mask).logits
        assert (other - logits).abs().amax((1, 2)).min() > 1e-5

        filled = torch.cat([text, torch.full((B, 2, config.text_dim), 9.0)], 1)
        longer = torch.cat([mask, mask.new_zeros(B, 2)], 1)
        torch.testing.assert_close(model(ids, filled, longer).logits, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model(ids, filled.roll(2, 1), longer.roll(2, 1)).logits, logits, rtol=1e-4, atol=1e-5
        )

        order = torch.tensor([2, 0, 1])
        permuted = model(ids[order], text[order], mask[order]).logits
        torch.testing.assert_close(permuted, logits[order], rtol=1e-4, atol=1e-5)

        nothing = model(ids, None).logits
        dropped = model(ids, text, mask, drop=torch.ones(B, dtype=torch.bool)).logits
        torch.testing.assert_close(nothing, dropped, rtol=1e-4, atol=1e-5)
        partly = model(ids, text, mask, drop=torch.tensor([True, False, False])).logits
        torch.testing.assert_close(partly[1:], logits[1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(partly[0], nothing[0], rtol=1e-4, atol=1e-5)

    drop = torch.tensor([True, False, False])
    predicted = model(ids, text, mask, drop=drop, previous=torch.randn(B, config.length, config.dim))
    loss = predicted.logits.square().mean() + sum(layer.logits.square().mean() for layer in predicted.judged)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("case", ["transformer", "mamba-xattn", "concat", "text-a", "parallel", "layer-critic"])
def test_recomputing_activations_changes_nothing(case):
    config = config_of(case)
    model = make(config)
    ids, text, mask = inputs(config)
    results = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        loss = model(ids, text, mask).logits.square().mean()
        loss.backward()
        results.append((loss.detach(), model.embedding.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def base_logits(case, ids):
    """Logits of a model whose scans, embeddings and head are the same for every case with the same sizes."""
    config = replace(config_of(case), direction="causal")
    torch.manual_seed(0)
    model = TokenModel(config).eval()
    torch.manual_seed(7)
    shared = TokenModel(replace(model_preset("tiny"), method="text-skip", direction="causal")).state_dict()
    model.load_state_dict({k: v for k, v in shared.items() if k in model.state_dict()}, strict=False)
    return model, config


@pytest.mark.parametrize(
    "case",
    ["attn-xz", "text-a", "text-b", "text-c", "text-d", "text-d-attn", "text-state", "text-skip", "concat-seq-in"],
)
def test_new_model_is_the_one_without_text(case):
    ids, text, mask = inputs(model_preset("tiny"))
    reference, _ = base_logits("text-skip", ids)
    model, _ = base_logits(case, ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, text, mask).logits, reference(ids, None).logits, rtol=1e-5, atol=1e-6)


def test_concat_seq_out_starts_as_concat():
    ids, text, mask = inputs(model_preset("tiny"))
    out, _ = base_logits("concat-seq-out", ids)
    plain, _ = base_logits("concat", ids)
    with torch.no_grad():
        torch.testing.assert_close(out(ids, text, mask).logits, plain(ids, text, mask).logits, rtol=1e-5, atol=1e-6)


def test_layer_critic_starts_near_identity():
    """A critic that answers 0.98 everywhere leaves the normalised output almost as it was."""
    config = config_of("layer-critic")
    torch.manual_seed(0)
    model = TokenModel(config).eval()
    ids, text, mask = inputs(config)
    with torch.no_grad():
        predicted = model(ids, text, mask)
    assert len(predicted.judged) == config.depth
    torch.testing.assert_close(predicted.judged[0].logits, torch.full((B, config.length), 4.0))


LOOKS_ANYWHERE = ("transformer", "hybrid", "layer-critic", "concat-seq-in")  # whatever the direction of its scans


@pytest.mark.parametrize("method", [m for m in METHODS if m not in LOOKS_ANYWHERE])
@pytest.mark.parametrize("direction", ["causal", "alternate", "bidirectional"])
def test_what_a_token_sees(method, direction):
    """Causal models see only the tokens before; the others all of them: which embeddings the logits depend on."""
    config = replace(model_preset("tiny"), method=method, direction=direction, grid=(2, 3))
    model = make(config)
    if method == "concat-seq-out":
        with torch.no_grad():
            model.over_positions.weight.copy_(TokenModel(config).over_positions.weight)
    ids, text, mask = inputs(replace(config, vocab=4))
    grad = torch.zeros(config.length, config.length, dtype=torch.bool)
    for token in range(config.length):
        model.zero_grad()
        model(ids, text, mask).logits[:, token].sum().backward()
        grad[token] = model.position.grad.abs().sum(-1) > 0
    causal = torch.ones_like(grad).tril()
    expected = causal if direction == "causal" else torch.ones_like(grad)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize(
    ("name", "method", "millions"),
    [
        ("muse-24x2048", None, 1076.1),
        ("muse-12x1024", None, 177.3),
        ("mamba-12x1024", "concat", 97.8),
        ("mamba-12x1024", "attn-xz", 123.0),
        ("mamba-12x1024", "mamba-xattn", 123.0),
    ],
)
def test_parameters_of_the_large_models(name, method, millions):
    """Counted without allocating: lucidrains' totals for the transformers, the formula's for Mamba."""
    with torch.device("meta"):
        model = TokenModel(model_preset(name, method))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("method", METHODS)
def test_study_models_are_of_one_size(method):
    with torch.device("meta"):
        model = TokenModel(study_model(method))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.5e6, rel=0.06)


def test_text_in_the_first_block_only_has_fewer_parameters_and_still_matters():
    for method in ("transformer", "mamba-xattn", "text-d", "attn-xz", "text-skip"):
        every = TokenModel(replace(model_preset("tiny"), method=method))
        first = TokenModel(replace(model_preset("tiny"), method=method, text_layers="first"))
        assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in every.parameters())


def test_smaller_picture_conditions_a_larger_one():
    """Super-resolution: at first nothing, then each of its tokens reaches the place that it covers."""
    config = replace(model_preset("tiny"), cond_vocab=7, cond_grid=(2, 2), direction="causal", method="transformer")
    torch.manual_seed(0)
    model = TokenModel(config).eval()
    ids, text, mask = inputs(config)
    small = torch.randint(7, (B, 4))
    with torch.no_grad():
        before = model(ids, text, mask, cond_ids=small).logits
        torch.testing.assert_close(model(ids, text, mask, cond_ids=(small + 1) % 7).logits, before)
        spread = model._spread(torch.arange(4.0)[None, :, None]).view(4, 4)
    assert spread.tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    make(config)
    with pytest.raises(ValueError, match="cond_ids must be given for a super-resolution model"):
        model(ids, text, mask)


def test_more_text_than_fits_keeps_the_first_tokens():
    config = config_of("concat")
    model = make(config)
    ids, _, _ = inputs(config)
    text = torch.randn(B, 9, config.text_dim)
    mask = torch.ones(B, 9, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, text, mask).logits, model(ids, text[:, :6], mask[:, :6]).logits, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "text-e"}, "did you mean text-"),
        ({"direction": "left"}, "direction must be one of causal"),
        ({"method": "text-a", "text_summary": "attn"}, "pooled for text-a"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"d_conv": 9}, "d_conv must be in 2..8"),
        ({"method": "mamba2-xattn", "head_dim": 7}, "head_dim must be a divisor"),
        ({"channel_mixer": "einfft", "direction": "causal"}, "sees all positions"),
        ({"cond_vocab": 4, "cond_grid": (3, 3)}, "divides grid"),
        ({"method": "transformer", "channel_mixer": "geglu"}, "channel_mixer must be 'none'"),
    ],
)
def test_configuration_that_cannot_be_built(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(model_preset("tiny"), **fields)


def test_configuration_survives_json():
    for method in METHODS:
        config = study_model(method)
        assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="did you mean method"):
        ModelConfig.from_dict({"metod": "concat"})


def test_shapes_that_do_not_fit():
    config = config_of("concat")
    model = make(config)
    ids, text, mask = inputs(config)
    for arguments, message in (
        ((ids[:, :5], text, mask), "ids must be"),
        ((ids, text[..., :3], mask), "text must be"),
        ((ids, text, mask[:, :2]), "text_mask must be"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)


def test_saved_model_loads_and_another_kind_is_refused(tmp_path):
    model = make(config_of("text-a"))
    model.save_pretrained(tmp_path / "m", dtype=torch.float16)
    again = TokenModel.from_pretrained(tmp_path / "m")
    assert again.config == model.config
    assert not again.training
    ids, text, mask = inputs(model.config)
    with torch.no_grad():
        torch.testing.assert_close(again(ids, text, mask).logits, model(ids, text, mask).logits, rtol=0.05, atol=0.05)
    from muse_mamba.tokenizer import VQTokenizer

    with pytest.raises(ValueError, match="one that holds a tokenizer"):
        VQTokenizer.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="cannot be read"):
        TokenModel.from_pretrained(tmp_path / "m")


def test_concatenation_is_listed():
    assert set(CONCATENATED) < set(METHODS)


@pytest.mark.parametrize("case", ["mamba-xattn", "transformer", "concat", "text-a", "mamba2-xattn", "parallel"])
def test_model_in_half_precision_takes_float32_text(case):
    config = config_of(case)
    model = make(config)
    ids, text, mask = inputs(config)
    with torch.no_grad():
        exact = model(ids, text, mask).logits
        rounded = model.to(torch.bfloat16)(ids, text, mask).logits
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()
