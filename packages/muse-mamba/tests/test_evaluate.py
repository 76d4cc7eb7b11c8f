"""Measuring: distances that say what they are, the judge of captions, the nearest training pictures, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from muse_mamba import judge as judging
from muse_mamba import judgetrain
from muse_mamba.cli import main
from muse_mamba.clipart import captions_in
from muse_mamba.judge import Judge, JudgeConfig, align, recall
from muse_mamba.nearest import nearest
from muse_mamba.packed import Pictured
from PIL import Image

RNG = np.random.default_rng(0)


def simple_features(pictures, device="cpu"):
    """Stand in for EfficientNet-Lite0: mean colours of quarters, squared and not, (n, 24)."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).float() / 255
    side = x.shape[1] // 2
    quarters = [x[:, i : i + side, j : j + side].mean((1, 2)) for i in (0, side) for j in (0, side)]
    flat = torch.cat(quarters, 1)
    return torch.cat([flat, flat.square()], 1)


@pytest.fixture
def no_network(monkeypatch):
    for module in ("muse_mamba.judge", "muse_mamba.judgetrain", "muse_mamba.nearest"):
        monkeypatch.setattr(f"{module}.picture_features", simple_features)


def refused(capsys, *argv):
    assert main([str(item) for item in argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_recall_counts_what_is_better():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.2, 0.7]])
    assert recall(similarity) == {"R@1": pytest.approx(2 / 3), "R@5": 1.0}


def test_judge_learns_a_linear_map_and_survives_half_precision(tmp_path):
    """Captions that are a linear function of the features are found again, for pairs that were not fitted to."""
    torch.manual_seed(0)
    seen = torch.randn(300, 30)
    told = torch.nn.functional.normalize(seen @ torch.randn(30, 20) + 0.1 * torch.randn(300, 20), dim=-1)
    judge = Judge(JudgeConfig(image_dim=30, text_dim=20, dim=12))
    judgetrain.fit(judge, seen[:200], told[:200], ridge=1.0)
    judge.save_pretrained(tmp_path, dtype=torch.float16)
    again = Judge.from_pretrained(tmp_path)
    for network in (judge, again):
        found = recall(network.of_pictures(seen[200:]) @ network.of_captions(told[200:]).t())
        assert found["R@1"] > 0.8
    assert recall(torch.randn(100, 100))["R@5"] < 0.2


def test_aligning_needs_different_captions_and_as_many_pictures_of_each(no_network):
    judge = Judge(JudgeConfig(image_dim=24, text_dim=8))
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    for captions, message in ((["a", "a"], "all different"), (["a", "b", "c"], "a multiple of 3 captions")):
        with pytest.raises(ValueError, match=message):
            align(judge, pictures, captions, None)  # pyright: ignore[reportArgumentType]  # is not reached


def test_titles_of_clipart():
    svg = (
        "<svg><rdf:RDF><dc:title>Clipart by A. Nobody - Red_Apple 01</dc:title><dc:subject><rdf:Bag>"
        "<rdf:li>hash</rdf:li><rdf:li>fruit</rdf:li><rdf:li>A. Nobody</rdf:li><rdf:li>food</rdf:li></rdf:Bag>"
        "</dc:subject><dc:creator><cc:Agent><dc:title>A. Nobody</dc:title></cc:Agent></dc:creator></rdf:RDF></svg>"
    )
    assert captions_in(svg) == ("red apple", "fruit, food")
    assert captions_in("<svg><dc:title>Etiquette Icons</dc:title></svg>") == ()


def clipart(root: Path, count: int) -> None:
    """Write drawings whose titles are numbers in words, and one that names a held-out concept."""
    words = [a + b for a in ("", "thirty", "forty") for b in ("one", "two", "three", "four", "five")][: count - 1]
    for number, word in enumerate([*words, "a bar of gold"]):
        for kind in ("svg", "png"):
            (root / "usr/share/openclipart" / kind / "animals").mkdir(parents=True, exist_ok=True)
        place = root / "usr/share/openclipart"
        (place / "svg/animals" / f"{number}.svg").write_text(f"<svg><dc:title>{word} cats</dc:title></svg>")
        pixels = np.full((20, 20, 3), 255, np.uint8)
        pixels[4:16, 4 : 6 + number % 10] = RNG.integers(0, 200, 3)
        Image.fromarray(pixels).save(place / "png/animals" / f"{number}.png")


