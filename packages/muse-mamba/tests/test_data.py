"""Captioned pictures: folders, packed folders, encoded captions, what is hidden; runs on them; the study."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from muse_mamba.arguments_measure import StudyOptions
from muse_mamba.benchmark import crossovers
from muse_mamba.data import PictureData, augment, open_collection, square
from muse_mamba.masking import hide, plan
from muse_mamba.metrics import code_statistics, flat_share, psnr, ssim
from muse_mamba.packed import load_packed, pack
from muse_mamba.recipes import recipe
from muse_mamba.sources import captions_of, fit_square, in_folder, split_of
from muse_mamba.study import study_command
from muse_mamba.text import TextCache, TextEncoder
from muse_mamba.train import train


def test_folder_names_what_does_not_match(pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures, tmp_path / "copy")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "gone.png", "text": "a ghost"}) + "\n")
    shutil.copy(folder / "bar.png", folder / "bare.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    found = open_collection(str(folder), size=32, captioned=True, verbose=True)
    said = capsys.readouterr().err
    assert sorted(p.name for p in found.train) == ["bar.png", "circle.png", "cross.png", "square.png"]
    assert "1 of 5 captions without a picture: gone.png" in said
    assert "bare.png: no caption" in said
    assert "2 of 6 images skipped" in said
    plain = open_collection(str(folder), size=32, captioned=False, verbose=True)
    assert len(plain.train) == 5
    assert "broken.png" in capsys.readouterr().err


def test_captions_from_csv(pictures, tmp_path):
    shutil.copy(pictures / "bar.png", tmp_path / "bar.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nbar.png,a bar\n")
    assert in_folder(tmp_path)[0].captions == ("a bar",)
    (tmp_path / "metadata.csv").write_text("name,words\nbar.png,a bar\n")
    with pytest.raises(ValueError, match="rows need file_name and text"):
        in_folder(tmp_path)


def test_folders_named_after_splits(pictures, tmp_path):
    """Only beside a folder called train: elsewhere these are names like any other."""
    for name in ("validation/a.png", "test/b.png", "other/c.png"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(pictures / "bar.png", tmp_path / name)
    assert {p.split for p in in_folder(tmp_path)} == {"train"}
    (tmp_path / "train").mkdir()
    shutil.copy(pictures / "bar.png", tmp_path / "train" / "test.png")
    assert {p.name: p.split for p in in_folder(tmp_path)} == {
        "other/c.png": "train",
        "test/b.png": "held-out",
        "train/test.png": "train",
        "validation/a.png": "validation",
    }
    found = open_collection(str(tmp_path), size=None, captioned=False, verbose=False)
    assert [len(part) for part in (found.train, found.validation, found.other)] == [2, 1, 1]


def test_captions_and_splits():
    assert captions_of(("apple", "fruit", "pome")) == ("apple", "an apple", "fruit")
    splits = [split_of(f"concept {n}") for n in range(4000)]
    assert splits.count("held-out") / 4000 == pytest.approx(0.05, abs=0.012)
    assert splits.count("validation") / 4000 == pytest.approx(0.03, abs=0.01)
    assert split_of("apple") == split_of("apple")


def test_default_pictures_are_named_drawings_split_by_concept():
    """The embedded default: openmoji. Nothing with skin tones or flags, no concept on two sides."""
    from muse_mamba.sources import find_pictures

    found = find_pictures(None)
    assert len(found) > 1500
    assert any("red apple" in p.captions for p in found)
    assert not any("flag:" in caption or "skin tone" in caption for p in found for caption in p.captions)
    pixels = found[0].read(64)
    assert pixels.shape == (64, 64, 3)
    assert pixels.min() < 200


def test_drawing_is_put_into_a_square():
    image = np.full((50, 90, 3), 255, np.uint8)
    image[20:30, 10:60] = 0
    fitted = fit_square(image, 40)
    assert fitted.shape == (40, 40, 3)
    ink = np.argwhere((fitted < 128).any(-1))
    assert ink[:, 1].min() <= 2
    assert ink[:, 1].max() >= 37
    assert abs(ink[:, 0].mean() - 19.5) < 1.5


def test_more_pictures_than_memory_are_refused_as_soon_as_it_is_clear(pictures, monkeypatch):
    """A folder of a million pictures must not end with the system killing the process."""
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(
        ValueError, match=r"data: 1 of \d+ images take .* GB of memory .*; give fewer, or pack them into"
    ):
        open_collection(str(pictures), size=32, captioned=False, verbose=False)


def test_picture_is_a_function_of_its_number(pictures):
    found = open_collection(str(pictures), size=32, captioned=False, verbose=False)
    from muse_mamba.tokenizer.recipes import recipe as tokenizer_recipe

    data = PictureData(found.train, tokenizer_recipe("tiny"), flip=True, shift=0.1)
    keys = [(n, 16) for n in range(8)]
    whole = data.__getitems__(keys)["pictures"]
    assert torch.equal(whole[3:5], data.__getitems__(keys[3:5])["pictures"])
    epoch = [data.visits.picture(n) for n in range(4)]
    assert sorted(epoch) == [0, 1, 2, 3]


def test_augmentation_keeps_the_size():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for _ in range(10):
        assert augment(pixels, 24, rng, flip=True, shift=0.2).shape == (24, 24, 3)
    assert square(pixels, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("rectangle", [0.0, 1.0])
def test_share_of_hidden_tokens_follows_the_cosine(rectangle):
    """Mean 2 / pi; never none; a rectangle is one."""
    shares = []
    rng = np.random.default_rng(0)
    for _ in range(2000):
        drawn = plan(rng, (8, 8), rectangle)
        hidden = hide(rng, (8, 8), drawn)
        assert hidden.sum() == drawn.hidden >= 1
        shares.append(hidden.mean())
        if rectangle:
            rows, columns = np.nonzero(hidden.reshape(8, 8))
            assert np.ptp(rows) + 1 == drawn.sides[0]
            assert hidden.reshape(8, 8)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    assert np.mean(shares) == pytest.approx(2 / np.pi, abs=0.03)


def test_captions_as_vectors_survive_the_cache(byte_encoder, tmp_path):
    encoder = TextEncoder(str(byte_encoder), length=12)
    assert encoder.channels == 8
    sentences = ["a cat", "an elephant", "a cat"]
    cache = TextCache.encode(encoder, sentences)
    assert cache.sentences == ["a cat", "an elephant"]
    cache.save(tmp_path / "text.safetensors")
    again = TextCache.load(tmp_path / "text.safetensors")
    states, mask = again.batch([1, 0], 12)
    truth = encoder.encode(["an elephant", "a cat"])
    assert (torch.from_numpy(mask)[:, : truth.mask.shape[1]] == truth.mask).all()
    scale = truth.states.abs().max()
    assert (torch.from_numpy(states)[:, : truth.states.shape[1]] - truth.states).abs().max() < 0.01 * scale
    assert encoder.cut == 0
    encoder.encode(["a much longer sentence than fits"])
    assert encoder.cut == 1
    (tmp_path / "text.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="encode the captions again"):
        TextCache.load(tmp_path / "text.safetensors")


def test_more_tokens_than_the_encoder_has_positions():
    """A caption's room is allocated for every picture of a batch: a million tokens end in a full memory."""
    with pytest.raises(ValueError, match="text_length must be at most 512, the positions of minilm, got 1000000"):
        TextEncoder(length=1_000_000)


