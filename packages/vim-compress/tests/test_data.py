"""Which pictures a run sees: sources, splits, augmentation, mixing; all of it a function of the seed and a number."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from vim_compress.ahead import make_ahead
from vim_compress.augment import Augment, mix_pair, random_part, soft_targets
from vim_compress.config import VimConfig
from vim_compress.data import Numbered, loader, named, open_source
from vim_compress.packed import read_packed, write_packed
from vim_compress.pictures import Pictures, flatten, load_folder
from vim_compress.preprocess import prepare, to_float
from vim_compress.recipes import RECIPES, recipe, tiny
from vim_compress.sources import HELD_SHARE, fashion_mnist, label_emoji, open_pictures, read_emoji, read_part, share


def config(**changes):
    values = {"crop": "resized", "randaug": "rand-m9-mstd0.5-inc1", "erase": 0.5, "mixup": 0.8, "cutmix": 1.0}
    values |= {"smoothing": 0.1, "steps": 6, "warmup": 0} | changes
    return replace(tiny(), **values)


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 20, 24, 3)).astype(np.uint8)
    return Pictures(images, np.array([0, 1, 2, 0, 1, 2]), [f"p{i}" for i in range(6)], ("a", "b", "c"), "noise")


def source(pictures, cfg):
    return Numbered(pictures, cfg, named(cfg.model, pictures.classes, pictures.domain))


def test_picture_is_a_function_of_its_number(pictures):
    """Whatever the batch, the process or the global generators: also where neighbours are mixed."""
    cfg = config()
    whole = source(pictures, cfg).__getitems__(list(range(8)))
    np.random.seed(3)
    torch.manual_seed(5)
    for numbers in ([0], [5], [3, 4], [7, 2]):
        part = source(pictures, cfg).__getitems__(numbers)
        assert torch.equal(part["image"], whole["image"][numbers])
        assert torch.equal(part["target"], whole["target"][numbers])


def test_other_seed_other_pictures(pictures):
    one, other = (source(pictures, config(seed=s)).__getitems__([0, 1])["image"] for s in (1, 2))
    assert not torch.equal(one, other)


def test_global_generators_are_left_alone(pictures):
    import random

    state, legacy, seed = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    source(pictures, config()).__getitems__([0, 1, 2])
    assert random.getstate() == state
    assert np.array_equal(np.random.get_state()[1], legacy)
    assert torch.equal(torch.get_rng_state(), seed)


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_epoch_shows_every_picture_as_often_as_asked(pictures, repeats):
    data = source(pictures, config(repeats=repeats))
    for epoch in range(2):
        shown = [data.place(epoch * len(data) + i) for i in range(len(data))]
        assert sorted(shown) == sorted(list(range(6)) * repeats)


def test_loader_batches_do_not_depend_on_workers_or_accumulation(pictures):
    whole = config(global_batch=4, micro_batch=4, steps=2)
    parts = replace(whole, micro_batch=2)
    batches = list(loader(whole, source(pictures, whole), 0, 0, pin=False))
    halves = list(loader(parts, source(pictures, parts), 0, 0, pin=False))
    assert torch.equal(batches[1]["image"], torch.cat([halves[2]["image"], halves[3]["image"]]))
    later = list(loader(whole, source(pictures, whole), 1, 0, pin=False))
    assert torch.equal(later[0]["image"], batches[1]["image"])


def test_pictures_made_ahead_are_those_of_the_loader(tmp_path):
    """Bit by bit; a run with another augmentation does not find them, and later pictures are made as ever."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / f"data/{name}/{i}.png")
    cfg = config(data=str(tmp_path / "data"), validation="none", steps=3, global_batch=4, micro_batch=4)
    known = replace(cfg, ahead=str(tmp_path / "ahead"))
    make_ahead(known, workers=0)
    plain, _, _ = open_source(cfg, rank=0, verbose=False)
    ahead, _, _ = open_source(known, rank=0, verbose=False)
    assert plain.ahead is None
    for numbers in ([0, 1, 2, 3], [7, 2], [10, 11, 12, 13]):
        for key in ("image", "target"):
            assert torch.equal(plain.__getitems__(numbers)[key], ahead.__getitems__(numbers)[key])
    assert ahead.ahead.batch([11]) is not None
    assert ahead.ahead.batch([12]) is None
    other, _, _ = open_source(replace(known, erase=0.1), rank=0, verbose=False)
    assert other.ahead is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["resized", "padded", "center"])