def test_judge_is_trained_on_other_concepts_and_used(capsys, packed, byte_encoder, weights, tmp_path, no_network):
    clipart(tmp_path, 13)
    out = tmp_path / "judge"
    argv = ("--data", f"openclipart,{packed}", "--root", tmp_path, "--text-encoder", byte_encoder, "--ridge", "1")
    assert main([str(item) for item in ("train-judge", *argv, "--out", out)]) == 0
    said = capsys.readouterr().out
    assert "15 pairs; 1 left out" in said  # 12 drawings and 3 pictures that are not held out
    assert json.loads((out / "judge.json").read_text())["left_out"] == 1
    assert "must be a new or empty folder" in refused(capsys, "train-judge", *argv, "--out", out)

    given = ("--model", weights[0], "--tokenizer", weights[1], "--data", packed, "--split", "train", "--steps", "2")
    result = tmp_path / "result.json"
    sheet = tmp_path / "sheet.png"
    argv = ("evaluate", *given, "--judge", out, "--per-caption", "2", "--out", result, "--sheet", sheet)
    import muse_mamba.features

    before = muse_mamba.features.feature_distances
    try:
        muse_mamba.features.feature_distances = lambda real, made, device: {"n_made": len(made)}
        assert main([str(item) for item in argv]) == 0
    finally:
        muse_mamba.features.feature_distances = before
    found = json.loads(result.read_text())
    assert (found["n"], found["n_made"], found["alignment"]["captions"]) == (4, 4, 2)
    assert found["alignment"]["R@5"] == found["alignment"]["chance_R@5"] == 1.0
    assert found["alignment"]["judge"]["pairs"] == 15 - 3
    assert found["nearest"]["n"] == 2
    with Image.open(sheet) as picture:
        assert picture.size[1] == 28 + 2 * 64
    assert "exists; add --overwrite" in refused(capsys, *argv)
    swapped = ("evaluate", *given, "--judge", weights[0])
    assert "one that holds a judge" in refused(capsys, *swapped)


def test_reconstructions_are_measured_above_the_training_size(capsys, packed, weights, tmp_path):
    sheet = tmp_path / "r.png"
    argv = ("evaluate", "--tokenizer_only", "--tokenizer", weights[1], "--data", packed, "--split", "train")
    code = main([str(i) for i in (*argv, "--sizes", "16,64", "--no-features", "--sheet", sheet)])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert code == 0
    assert [(row["size"], row["n"]) for row in rows] == [(16, 2), (64, 2)]
    assert all(row["psnr"] > 0 and -1 <= row["ssim"] <= 1 and 0 < row["code_usage"] <= 1 for row in rows)
    with Image.open(tmp_path / "r-64.png") as picture:
        assert picture.size == (128, 128)
    again = refused(capsys, *argv, "--sizes", "16,64", "--no-features", "--sheet", sheet)
    assert f"--sheet: {tmp_path / 'r-16.png'} exists; add --overwrite" in again
    assert "must be a file ending in .png" in refused(capsys, *argv, "--sheet", tmp_path / "r.txt")
    kept = tmp_path / "rows.json"
    said = refused(capsys, *argv, "--sizes", "16,18", "--no-features", "--out", kept)
    assert "multiples of 4" in said
    assert [row["size"] for row in json.loads(kept.read_text())["rows"]] == [16]  # what was measured before it
    assert "must be pixels separated by commas" in refused(capsys, *argv, "--sizes", "x")


def test_nearest_training_picture_of_a_copy_is_its_original(no_network):
    pool = RNG.integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    training = [
        Pictured(name=str(i), captions=("a",), split="train", concept="a", package="", pixels=p)
        for i, p in enumerate(pool)
    ]
    found = nearest(pool[[4, 1]], training, torch.device("cpu"))
    assert (found.pictures[:, 0] == pool[[4, 1]]).all()
    assert (found.pictures[:, 1] == pool[[4, 1]]).all()
    assert found.nearness[:, 0] == pytest.approx(1.0)
    assert (found.nearness[:, 1] > 60).all()