def test_packed_folder_is_lossless(packed, pictures):
    from PIL import Image

    found, cache = load_packed(packed)
    assert [p.name for p in found] == ["bar.png", "circle.png", "cross.png", "square.png"]
    assert (found[0].pixels == np.asarray(Image.open(pictures / "bar.png"))).all()
    assert all(caption in cache.place for p in found for caption in p.captions)
    with pytest.raises(ValueError, match="new or empty folder"):
        from pathlib import Path

        pack(packed, data=str(pictures), size=32, root=Path("/"), encoder="minilm", length=6)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "layer-critic"},
        {"method": "transformer", "self_conditioning": True},
        {"critic": "self"},
        {"critic": "mamba", "critic_depth": 1},
        {"cond_vocab": 32, "cond_grid": (2, 2)},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_run_of_every_kind_of_loss(packed, tmp_path, fields):
    """A step or two of training on packed data, with validation, pictures and a best checkpoint."""
    base = recipe("tiny")
    cfg = replace(
        base,
        model=replace(base.model, **fields),
        data=str(packed),
        steps=3,
        global_batch=2,
        micro_batch=1,
        log_every=1,
        save_every=3,
        sample_every=3,
        variants=2,
        flip=True,
        shift=0.1,
        rectangle=0.3,
        label_smoothing=0.1,
    )
    assert train(cfg, tmp_path / "run").step == 3
    row = json.loads((tmp_path / "run" / "validation.jsonl").read_text())
    assert {"loss", "loss_at_0.25", "loss_at_1", "caption_gap"} <= set(row)
    assert (tmp_path / "run" / "samples" / "step-00000003.png").is_file()
    assert (tmp_path / "run" / "checkpoints" / "best").is_dir()