def test_augmented_pictures_have_the_networks_shape(pictures, channels, crop):
    model = VimConfig(
        image=(16, 20), patch=4, stride=4, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    augment = Augment(config(crop=crop, erase=1.0), model)
    for number in range(5):
        pixels = augment(pictures.image(number), np.random.default_rng(number))
        assert pixels.shape == (channels, 16, 20)
        assert pixels.dtype == np.uint8


def test_targets_of_mixed_pictures_are_shares(pictures):
    target = soft_targets(np.array([0, 2]), 3, 0.1)
    np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
    pixels = np.stack([np.zeros((3, 8, 8), np.uint8), np.full((3, 8, 8), 200, np.uint8)])
    for cfg in (config(mixup=0.0), config(cutmix=0.0)):
        mixed, new = mix_pair(pixels, soft_targets(np.array([0, 2]), 3, 0.0), cfg, np.random.default_rng(4))
        np.testing.assert_allclose(new.sum(1), 1, rtol=1e-6)
        kept = 1 - mixed[0].mean() / 200  # share of the dark picture in the first result
        np.testing.assert_allclose(new[0, 0], kept, atol=0.01)
        np.testing.assert_allclose(new[1, 2], kept, atol=0.01)
    plain, same = mix_pair(pixels, target, config(mix=0.0), np.random.default_rng(0))
    assert plain is pixels
    assert same is target


def test_random_parts_are_inside_and_of_the_wanted_size():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        left, top, right, bottom = random_part((40, 30), (0.3, 0.6), rng)
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        areas.append((right - left) * (bottom - top) / 1200)
    assert min(areas) > 0.29
    assert max(areas) < 0.61


def test_preparation_covers_and_cuts_the_middle():
    model = VimConfig(image=(16, 16), patch=4, stride=4)
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    assert (prepare(Image.fromarray(pixels), model) > 200).mean() > 0.95
    x = to_float(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), model, torch.device("cpu"))
    assert torch.allclose(x[0, :, 0, 0], (1 - torch.tensor(model.mean)) / torch.tensor(model.std))


def test_transparency_becomes_white():
    image = Image.fromarray(np.zeros((4, 4, 4), np.uint8))
    assert (np.asarray(flatten(image)) == 255).all()
    grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
    assert (np.asarray(flatten(grey)) == 7).all()


def test_packed_file_round_trips(pictures, tmp_path):
    held = np.array([True, False, False, False, True, False])
    write_packed(tmp_path / "p.npz", pictures, held, [{"package": "x", "licence": "y"}])
    found, which, sources = read_packed(tmp_path / "p.npz")
    assert np.array_equal(found.images, pictures.images)
    assert (found.classes, found.domain, list(found.names)) == (pictures.classes, "noise", list(pictures.names))
    assert np.array_equal(which, held)
    assert sources == [{"package": "x", "licence": "y"}]
    train, other = open_pictures(str(tmp_path / "p.npz"), 16)
    assert (len(train), len(other)) == (4, 2)
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match="pack again"):
        open_pictures(str(tmp_path / "p.npz"), 16)


def test_fashion_mnist_files_are_read(tmp_path):
    for part, count in (("train", 5), ("t10k", 3)):
        pixels = np.arange(count * 784, dtype=np.uint8).tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes(range(count))))
    found, held = fashion_mnist(tmp_path)
    assert found.images.shape == (8, 28, 28)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert held.tolist() == [False] * 5 + [True] * 3
    with pytest.raises(ValueError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path / "nowhere")


def test_all_drawings_of_an_emoji_are_on_one_side():
    table = [
        {"unified": f"1F{i:03X}", "non_qualified": None, "category": "Objects", "name": f"THING {i}"}
        for i in range(0x400, 0x4C8)
    ]
    table.append({"unified": "1F3FB", "category": "Component", "name": "SKIN"})
    emoji = read_emoji(table)
    assert len(emoji) == 200
    sides = [label_emoji(emoji, np.zeros((200, 2, 2, 3), np.uint8), style)[1] for style in ("one", "other")]
    assert np.array_equal(*sides)
    assert abs(sides[0].mean() - HELD_SHARE) < 0.08
    assert 0 <= share("x") < 1
    keycap = read_emoji([{"unified": "0023-FE0F-20E3", "non_qualified": "0023-20E3", "category": "Symbols"}])[0]
    assert (keycap.code, keycap.files[0]) == ("0023-20E3", "0023-FE0F-20E3")


