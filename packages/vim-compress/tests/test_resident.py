"""Pictures made on the device: the loader's rules, whole batches at a time."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vim_compress.data import Numbered, named
from vim_compress.packed import write_packed
from vim_compress.pictures import Pictures
from vim_compress.preprocess import prepare, to_float
from vim_compress.recipes import tiny
from vim_compress.resident import DRAWS, Resident, draws
from vim_compress.train import train

CPU = torch.device("cpu")


def config(**changes):
    return replace(tiny(), **{"resident": True, "steps": 8, "warmup": 0} | changes)


def make(cfg, images=None, device=CPU):
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    labels = np.arange(len(images)) % 3
    pictures = Pictures(images, labels, [f"p{i}" for i in range(len(images))], ("a", "b", "c"), "noise")
    return Resident(Numbered(pictures, cfg, named(cfg.model, pictures.classes, pictures.domain)), device)


def untouched(made, number):
    pictures = made.source.pictures
    pixels = prepare(pictures.image(made.source.place(number)), made.model)
    return to_float(torch.from_numpy(pixels[None]), made.model, CPU)[0]


def test_picture_is_a_function_of_its_number():
    """Whatever the batch: also with mixed neighbours of which only one is asked for."""
    made = make(config(erase=0.5, mixup=0.8, cutmix=1.0, smoothing=0.1, repeats=2))
    whole = made.batch(range(16))
    for first, last in ((0, 1), (5, 6), (3, 9), (8, 16)):
        part = made.batch(range(first, last))
        for name in ("image", "target"):
            assert torch.equal(part[name], whole[name][first:last])
    assert not torch.equal(make(config(seed=11)).batch(range(4))["image"], make(config()).batch(range(4))["image"])


def test_several_processes_share_the_step_of_one():
    """With micro-batches of odd length, whose ends are mixed with pictures of the other process."""
    cfg = config(crop="padded", erase=0.5, mixup=0.8, cutmix=1.0, global_batch=12, micro_batch=12)
    whole = next(make(cfg).batches(3, 0))
    parts = [next(make(replace(cfg, processes=4, micro_batch=3)).batches(3, rank)) for rank in range(4)]
    for name in ("image", "target"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_random_numbers_belong_to_a_picture():
    whole = draws(10, 0, 100)
    np.testing.assert_array_equal(draws(10, 37, 51), whole[37:51])
    assert len(np.unique(whole)) == 100 * DRAWS
    assert abs(whole.mean() - 0.5) < 0.02
    assert not np.isin(whole, draws(11, 0, 100)).any()


def test_pictures_are_the_data_where_nothing_is_changed():
    made = make(config(crop="center", flip=0.0))
    batch = made.batch(range(2, 9))
    for row, number in enumerate(range(2, 9)):
        assert torch.equal(batch["image"][row], untouched(made, number))
        assert (
            batch["target"][row].tolist() == np.eye(3)[made.source.pictures.labels[made.source.place(number)]].tolist()
        )


def test_crops_are_shifts_with_repeated_edges_and_mirrors():
    """Each is one of the loader's 25 crops of the picture or of its mirror image, and all of them occur."""
    from vim_compress.augment import shifted

    class Fixed:
        def __init__(self, *values):
            self.values = list(values)

        def integers(self, end):
            return self.values.pop(0)

    made = make(config(crop="padded", flip=0.5))
    batch, seen = made.batch(range(400))["image"], set()
    pictures = [prepare(made.source.pictures.image(i), made.model) for i in range(6)]
    ways = [(mirrored, dy, dx) for mirrored in (1, -1) for dy in range(5) for dx in range(5)]
    crops = [np.stack([shifted(p[:, :, ::m], Fixed(dy, dx)) for m, dy, dx in ways]) for p in pictures]
    crops = [to_float(torch.from_numpy(c), made.model, CPU) for c in crops]
    for number in range(400):
        found = (crops[made.source.place(number)] == batch[number]).flatten(1).all(1).nonzero()
        assert len(found) == 1
        seen.add(int(found))
    assert len(seen) == len(ways)


