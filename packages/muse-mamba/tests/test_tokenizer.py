"""The VQ-VAE: shapes, codebooks, the judge, sizes above training, raw and averaged weights."""

import json
from dataclasses import replace

import pytest
import torch
from muse_mamba.tokenizer import Discriminator, TokenizerConfig, VQTokenizer, tokenizer_preset, validation
from muse_mamba.tokenizer.quantize import EmaQuantizer, LookupFreeQuantizer, usage
from muse_mamba.tokenizer.recipes import recipe
from muse_mamba.tokenizer.train import train
from muse_mamba.tokenizer.validation import reconstruct


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return VQTokenizer(tokenizer_preset("tiny")).eval()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (8, 20), (64, 36)])
def test_any_multiple_of_the_factor(network, height, width):
    pictures = torch.rand(2, 3, height, width)
    ids = network.encode(pictures)
    assert ids.shape == (2, height // 4, width // 4)
    made = network.decode(ids)
    assert made.shape == pictures.shape
    assert made.min() >= 0
    assert made.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(network(pictures).pictures.clamp(0, 1), made, rtol=1e-4, atol=1e-5)


def test_pictures_are_measured_in_parts_that_fit(network, monkeypatch):
    """A part is a number of pixels, so that large pictures take no more memory than small ones."""
    pictures = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    whole = reconstruct(network, pictures, torch.device("cpu"))
    sizes = []
    monkeypatch.setattr(validation, "PIXELS", 2 * 16 * 16)
    monkeypatch.setattr(validation, "to_pictures", lambda part, device: sizes.append(len(part)) or part.float() / 255)
    parts = reconstruct(network, pictures, torch.device("cpu"))
    assert sizes == [2, 2, 1]
    assert torch.equal(whole[1], parts[1])
    assert (whole[0].int() - parts[0].int()).abs().max() <= 1


def test_bad_input_is_named(network):
    with pytest.raises(ValueError, match="multiples of 4, got 18x16; crop or resize"):
        network.encode(torch.rand(1, 3, 16, 18))
    with pytest.raises(ValueError, match="pictures must be"):
        network.encode(torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"in 0..31, got 32 to 32; decode no masked tokens"):
        network.decode(torch.full((1, 4, 4), 32))
    with pytest.raises(ValueError, match="ids must be"):
        network.decode(torch.zeros(1, 16, dtype=torch.long))


def test_decoder_runs_in_float32_under_autocast(network):
    ids = torch.randint(32, (1, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = network.decode(ids)
    assert made.dtype == torch.float32
    assert torch.equal(made, network.decode(ids))


def test_network_in_half_precision_decodes_in_float32(network):
    """Weights are rounded once, activations never; and what float16 cannot hold does no harm."""
    half = VQTokenizer(tokenizer_preset("tiny")).eval()
    half.load_state_dict(network.state_dict())
    half.half()
    ids = torch.randint(32, (2, 4, 4))
    made = half.decode(ids)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, network.decode(ids), rtol=0, atol=5e-3)
    huge = VQTokenizer(tokenizer_preset("tiny")).eval()
    huge.load_state_dict(network.state_dict())
    with torch.no_grad():
        huge.decoder[0].weight.mul_(1e4)
        huge.half()
    assert torch.isfinite(huge.decode(ids)).all()


def test_presets():
    def parameters(name):
        with torch.device("meta"):
            return sum(p.numel() for p in VQTokenizer(tokenizer_preset(name)).parameters())

    assert parameters("emoji-64") == 987_595
    assert parameters("emoji-64") <= 1_200_000
    assert tokenizer_preset("emoji-64").factor == 4
    assert (tokenizer_preset("seed").codes, tokenizer_preset("seed").channels) == (8192, 128)
    assert tokenizer_preset("seed").factor == 16


def test_entries_follow_what_is_assigned_to_them():
    torch.manual_seed(0)
    config = TokenizerConfig(codes=4, code_dim=3, channels=8, decay=0.5)
    quantizer = EmaQuantizer(config)
    centres = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    quantizer.codebook.copy_(torch.nn.functional.normalize(centres + 0.3 * torch.randn(4, 3), dim=-1))
    for _ in range(40):
        result = quantizer(centres.repeat(5, 1) + 0.01 * torch.randn(20, 3))
        quantizer.update(result.statistics[0], result.statistics[1], torch.ones(()))
    torch.testing.assert_close(quantizer.codebook, centres, rtol=0.05, atol=0.05)
    before = quantizer.codebook.clone()
    quantizer.update(result.statistics[0], torch.full_like(result.statistics[1], torch.nan), torch.zeros(()))
    assert torch.equal(quantizer.codebook, before)  # a step that is not applied moves nothing


def test_entries_that_nobody_uses_come_back_to_life():
    torch.manual_seed(0)
    quantizer = EmaQuantizer(TokenizerConfig(codes=16, code_dim=3, channels=8, revive_below=0.5))
    quantizer.counts[:12] = 0.0
    alive = quantizer.codebook[12:].clone()
    vectors = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    quantizer.revive(vectors, torch.Generator().manual_seed(1), torch.ones(()))
    assert torch.equal(quantizer.codebook[12:], alive)
    distance = torch.cdist(quantizer.codebook[:12], vectors).amin(1)
    assert distance.max() < 1e-3  # cdist rounds near zero
    assert (quantizer.counts[:12] == 1).all()


def test_gradient_passes_through_the_codebook():
    torch.manual_seed(0)
    for config in (
        TokenizerConfig(codes=16, code_dim=3, channels=8),
        TokenizerConfig(codes=16, code_dim=4, channels=8, quantizer="lfq"),
    ):
        quantizer = (EmaQuantizer if config.quantizer == "ema" else LookupFreeQuantizer)(config)
        x = torch.randn(2, 5, config.code_dim, requires_grad=True)
        result = quantizer(x)
        (result.values.sum() + result.loss).backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        torch.testing.assert_close(quantizer.entries(result.ids), result.values.detach(), rtol=1e-5, atol=1e-6)


def test_lookup_free_ids_are_the_bits_of_the_signs():
    quantizer = LookupFreeQuantizer(TokenizerConfig(codes=8, code_dim=3, channels=8, quantizer="lfq"))
    x = torch.tensor([[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 2.0, 0.5]])
    assert quantizer(x).ids.tolist() == [0, 1, 6]
    with pytest.raises(ValueError, match=r"log2\(codes\) = 3"):
        TokenizerConfig(codes=8, code_dim=4, quantizer="lfq")


def test_usage_and_perplexity():
    assert usage(torch.tensor([3.0, 3.0, 0.0, 0.0])) == pytest.approx((0.5, 2.0))


def test_judge_needs_pictures_that_leave_patches():
    judge = Discriminator(8, 2)
    assert judge(torch.rand(2, 3, 16, 24)).shape == (2, 1, 4, 6)
    with pytest.raises(ValueError, match="at least 16 pixels a side"):
        judge(torch.rand(1, 3, 12, 16))
    assert Discriminator(8, 4).least_side == 64
    judge.rebalance(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.5]), torch.ones(()))
    assert float(judge.balance) == pytest.approx(2.0, rel=1e-3)