def test_default_pictures_are_emoji(monkeypatch):
    """Only a few are drawn here; without the packages one line says what to install."""
    from vim_compress import sources

    everything = sources.read_emoji
    monkeypatch.setattr(sources, "read_emoji", lambda table: everything(table)[:4])
    found, _ = sources.emoji_pictures(32)
    assert found.images.shape == (4, 32, 32, 3)
    assert found.images.std() > 10
    monkeypatch.setattr(sources, "_package_folder", lambda name: None)
    with pytest.raises(ValueError, match=r"vim-compress\[data\]"):
        sources.emoji_pictures()


def folder_of(path, classes=("a", "b"), count=2):
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((40, 50, 3), 50 * i, np.uint8)).save(path / name / f"{i}.png")
    return path


def test_folders_with_and_without_splits(tmp_path):
    folder_of(tmp_path / "plain")
    train, held = open_pictures(str(tmp_path / "plain"), 8)
    assert (len(train), held) == (4, None)
    assert train.images[0].shape == (16, 20, 3)  # reduced to twice the side that is wanted
    folder_of(tmp_path / "split" / "train")
    folder_of(tmp_path / "split" / "val", count=1)
    train, held = open_pictures(str(tmp_path / "split"), 8)
    assert (len(train), len(held), held.classes) == (4, 2, train.classes)
    assert train.domain == "pictures of split"
    folder_of(tmp_path / "odd" / "train")
    folder_of(tmp_path / "odd" / "val", classes=("a", "z"))
    with pytest.raises(ValueError, match="classes that training does not: z"):
        open_pictures(str(tmp_path / "odd"), 8)


def test_tiny_imagenet_is_read_as_it_is_published(tmp_path):
    """Training pictures lie in CLASS/images; those held out all in one folder beside a table of their classes."""
    for name in ("n02", "n01"):
        folder_of(tmp_path / "train" / name, classes=("images",))
    folder_of(tmp_path / "val", classes=("images",), count=3)
    table = tmp_path / "val" / "val_annotations.txt"
    table.write_text("2.png\tn01\t0\t0\t9\t9\n0.png\tn02\t0\t0\t9\t9\n")
    train, held = open_pictures(str(tmp_path), 8)
    assert (train.classes, len(train)) == (("n01", "n02"), 4)
    assert [(image[0, 0, 0], label) for image, label in zip(held.images, held.labels, strict=True)] == [
        (100, 0),
        (0, 1),
    ]
    table.write_text("2.png\tn03\n")
    with pytest.raises(ValueError, match="line 1: class 'n03'"):
        open_pictures(str(tmp_path), 8)


def test_files_are_read_late_where_there_are_many(tmp_path, monkeypatch, capsys):
    """A picture that turns out to be broken is named and counted, and another takes its place."""
    from vim_compress import pictures as module

    monkeypatch.setattr(module, "IN_MEMORY", 3)
    folder_of(tmp_path / "many")
    (tmp_path / "many" / "a" / "1.png").write_bytes(b"nothing")
    found = load_folder(tmp_path / "many", 8)
    assert all(not isinstance(image, np.ndarray) for image in found.images)
    data = source(found, config(global_batch=4, micro_batch=4))
    assert data.__getitems__([0, 1, 2, 3])["image"].shape == (4, 3, 16, 16)
    assert data.skipped == 1
    assert "1.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path / "nowhere", "is not a folder"),
        (lambda path: (path / "empty").mkdir() or path / "empty", "no folder for each class"),
        (lambda path: (path / "c" / "a").mkdir(parents=True) or path / "c", "no image; looked for .bmp"),
    ],
)
def test_wrong_folders_say_what_was_looked_for(tmp_path, make, said):
    with pytest.raises(ValueError, match=said) as error:
        open_pictures(str(make(tmp_path)), 8)
    assert "\n" not in str(error.value)


