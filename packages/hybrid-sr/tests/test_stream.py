"""Real parquet files and WebDataset shards as training data, read by the library that users have."""

import io
import tarfile
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hybrid_sr.config import ModelConfig
from hybrid_sr.data import loader, open_source
from hybrid_sr.recipes import tiny
from hybrid_sr.resize import imresize
from PIL import Image

COUNT, SIDE = 9, 48
MODEL = ModelConfig(scale=2, dim=12, depths=(1,), heads=2, window=8)


def images():
    """Smooth pictures of which every one has a colour of its own."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 60, (COUNT, 6, 6, 3), np.uint8)
    return [np.clip(imresize(x, 8).astype(int) + 20 * i, 0, 255).astype(np.uint8) for i, x in enumerate(rough)]


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder):
    rows = [
        {"image": {"bytes": encoded(image), "path": f"{i}.png"}, "caption": "x"} for i, image in enumerate(images())
    ]
    features = (
        b'{"info": {"features": {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}}}'
    )
    for part in range(3):
        table = pa.Table.from_pylist(rows[3 * part : 3 * part + 3]).replace_schema_metadata({"huggingface": features})
        pq.write_table(table, folder / f"part-{part}.parquet")


def write_webdataset(folder):
    for part in range(3):
        with tarfile.open(folder / f"shard-{part}.tar", "w") as tar:
            for i in range(3 * part, 3 * part + 3):
                for name, data in ((f"{i:04}.png", encoded(images()[i])), (f"{i:04}.txt", b"x")):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(params=(write_parquet, write_webdataset), ids=("parquet", "webdataset"))
def cfg(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "shards").mkdir()
    request.param(tmp_path / "shards")
    options = {"patch": 16, "global_batch": 3, "micro_batch": 3, "validation": "none", "workers": 4}
    return replace(tiny(2), model=MODEL, data=str(tmp_path / "shards"), **options)


def first(cfg, batches, start=0):
    source, _ = open_source(cfg, rank=0, verbose=False)
    return list(islice(loader(cfg, source, start, 0, pin=False), batches))


def origin(crop):
    """Return which image a high-resolution crop is from, after trying every place and turn."""
    for i, image in enumerate(images()):
        windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32), axis=(0, 1))[::2, ::2]
        turned = crop
        for turn in range(8):
            if (windows == turned).all((2, 3, 4)).any():
                return i
            turned = np.rot90(turned, 1, (1, 2))
            if turn == 3:
                turned = turned.transpose(0, 2, 1)
    return None


def test_shards_are_read_in_full_and_cropped_in_place(cfg):
    """An epoch has every image once; the low-resolution crop is that of the high-resolution one."""
    batches = first(cfg, COUNT // 3)
    found = [origin(crop.numpy()) for batch in batches for crop in batch["hr"]]
    assert sorted(found) == list(range(COUNT))
    inside = slice(4, -4)  # away from the crop's border, where the whole picture knows more
    for batch in batches:
        for lr, hr in zip(batch["lr"].numpy(), batch["hr"].numpy(), strict=True):
            small = imresize(np.ascontiguousarray(hr.transpose(1, 2, 0)), 1 / 2)
            assert np.abs(small[inside, inside].astype(int) - lr.transpose(1, 2, 0)[inside, inside]).max() <= 1


def test_order_depends_on_neither_threads_nor_where_it_starts(cfg):
    whole = first(cfg, 6)  # two epochs
    alone = first(replace(cfg, workers=1), 6)
    later = first(cfg, 2, start=4)
    for ours, theirs in ((whole, alone), (whole[4:], later)):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a["lr"], b["lr"]) and torch.equal(a["hr"], b["hr"])
    assert not all(torch.equal(a["hr"], b["hr"]) for a, b in zip(whole[:3], whole[3:], strict=True))
