"""Real parquet files and WebDataset shards: read row by row, nothing but tokens and captions kept."""

import io
import tarfile
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from muse_mamba import tokencache
from muse_mamba.data import loader
from muse_mamba.recipes import recipe
from muse_mamba.stream import PictureStream
from muse_mamba.tokenizer.recipes import recipe as tokenizer_recipe
from muse_mamba.train import train
from PIL import Image

COUNT, SIDE = 8, 32


def encoded(number):
    """A picture of one grey level, which tells its number."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), 20 * number + 10, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder):
    features = b'{"info": {"features": {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}}}'
    rows = [{"image": {"bytes": encoded(i), "path": f"{i}.png"}, "text": f"grey {i}"} for i in range(COUNT)]
    for part in range(2):
        table = pa.Table.from_pylist(rows[4 * part : 4 * part + 4]).replace_schema_metadata({"huggingface": features})
        pq.write_table(table, folder / f"part-{part}.parquet")


def write_webdataset(folder):
    for part in range(2):
        with tarfile.open(folder / f"shard-{part}.tar", "w") as tar:
            for i in range(4 * part, 4 * part + 4):
                for name, data in ((f"{i:04}.png", encoded(i)), (f"{i:04}.txt", f"grey {i}".encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(params=(write_parquet, write_webdataset), ids=("parquet", "webdataset"))
def shards(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "shards"
    folder.mkdir()
    request.param(folder)
    return folder


def levels(cfg, start, rank, batches):
    """The numbers of the pictures in micro-batches."""
    stream = PictureStream(cfg, rank, flip=False, shift=0.0)
    found = islice(loader(cfg, stream, start, rank, pin=False), batches)
    return [((batch["pictures"][:, 0, 0, 0].int() - 10) // 20).tolist() for batch in found]


def test_rows_come_once_an_epoch_and_a_resumed_stream_goes_on(shards):
    cfg = replace(tokenizer_recipe("tiny"), data=str(shards), global_batch=4, micro_batch=4, adversarial=0.0)
    whole = levels(cfg, 0, 0, 4)
    assert sorted(whole[0] + whole[1]) == sorted(whole[2] + whole[3]) == list(range(COUNT))
    assert whole[0] + whole[1] != whole[2] + whole[3]
    assert levels(cfg, 3, 0, 1) == whole[3:]
    two = replace(cfg, micro_batch=2, processes=2)
    assert [levels(two, 0, rank, 1)[0] for rank in (0, 1)] == [whole[0][:2], whole[0][2:]]


def test_row_that_is_no_picture_is_replaced(shards, capfd):
    if not any(shards.glob("*.parquet")):
        with tarfile.open(shards / "shard-1.tar", "a") as tar:
            entry = tarfile.TarInfo("0009.png")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"none"))
            entry = tarfile.TarInfo("0009.txt")
            tar.addfile(entry, io.BytesIO(b""))
        cfg = replace(tokenizer_recipe("tiny"), data=str(shards), global_batch=3, micro_batch=3, adversarial=0.0)
        found = [number for batch in levels(cfg, 0, 0, 3) for number in batch]
        assert set(found) == set(range(COUNT))
        assert len(found) == COUNT + 1
        assert "skipped row" in capfd.readouterr().err


def test_tokenizer_learns_from_a_stream_and_resumes_to_the_same_bits(shards, tmp_path):
    from muse_mamba.tokenizer.train import train as train_tokenizer

    cfg = replace(tokenizer_recipe("tiny"), data=str(shards), steps=4, save_every=2, log_every=2, sample_every=4)
    train_tokenizer(cfg, tmp_path / "whole")
    train_tokenizer(replace(cfg, stop_at=2), tmp_path / "parts")
    train_tokenizer(cfg, tmp_path / "parts", resume_run=True)
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_token_model_keeps_tokens_of_a_stream(shards, tmp_path, weights, byte_encoder, monkeypatch):
    """The second run reads the tokens and captions from the cache."""
    base = recipe("tiny")
    cfg = replace(
        base,
        data=str(shards),
        tokenizer=str(weights[1]),
        text_encoder=str(byte_encoder),
        steps=2,
        warmup=1,
        variants=2,
        token_cache=str(tmp_path / "tokens"),
        model=replace(base.model, method="concat"),
    )
    assert train(cfg, tmp_path / "first").step == 2
    assert len(list((tmp_path / "tokens").glob("tokens-*.safetensors"))) == 1
    monkeypatch.setattr(tokencache, "encode_part", None)
    assert train(cfg, tmp_path / "second").step == 2
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    (next((tmp_path / "tokens").iterdir())).write_bytes(b"no")
    with pytest.raises(ValueError, match=r"--token_cache: .* cannot be used"):
        train(cfg, tmp_path / "third")