def test_classes_must_be_those_of_the_model():
    model = VimConfig(image=(16, 16), patch=4, stride=4, classes=3)
    with pytest.raises(ValueError, match="has 2 classes, the model 3 outputs"):
        named(model, ("a", "b"), "")
    with pytest.raises(ValueError, match="are not those of the model"):
        named(replace(model, labels=("x", "y", "z")), ("a", "b", "c"), "")
    assert named(replace(model, classes=0), ("a", "b"), "pets").labels == ("a", "b")


def test_parquet_is_read_into_memory_to_be_scored(tmp_path):
    """As CIFAR-100 is published: two columns of classes of which the finer counts, and a test split."""
    import io

    import datasets

    def rows(count, label):
        png = io.BytesIO()
        Image.fromarray(np.full((40, 50, 3), 7, np.uint8)).save(png, "PNG")
        features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b", "c"])}
        features["coarse_label"] = datasets.ClassLabel(names=["x", "y"])
        columns = {"img": [{"bytes": png.getvalue(), "path": None}] * count, "fine_label": [label] * count}
        columns["coarse_label"] = [0] * count
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    shards = str(tmp_path)
    rows(4, 2).to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    assert read_part(shards, 8, "held") is None
    rows(3, 1).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    held, train = read_part(shards, 8, "held"), read_part(shards, 8, "train", most=2)
    assert (held.classes, held.labels.tolist(), train.labels.tolist()) == (("a", "b", "c"), [1, 1, 1], [2, 2])
    assert held.images[0].shape == (16, 20, 3)
    rows(3, -1).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match="rows without a class"):
        read_part(shards, 8, "held")


@pytest.mark.slow
def test_parquet_streams_with_their_classes(tmp_path):
    import datasets

    folder_of(tmp_path / "raw", count=6)
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "raw"), split="train")
    (tmp_path / "shards").mkdir()
    rows.to_parquet(str(tmp_path / "shards" / "train-0.parquet"))
    rows.to_parquet(str(tmp_path / "shards" / "test-0.parquet"))
    cfg = config(data=str(tmp_path / "shards"), global_batch=4, micro_batch=4, steps=4)
    stream, held, model = open_source(cfg, rank=0, verbose=False)
    assert model.labels == ("a", "b")
    assert held is not None
    batches = list(iter(stream))
    assert len(batches) == 4
    assert batches[0]["target"].shape == (4, 2)
    stream.start = 2
    later = next(iter(stream))
    assert torch.equal(later["image"], batches[2]["image"])
    mixed, _, _ = open_source(replace(cfg, mixup=0.8, micro_batch=1), rank=0, verbose=False)
    with pytest.raises(ValueError, match=r"micro_batch: must be even, .* got 1; change it"):
        list(iter(mixed))
    (tmp_path / "shards" / "validation-0.parquet").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="readable data set"):  # not passed over for the test split, or for none
        stream.held_out()


def test_every_split_has_its_own_shards(tmp_path):
    from vim_compress.stream import held_split, shards

    assert held_split(str(tmp_path)) is None
    for name in ("test-0", "train-0", "more"):
        (tmp_path / f"{name}.parquet").touch()
    assert held_split(str(tmp_path)) == "test"
    (tmp_path / "validation-0.parquet").touch()
    assert held_split(str(tmp_path)) == "validation"
    names = {split: [file.stem for file in shards(str(tmp_path), split)] for split in ("train", "validation", "test")}
    assert names == {"train": ["more", "train-0"], "validation": ["validation-0"], "test": ["test-0"]}


def test_recipes_are_valid_and_plain_values_come_back():
    from vim_compress.config import config_from_dict
    from vim_compress.recipes import TrainConfig
    from vim_compress.sparsity import SparsityConfig

    for name in RECIPES:
        made = recipe(name)
        values = json.loads(json.dumps(made.to_dict()))
        parts = {"model": config_from_dict(values["model"]), "sparsity": SparsityConfig(**values["sparsity"])}
        assert TrainConfig(**{**values, **parts}) == made
    with pytest.raises(ValueError, match="nearest are fashion-mnist"):
        recipe("fashion-mnis")