def test_model_of_other_codes_or_text_is_refused(packed, tmp_path):
    base = recipe("tiny")
    for fields, message in (({"vocab": 64}, "the tokenizer's 32"), ({"text_dim": 9}, "the encoder's 8")):
        cfg = replace(base, model=replace(base.model, **fields), data=str(packed))
        with pytest.raises(ValueError, match=message):
            train(cfg, tmp_path / fields.popitem()[0])


def test_run_of_another_method_is_not_resumed(packed, tmp_path):
    cfg = replace(recipe("tiny", "concat"), data=str(packed), steps=3, stop_at=2, save_every=2)
    train(cfg, tmp_path / "run")
    other = replace(recipe("tiny", "text-a"), data=str(packed), steps=3, stop_at=2, save_every=2)
    with pytest.raises(ValueError, match=r"model\.method was concat in .*, is text-a now; give the old value"):
        train(other, tmp_path / "run", resume_run=True)
    with pytest.raises(ValueError, match="is another model: method differ"):
        train(replace(other, init=str(tmp_path / "run" / "model")), tmp_path / "new")


def test_study_says_why_a_run_was_refused(packed, tmp_path, capsys):
    options = StudyOptions(out=tmp_path, data=str(packed), methods="concat", seeds="0", recipe="tiny", extra="--nope 3")
    with pytest.raises(ValueError, match="no finished run"):
        study_command(options)
    assert "log.txt): muse-mamba train: unrecognized arguments: --nope 3" in capsys.readouterr().out


def test_study_trains_judges_and_is_not_repeated(packed, tmp_path, capsys):
    options = StudyOptions(
        out=tmp_path / "study",
        data=str(packed),
        methods="concat,concat",  # one run: two would write into one folder
        seeds="0,0",
        steps=3,
        jobs=1,
        recipe="tiny",
        prompts=1,
        extra="--save_every 1 --model.direction causal",
    )
    assert study_command(options) == 0
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    (row,) = study["rows"]
    assert (row["method"], row["seed"], row["steps"], row["direction"]) == ("concat", 0, 3, "causal")
    assert {"parameters", "loss", "caption_gap", "flat_share", "unique_codes", "sampling_seconds"} <= set(row)
    for name in ("table.md", "sheet.png", "study.png"):
        assert (tmp_path / "study" / name).is_file()
    before = (tmp_path / "study" / "concat-0" / "row.json").stat().st_mtime_ns
    assert study_command(replace(options, report_only=True)) == 0
    assert study_command(options) == 0
    assert (tmp_path / "study" / "concat-0" / "row.json").stat().st_mtime_ns == before


def test_measures_without_a_network():
    flat = np.full((1, 8, 8, 3), 200, np.uint8)
    noisy = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3), dtype=np.uint8)
    assert flat_share(flat) == 1.0
    assert flat_share(noisy) == 0.0
    assert code_statistics(np.array([[1, 1, 5, 5]]), 8) == {"unique_codes": 2, "code_perplexity": pytest.approx(2.0)}
    assert psnr(noisy, noisy) == 100.0
    assert psnr(flat, flat - 10) == pytest.approx(28.13, abs=0.01)
    assert ssim(noisy, noisy) == pytest.approx(1.0)
    assert ssim(noisy, 255 - noisy) < 0


def test_crossover_is_the_length_from_which_on_it_holds():
    rows = [
        {"method": m, "length": n, "training_step_ms": t, "decoding_ms": d}
        for m, times in {
            "transformer": [(4, 1, 1), (16, 2, 2), (64, 9, 9)],
            "concat": [(4, 0.5, 2), (16, 3, 3), (64, 5, 10)],
        }.items()
        for n, t, d in times
    ]
    assert crossovers(rows) == {"concat": {"training_step_ms": 64, "decoding_ms": None}}