def test_erased_rectangles_are_as_large_and_as_frequent_as_asked():
    made = make(config(crop="center", flip=0.0, erase=0.7), np.zeros((6, 16, 16, 3), np.uint8))
    batch = made.batch(range(600))["image"]
    black = untouched(made, 0)[:, :1, :1]
    changed = (batch != black).any(1)  # noise is black in some channels, hardly in all three
    erased = changed.flatten(1).any(1)
    assert abs(erased.float().mean() - 0.7) < 0.06
    areas = changed[erased].flatten(1).float().mean(1)
    assert 0.01 < areas.min() < 0.05
    assert 0.25 < areas.max() < 0.37
    for picture in changed[erased][:50]:
        rows, columns = picture.any(1).nonzero(), picture.any(0).nonzero()
        box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.5  # one rectangle
    noise = batch.permute(0, 2, 3, 1)[changed]
    assert noise.std() > 0.5
    assert len(torch.unique(noise[:, 0])) > 100


@pytest.mark.parametrize(
    "kinds", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]
)
def test_targets_of_mixed_pictures_are_shares(kinds):
    """Of pictures that are black, grey or white as a whole the mean tells what was mixed."""
    images = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 100, 200)])
    made = make(config(crop="center", flip=0.0, mix=0.6, **kinds), images)
    batch = made.batch(range(400))
    values = torch.stack([untouched(made, n).mean() for n in range(3)])[
        np.argsort([made.source.place(n) for n in range(3)])
    ]
    torch.testing.assert_close(batch["target"].sum(1), torch.ones(400))
    torch.testing.assert_close(batch["image"].mean((1, 2, 3)), batch["target"] @ values, rtol=1e-4, atol=1e-4)
    pure = (batch["target"].max(1).values == 1).float().mean()
    assert pure < 0.75  # 0.4 are not mixed, and a third of the pairs are of one class


@pytest.mark.gpu
def test_pictures_on_a_gpu_are_those_on_the_processor():
    cfg = config(crop="padded", flip=0.5, erase=0.5, mixup=0.8, cutmix=1.0, smoothing=0.1)
    here, there = make(cfg).batch(range(5, 70)), make(cfg, device=torch.device("cuda")).batch(range(5, 70))
    for name in ("image", "target"):
        torch.testing.assert_close(there[name].cpu(), here[name], rtol=1e-5, atol=1e-5)


def test_smoothed_targets():
    target = make(config(smoothing=0.3)).batch(range(2))["target"]
    assert np.allclose(sorted(target[0].tolist()), [0.1, 0.1, 0.8])


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    pictures = Pictures(images, np.arange(12) % 3, [f"p{i}" for i in range(12)], ("a", "b", "c"), "noise")
    write_packed(tmp_path / "data.npz", pictures, np.arange(12) > 9, [])
    cfg = config(data=str(tmp_path / "data.npz"), erase=0.5, mixup=0.5, steps=4)
    train(cfg, tmp_path / "whole")
    train(replace(cfg, stop_at=2), tmp_path / "parts")
    train(cfg, tmp_path / "parts", resume_run=True)
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_pictures_larger_than_the_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5000))
    with pytest.raises(ValueError, match=r"data: 6 pictures must take at most .* free on cpu, .*give --resident false"):
        make(config())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6000))
    assert len(make(config()).images) == 6  # 4,608 bytes


def test_what_cannot_be_kept_on_the_device_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"resident must be off with .*, got it with crop=resized and randaug; leave out"
    ):
        config(crop="resized", randaug="rand-m7")
    with pytest.raises(ValueError, match="owner/name is a stream, not pictures in memory; give --resident false"):
        train(config(data="owner/name"), tmp_path / "run")