def test_plan_of_the_seed():
    """Four sizes, 100,000 steps each; 61.2 million pictures for generator and discriminator together."""
    cfg = recipe("seed")
    assert [(s.size, s.micro_batch, s.accumulation, s.steps) for s in cfg.plan] == [
        (64, 128, 1, 100_000),
        (128, 32, 4, 100_000),
        (256, 8, 4, 100_000),
        (512, 3, 6, 100_000),
    ]
    assert cfg.pictures_seen == 61_200_000
    assert cfg.lr == cfg.min_lr == 1e-4
    assert cfg.stage_at(99_999).size == 64
    assert cfg.stage_at(100_000).size == 128


def test_samples_of_stages_follow_each_other():
    cfg = replace(recipe("tiny"), stages=((16, 2, 1, 3), (32, 1, 2, 2)), steps=5, discriminator_data="own")
    ranges = [cfg.samples_of(step) for step in range(5)]
    assert [len(r) for r in ranges] == [4, 4, 4, 4, 4]
    assert [r.start for r in ranges] == [0, 4, 8, 12, 16]
    assert cfg.keys_of(3, 0) == [[(12, 32), (14, 32)], [(13, 32), (15, 32)]]
    with pytest.raises(ValueError, match="sum of the stages' steps, 5"):
        replace(cfg, steps=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 30}, "multiple of the tokenizer's factor 4"),
        ({"size": 8}, "at least 16 for 2 layers"),
        ({"perceptual": "vgg"}, "did you mean vgg16"),
        ({"stages": ((16, 2, 0, 1),)}, "all at least 1"),
    ],
)
def test_runs_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(recipe("tiny"), **fields)