def test_frechet_distance_is_that_of_normal_distributions():
    """Against covariances and the eigenvalues of their product, with fewer and more pictures than features."""
    from muse_mamba.features import frechet

    rng = np.random.default_rng(5)
    for pictures in (5, 40):
        a, b = rng.normal(0, 1, (pictures, 8)), rng.normal(0.5, 2, (pictures + 2, 8)) @ rng.normal(size=(8, 8))
        s, t = np.cov(a.T), np.cov(b.T)
        roots = np.sqrt(np.abs(np.linalg.eigvals(s @ t))).sum()
        wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * roots
        assert frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(wanted, rel=1e-6)
    assert frechet(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_unbiased_and_has_the_value_of_its_definition():
    """Between two halves of one set the mean is about zero; of three vectors each it is the sum written out."""
    from muse_mamba.features import kernel_distances

    rng = np.random.default_rng(5)
    a, b = (torch.from_numpy(rng.normal(size=(3, 4))) for _ in range(2))
    k = lambda x, y: (float(x @ y) / 4 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(3) for j in range(3)]
    wanted = sum((k(a[i], a[j]) + k(b[i], b[j])) / 6 for i, j in pairs if i != j)
    wanted -= sum(2 * k(a[i], b[j]) / 9 for i, j in pairs)
    assert kernel_distances(a, b, 2, 3) == pytest.approx(wanted)
    same = torch.from_numpy(rng.normal(size=(400, 6)))
    found = kernel_distances(same[:200], same[200:], 50, 20)
    assert abs(float(found.mean())) < 3 * float(found.std()) / 7
    assert float(kernel_distances(same[:200], same[200:] + 1, 50, 20).mean()) > 10 * abs(float(found.mean()))


def test_distance_grows_with_noise_and_names_its_network():
    """FD-EffNetLite0 and KID of the same pictures with little and much noise; FID is refused without its weights."""
    from muse_mamba.features import feature_distances, inception_distance

    y, x = np.mgrid[:32, :32]
    real = np.stack([np.stack([x * k % 256, y * k % 256, (x + y) * 4], -1) for k in range(3, 11)]).astype(np.uint8)
    found = []
    for level in (8, 80):
        noisy = np.clip(real + RNG.normal(0, level, real.shape), 0, 255).astype(np.uint8)
        found.append(feature_distances(real, noisy, torch.device("cpu")))
    assert 0 < found[0]["FD-EffNetLite0"] < found[1]["FD-EffNetLite0"]
    assert found[0]["KID-EffNetLite0"] < found[1]["KID-EffNetLite0"]
    assert not any("FID" in name for name in found[0])
    assert (found[0]["extractor"]["n_real"], len(found[0]["extractor"]["sha256"])) == (8, 64)
    with pytest.raises(ValueError, match="must be a file"):
        inception_distance(real, real, Path("/none.pth"), torch.device("cpu"))


def test_other_weights_give_no_fid(tmp_path):
    from muse_mamba.features import inception_distance

    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match="other networks give no FID"):
        inception_distance(
            np.zeros((2, 8, 8, 3), np.uint8),
            np.zeros((2, 8, 8, 3), np.uint8),
            tmp_path / "weights.pth",
            torch.device("cpu"),
        )


def test_lpips_needs_vgg16_and_is_zero_for_the_same(tmp_path, vgg16_weights):
    from muse_mamba.features import lpips

    a = RNG.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    near = np.clip(a + RNG.normal(0, 5, a.shape), 0, 255).astype(np.uint8)
    values = [lpips(a, b, vgg16_weights, torch.device("cpu"))["LPIPS"] for b in (a, near, 255 - a)]
    assert values[0] == 0
    assert 0 < values[1] < values[2]
    (tmp_path / "other.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match="does not hold torchvision's vgg16"):
        lpips(a, a, tmp_path / "other.pth", torch.device("cpu"))


def test_clip_score_is_the_mean_cosine(tmp_path):
    """With whatever version of transformers: a tiny CLIP with random weights, its letters for tokens."""
    from muse_mamba.features import clip_score
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(pictures, tokenizer)
    processor.save_pretrained(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**size, **ends, "vocab_size": len(tokens)}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=8)
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    made, captions = RNG.integers(0, 255, (3, 40, 40, 3), dtype=np.uint8), ["a red apple", "a dog", "sea"]
    values = processor(text=captions, images=list(made), return_tensors="pt", padding=True)
    with torch.no_grad():
        cosine = (model(**values).image_embeds * model(**values).text_embeds).sum(-1).mean()
        model.visual_projection.weight.mul_(cosine.sign())
    model.save_pretrained(tmp_path)
    found = clip_score(made, captions, tmp_path, torch.device("cpu"))
    assert found["clip_score"] == pytest.approx(100 * abs(float(cosine)), rel=1e-3)
    with pytest.raises(ValueError, match="holds no CLIP model"):
        clip_score(made, captions, tmp_path / "none", torch.device("cpu"))


def test_hash_of_a_judge(tmp_path):
    Judge(JudgeConfig(image_dim=4, text_dim=4, dim=2)).save_pretrained(tmp_path)
    assert len(judging.judge_hash(tmp_path)) == 64
    with pytest.raises(ValueError, match="did you mean dim"):
        JudgeConfig.from_dict({"dims": 3})
