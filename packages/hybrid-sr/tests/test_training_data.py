"""Training data: which crops a run sees, and where photos come from."""

import dataclasses
import io
import itertools
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hybrid_sr.data import Crops, Steps, contrasting_cells, loader, open_source, to_float
from hybrid_sr.pack import main as pack_main
from hybrid_sr.photos import Pair, read_pair, read_pairs, shrink
from hybrid_sr.recipes import TrainConfig, recipe
from hybrid_sr.resize import imresize
from hybrid_sr.sources import (
    DEBIAN_PHOTOS,
    HELD_OUT,
    VALIDATION,
    debian_photos,
    find_photos,
    is_stream,
    packed,
)
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:height, :width]


def pair(height: int, width: int, scale: int = 2, seed: int = 0) -> Pair:
    hr = picture(height * scale, width * scale, seed)
    return Pair(f"photo{seed}", hr, shrink(hr, scale))


def crops_of(*pairs: Pair, seed: int = 3, patch: int = 8, scale: int = 2) -> Crops:
    return Crops(pairs, scale=scale, patch=patch, seed=seed, min_contrast=0)


@pytest.fixture
def cfg() -> TrainConfig:
    return dataclasses.replace(recipe("tiny", 2), patch=8, steps=6, validation="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        Image.fromarray(picture(40, 60, number)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_low_resolution_crop_is_the_high_resolution_one_shrunk():
    """Crops stay aligned to the scale, through every flip: away from its border a crop shrinks to its partner."""
    for scale in (2, 3, 4):
        crops = crops_of(pair(64, 48, scale), patch=24, scale=scale)
        batch = crops.__getitems__(range(12))
        assert batch["lr"].dtype == batch["hr"].dtype == torch.uint8
        assert batch["lr"].shape == (12, 3, 24, 24)
        assert batch["hr"].shape == (12, 3, 24 * scale, 24 * scale)
        for lr, hr in zip(batch["lr"].numpy(), batch["hr"].numpy(), strict=True):
            small = imresize(np.ascontiguousarray(hr.transpose(1, 2, 0)), 1 / scale).transpose(2, 0, 1)
            inside = (slice(None), slice(4, -4), slice(4, -4))
            assert np.abs(small[inside].astype(int) - lr[inside]).max() <= 1


def test_epoch_visits_every_cell_once_and_epochs_differ():
    crops = crops_of(pair(32, 24), pair(16, 16, seed=1))
    assert len(crops) == 4 * 3 + 2 * 2
    from hybrid_sr.data import _order

    first, second = (_order(3, epoch, len(crops)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(len(crops)))
    assert (first != second).any()


def test_all_eight_positions_of_a_square_occur():
    crops = crops_of(pair(32, 32))
    seen = {tuple(crops.place(number)[3]) for number in range(200)}
    assert len(seen) == 8


def test_crop_depends_on_seed_and_number_alone():
    crops = crops_of(pair(32, 24), pair(24, 40, seed=1))
    together = crops.__getitems__([5, 17, 40])
    alone = crops_of(pair(32, 24), pair(24, 40, seed=1)).__getitems__([40])
    assert torch.equal(together["hr"][2], alone["hr"][0])
    other = crops_of(pair(32, 24), pair(24, 40, seed=1), seed=4)
    assert not torch.equal(other.__getitems__([5, 17, 40])["hr"], together["hr"])


def test_flat_cells_are_left_out():
    lr = picture(16, 24)
    lr[:8, :8] = 90
    cells = contrasting_cells(lr, 8, 4.0)
    assert [0, 0] not in cells.tolist()
    assert len(cells) == 5
    flat = Pair("sea", np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="contrast"):
        Crops([flat], scale=2, patch=8, seed=0, min_contrast=4)


@pytest.mark.parametrize(("processes", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_processes_and_micro_steps_share_out_the_same_global_batch(cfg: TrainConfig, processes: int, micro: int):
    cfg = dataclasses.replace(cfg, global_batch=8, micro_batch=micro, processes=processes)
    parts = [list(Steps(cfg, 2, rank)) for rank in range(processes)]
    assert {len(part) for part in parts} == {len(Steps(cfg, 2, 0))}
    step = [number for part in parts for batch in part[: cfg.micro_steps] for number in batch]
    assert sorted(step) == list(range(16, 24))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on fork, PyTorch's own way
def test_loader_processes_change_nothing(cfg: TrainConfig):
    crops = crops_of(pair(32, 24))
    runs = []
    for workers in (0, 2):
        batches = loader(dataclasses.replace(cfg, workers=workers), crops, 1, 0, pin=False)
        runs.append([batch["hr"] for batch in batches])
    assert len(runs[0]) == len(runs[1]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_loader_leaves_the_global_random_numbers_alone(cfg: TrainConfig):
    """Dropout after a resume would differ otherwise: a fresh iterator would draw its seed from them."""
    before = torch.get_rng_state()
    next(iter(loader(cfg, crops_of(pair(32, 24)), 0, 0, pin=False)))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_on_the_device_is_float_in_0_to_1():
    batch = {"lr": torch.tensor([0, 51, 255], dtype=torch.uint8)}
    out = to_float(batch, torch.device("cpu"))["lr"]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.tensor([0.0, 0.2, 1.0]))


def test_shrinking_in_strips_equals_the_whole(monkeypatch: pytest.MonkeyPatch):
    hr = picture(400, 36)
    whole = imresize(hr, 1 / 4, dtype=np.float32)
    monkeypatch.setattr("hybrid_sr.photos.STRIP_ROWS", 24)
    np.testing.assert_array_equal(shrink(hr, 4), whole)


def test_folder_is_read_recursively_and_bad_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "sub").mkdir()
    Image.fromarray(picture(40, 60)).save(folder / "sub" / "grey.jpg")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")
    Image.fromarray(picture(9, 9)).save(folder / "small.png")
    pairs = read_pairs(find_photos(str(folder)), 2, 8)
    assert [p.name for p in pairs] == ["0.png", "1.png", "2.png", "sub/grey.jpg"]
    said = capsys.readouterr().err
    assert "broken.png" in said
    assert "small.png: 9x9 pixels, smaller than a crop of 16" in said
    assert "2 of 6 images skipped" in said


@pytest.mark.parametrize("name", ["0.png", "0x2.png"])
def test_given_low_resolution_images_are_used(folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str):
    small = tmp_path_factory.mktemp("lr")
    lr = picture(20, 30, 9)
    Image.fromarray(lr).save(small / name)
    for other in (folder / "1.png", folder / "2.png"):
        other.unlink()
    (photo,) = find_photos(str(folder), data_lr=str(small), scale=2)
    np.testing.assert_array_equal(read_pair(photo, 2, 8).lr, lr)
    with pytest.raises(ValueError, match="not 1/4 of it"):
        read_pair(photo, 4, 4)


def test_missing_low_resolution_image_is_named(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(ValueError, match=r"no image for 0\.png"):
        find_photos(str(folder), data_lr=str(tmp_path_factory.mktemp("lr")))


def test_wrong_and_empty_folders_say_what_was_looked_for(tmp_path: Path):
    with pytest.raises(ValueError, match="is not a folder"):
        find_photos(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"\.png"):
        find_photos(str(tmp_path))


def test_photos_larger_than_memory_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, cfg: TrainConfig):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    # a million headers would take an hour: the first that are too many end it
    with pytest.raises(ValueError, match=r"data: 1 of \d+ images take .* GB of memory per process"):
        open_source(dataclasses.replace(cfg, data=str(folder)), rank=0, verbose=False)


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A small tree as the Debian packages unpack it, one of its photos a symbolic link."""
    root = tmp_path / "root"
    for number, (_, file, _, _) in enumerate(DEBIAN_PHOTOS):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 1:
            path.symlink_to(root / DEBIAN_PHOTOS[0][1])
        else:
            Image.fromarray(picture(48, 64, number)).save(path, quality=90)
    return root


def test_debian_photos_are_split_by_photo_and_links_are_skipped(debian: Path):
    photos = debian_photos(debian)
    assert len(photos) == len(DEBIAN_PHOTOS) - 1 == 36
    by_split = {split: {p.name for p in photos if p.split == split} for split in ("train", "validation", "held-out")}
    assert by_split["held-out"] == HELD_OUT
    assert by_split["validation"] == VALIDATION
    assert len(by_split["train"]) == 36 - len(HELD_OUT) - len(VALIDATION)
    assert len({p.name for p in photos}) == len(photos)
    assert read_pair(photos[0], 2, 8).hr.shape == (24, 32, 3)  # halved


def test_missing_debian_packages_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"apt-get install .*mate-backgrounds"):
        debian_photos(tmp_path)


def test_packing_keeps_what_numbers_are_taken_on_lossless(
    debian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cfg: TrainConfig
):
    out = tmp_path / "packed"
    assert pack_main(["--out", str(out), "--root", str(debian), "--no-mosaic", "--limit", "0.065"]) == 0
    assert "36 photos" in capsys.readouterr().out
    rows = json.loads((out / "manifest.json").read_text())["photos"]
    assert sum(row["bytes"] for row in rows) <= 65_000
    assert all(row["lossless"] for row in rows if row["split"] != "train")
    assert not all(row["lossless"] for row in rows)
    originals = {p.name: p for p in debian_photos(debian)}
    for photo in packed(out):
        hr = read_pair(photo, 2, 8).hr
        if photo.path.suffix == ".webp":
            np.testing.assert_array_equal(hr, read_pair(originals[photo.name], 2, 8).hr)
    assert pack_main(["--out", str(out), "--root", str(debian), "--no-mosaic"]) == 2
    crops, shown = open_source(dataclasses.replace(cfg, data=str(out), validation="auto"), rank=0, verbose=False)
    assert isinstance(crops, Crops)
    assert {p.name for p in shown} == VALIDATION
    assert not {p.name for p in crops.pairs} & (HELD_OUT | VALIDATION)


def test_incomplete_pack_is_refused(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="pack again"):
        find_photos(str(tmp_path))


def test_default_is_the_mosaics_and_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    photos = find_photos(None)
    assert [p.name for p in photos] == ["bmng", "etopo1", "shadedrelief"]
    assert {p.split for p in photos} == {"train"}
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'hybrid-sr\[data\]'"):
        find_photos(None)


def test_photos_for_evaluation_are_never_training_data(monkeypatch: pytest.MonkeyPatch):
    packages = {p.package for p in find_photos(None)} | {package for _, _, package, _ in DEBIAN_PHOTOS}
    assert not packages & {"scikit-image", "scikit-learn", "foolbox"}


@pytest.mark.parametrize(
    ("data", "stream"),
    [("owner/name", True), ("packed", False), ("./photos", False), ("/photos/hr", False), ("photos/", False)],
)
def test_names_of_data_sets_are_told_from_paths(data: str, stream: bool, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_stream(data) == stream


class FakeRows:
    """Stands for the stream of the library `datasets`: twelve rows, another order in every epoch."""

    def __init__(self, values: list[dict]) -> None:
        self.values, self.epoch = values, 0
        self.features: dict = {"picture": FakeImage(), "label": object()}

    def select_columns(self, column: str) -> "FakeRows":
        assert column == "picture"
        return self

    def cast_column(self, column: str, feature: object) -> "FakeRows":
        return self

    def shuffle(self, seed: int, buffer_size: int) -> "FakeRows":
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(self.values))
        return iter([{"picture": self.values[i]} for i in order])


class FakeImage:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 44, number)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def stream_cfg(cfg: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    values = [{"bytes": png(n)[: 60 if n == 4 else None], "path": f"{n}.png"} for n in range(12)]
    fake = types.ModuleType("datasets")
    fake.config = types.SimpleNamespace(PYARROW_VERSION=types.SimpleNamespace(major=24))
    vars(fake).update(
        Image=FakeImage,
        exceptions=types.SimpleNamespace(DatasetsError=LookupError),
        load_dataset=lambda *_, **__: FakeRows(values),
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return dataclasses.replace(cfg, data="owner/name", global_batch=4, micro_batch=2, processes=2)


def test_stream_resumes_and_divides_its_rows(stream_cfg: TrainConfig):
    """Two processes together see every row of an epoch once; starting at a later step gives the rest."""
    sources = [open_source(stream_cfg, rank=rank, verbose=False)[0] for rank in (0, 1)]
    whole = [list(source) for source in sources]  # pyright: ignore[reportArgumentType]
    assert [len(batches) for batches in whole] == [6, 6]
    epoch = [crop.numpy().tobytes() for part in whole for batch in part[:3] for crop in batch["lr"]]
    assert len(set(epoch)) == 12  # the broken row's place is taken by another crop of the first image
    later = open_source(stream_cfg, rank=1, verbose=False)[0]
    later.start = 2  # pyright: ignore[reportAttributeAccessIssue]
    for a, b in itertools.zip_longest(later, whole[1][2:]):  # pyright: ignore[reportArgumentType]
        assert torch.equal(a["hr"], b["hr"])


def test_stream_names_bad_rows_and_replaces_them(stream_cfg: TrainConfig, capsys: pytest.CaptureFixture[str]):
    cfg = dataclasses.replace(stream_cfg, processes=1, steps=3, warmup=0)
    source, _ = open_source(cfg, rank=0, verbose=False)
    batches = list(source)  # pyright: ignore[reportArgumentType]
    assert len(batches) == 6
    assert capsys.readouterr().err.count("of owner/name") == 1
    assert source.names([7]) == ["row 7 of owner/name"]


def test_stream_crops_are_aligned(stream_cfg: TrainConfig):
    from hybrid_sr.stream import random_crop

    image = picture(80, 90)
    whole = shrink(image, 2)
    for number in range(20):
        rng, again = np.random.default_rng(number), np.random.default_rng(number)
        lr, hr = random_crop(image, 2, 16, rng)
        top, left = again.integers(40 - 16 + 1), again.integers(45 - 16 + 1)
        flips = again.random(3) < 0.5
        from hybrid_sr.data import flip

        np.testing.assert_array_equal(lr, flip(whole[top : top + 16, left : left + 16], flips))
        np.testing.assert_array_equal(hr, flip(image[2 * top :, 2 * left :][:32, :32], flips))


def test_stream_without_the_library_says_how_to_get_it(cfg: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hybrid-sr\[streaming\]"):
        open_source(dataclasses.replace(cfg, data="owner/name"), rank=0, verbose=False)