def test_staged_run_goes_on_from_size_to_size(tmp_path, pictures):
    """Weights, judge and codebook live on; each size leaves a tokenizer; raw and averaged ones load with buffers."""
    cfg = replace(
        recipe("tiny"),
        stages=((16, 2, 1, 3), (32, 1, 2, 3)),
        steps=6,
        data=str(pictures),
        adversarial_start=1,
        discriminator_data="own",
        reset_optimizer=True,
        revive_every=2,
        log_every=1,
    )
    progress = train(cfg, tmp_path / "run")
    assert progress.step == 6
    stages = sorted(f.name for f in (tmp_path / "run" / "stages").iterdir())
    assert stages == ["0-16px", "1-32px"]
    loaded = {n: VQTokenizer.from_pretrained(tmp_path / "run" / n) for n in ("model", "model-raw", "stages/0-16px")}
    books = [network.quantizer.codebook for network in loaded.values()]
    assert not torch.equal(books[0], books[1])
    rows = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["size"], row["split"]) for row in rows] == [(3, 16, "train"), (6, 32, "train")]
    assert all(0 < row["usage"] <= 1 <= row["perplexity"] <= 32 for row in rows)
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert torch.equal(kept["quantizer.codebook"], loaded["model-raw"].quantizer.codebook)


def test_a_new_stage_goes_on_with_everything(tmp_path, pictures):
    """Two stages of one size are a run without stages, to the bit: weights, judge, codebook, moments, averages go on.

    So they do when the run is stopped within the second stage and resumed.
    """
    base = replace(
        recipe("tiny"),
        steps=4,
        data=str(pictures),
        adversarial_start=1,
        adversarial_warmup=2,
        revive_every=2,
        log_every=1,
    )
    staged = replace(base, stages=((16, 2, 1, 2), (16, 2, 1, 2)))
    train(replace(base, size=16, global_batch=2, micro_batch=2), tmp_path / "plain")
    train(staged, tmp_path / "staged")
    train(replace(staged, stop_at=3), tmp_path / "resumed")
    train(staged, tmp_path / "resumed", resume_run=True)
    for part in ("model", "model-raw"):
        one, *others = (
            VQTokenizer.from_pretrained(tmp_path / name / part).state_dict() for name in ("plain", "staged", "resumed")
        )
        assert {"quantizer.codebook", "quantizer.counts"} < set(one)
        assert all(torch.equal(one[name], other[name]) for other in others for name in one)


@pytest.mark.parametrize("fields", [{"network": {"quantizer": "lfq", "code_dim": 5}}, {"perceptual": "vgg16"}], ids=str)
def test_other_codebook_and_backbone_are_trained_with(tmp_path, pictures, vgg16_weights, fields):
    """Lookup-free codes, and VGG16 from a file of weights: the loss falls."""
    if "perceptual" in fields:
        fields = {**fields, "perceptual_weights": str(vgg16_weights), "perceptual_weight": 1.0}
    base = recipe("tiny")
    fields = {**fields, "network": replace(base.network, **fields.get("network", {}))}
    cfg = replace(base, data=str(pictures), size=16, steps=8, adversarial=0.0, lr=1e-2, log_every=1, **fields)
    train(cfg, tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
