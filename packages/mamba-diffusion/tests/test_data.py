"""What is trained on: functions of the seed and a number, real values at their places, nothing from another split."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mamba_diffusion.data import Crops, cell_centres, moments_of, open_source, pyramid, shape_at, time_at
from mamba_diffusion.fieldset import find_parts, resample
from mamba_diffusion.recipes import recipe
from mamba_diffusion.sources import Field, find_fields


def config(data=None, **changes):
    return dataclasses.replace(recipe("tiny"), data=None if data is None else str(data), **changes)


def test_same_number_same_field_whatever_the_batch(pictures):
    crops, _, _ = open_source(config(pictures), verbose=False)
    batch, one = crops.__getitems__([4, 5, 6, 7]), crops[6]
    for name, values in one.items():
        assert (values == (batch[name] if name == "anchors" else batch[name][2:3])).all(), name


def test_values_are_those_at_the_coordinates():
    """A field that says where it is: x and y, cell-centred, x first, through crops and flips."""
    grid = cell_centres((16, 16)).reshape(16, 16, 2)
    field = Field(name="grid", values=grid)
    model = dataclasses.replace(recipe("tiny").model, channels=2)
    cfg = config(model=model, min_contrast=0.0, steps=20)
    batch = Crops([field], cfg, moments_of([field], 2)).__getitems__([0, 1, 2, 3])
    for kind in ("input", "query"):
        coords, values = batch[f"{kind}_coords"].numpy(), batch[f"{kind}_values"].numpy()
        folded = np.minimum(coords, 1 - coords)
        np.testing.assert_allclose(np.sort(np.minimum(values, 1 - values), -1), np.sort(folded, -1), atol=1e-6)


def test_sizes_vary_from_step_to_step_within_bounds():
    cfg = config(sides=(16, 24), queries=(32, 64), sensors=(0.05, 0.5), min_valid=0.6)
    shapes = [shape_at(step, cfg) for step in range(300)]
    assert {s.side for s in shapes} == {16, 24}
    assert {s.queries for s in shapes} == {32, 64}
    counts = sorted({s.sensors for s in shapes})
    assert (counts[0], counts[-1], len(counts)) == (13, 128, 8)
    assert all(1 <= s.anchors <= s.queries for s in shapes)


def test_times_of_a_step_are_evenly_spread():
    cfg = config(global_batch=8)
    times = np.sort([time_at(n, cfg) for n in range(16, 24)])
    np.testing.assert_allclose(np.diff(times), 1 / 8, atol=1e-6)


def test_land_is_neither_sensor_nor_query():
    values = np.random.default_rng(0).random((32, 32, 1)).astype(np.float32)
    values[:, :10] = np.nan
    values[:, 10:] += 5
    field = Field(name="sea", values=values)
    cfg = config(model=dataclasses.replace(recipe("tiny").model, channels=1), min_contrast=0.0)
    batch = Crops([field], cfg, moments_of([field], 1)).__getitems__([0, 1, 2, 3])
    assert float(batch["input_values"].min()) >= 5
    assert float(batch["query_values"].min()) >= 5


def test_moments_are_per_channel_and_leave_out_land():
    values = np.stack([np.full((8, 8), 3.0), np.arange(64.0).reshape(8, 8)], -1).astype(np.float32)
    values[0, 0] = np.nan
    found = moments_of([Field(name="a", values=values)], 2)
    np.testing.assert_allclose(found.mean, [3, np.arange(1, 64).mean()], rtol=1e-6)
    np.testing.assert_allclose(found.std, [1, np.arange(1, 64).std()], rtol=1e-6)


def test_pyramid_halves_images_only():
    image = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert [x.shape[0] for x in pyramid(image, 3)] == [64, 32, 16]
    assert len(pyramid(image.astype(np.float32), 3)) == 1


def test_truth_at_a_coarser_grid_is_the_mean_of_its_cells():
    fine = np.random.default_rng(0).random((12, 12, 2)).astype(np.float32)
    coarse = resample(fine, 4)
    np.testing.assert_allclose(coarse[1, 2], fine[3:6, 6:9].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(resample(fine, 8).mean((0, 1)), fine.mean((0, 1)), rtol=1e-5)  # 12 to 8: shared cells
    fine[:6] = np.nan
    assert np.isnan(resample(fine, 4)[:2]).all()


def test_npz_files_with_masks(tmp_path):
    values, mask = np.random.default_rng(0).random((3, 20, 20, 1)), np.ones((1, 20, 20), bool)
    mask[0, :5] = False
    np.savez(tmp_path / "a.npz", values=values, mask=mask, unit="K")
    fields = find_fields(str(tmp_path / "a.npz"), "rgb")
    assert [f.unit for f in fields] == ["K"] * 3
    assert np.isnan(fields[0].values[:5]).all()
    assert np.isfinite(fields[0].values[5:]).all()


def test_netcdf_file(tmp_path):
    from scipy.io import netcdf_file

    with netcdf_file(tmp_path / "a.nc", "w") as file:
        for name, size in (("time", 2), ("lat", 12), ("lon", 16)):
            file.createDimension(name, size)
        variable = file.createVariable("sst", "f", ("time", "lat", "lon"))
        variable.units, variable.missing_value = "K", np.float32(-1e34)
        variable[:] = np.arange(384.0).reshape(2, 12, 16)
        variable[0, 0, 0] = -1e34
    fields = find_fields(str(tmp_path / "a.nc"), "sst")
    assert [(f.values.shape, f.unit) for f in fields] == [((12, 16, 1), "K")] * 2
    assert np.isnan(fields[0].values[0, 0, 0])


def test_parquet_with_images(tmp_path):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(buffer, format="PNG")
    table = pa.table({"img": [{"bytes": buffer.getvalue(), "path": None}] * 3, "label": [0, 1, 2]})
    pq.write_table(table, tmp_path / "test-00000.parquet")
    fields = find_fields(str(tmp_path), "rgb")
    assert [(f.split, f.values.shape) for f in fields] == [("held-out", (32, 32, 3))] * 3


@pytest.mark.parametrize(
    ("channels", "unit", "said"),
    [(1, "", "3 channels, the model 2 and 1"), (3, "K", "in several units, , K")],
)
def test_fields_that_do_not_fit(tmp_path, channels, unit, said):
    np.savez(tmp_path / "a.npz", values=np.random.default_rng(0).random((2, 32, 32, 3)))
    if unit:
        np.savez(tmp_path / "b.npz", values=np.random.default_rng(0).random((2, 32, 32, 3)), unit=unit)
    cfg = config(tmp_path, model=dataclasses.replace(recipe("tiny").model, channels=channels))
    with pytest.raises(ValueError, match=said):
        open_source(cfg, verbose=False)


def test_flat_fields_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", values=np.full((1, 32, 32, 3), 0.5))
    with pytest.raises(ValueError, match="lower --sides, --min_valid or --min_contrast"):
        open_source(config(tmp_path), verbose=False)


def test_what_the_extra_installs_is_split_by_time_and_region():
    air = find_fields(None, "air")
    times = {
        split: [int(f.name.split("[")[1][:-1]) for f in air if f.split == split] for split in ("train", "held-out")
    }
    assert max(times["train"]) < min(times["held-out"])
    assert {f.unit for f in find_fields(None, "temperature")} == {"K"}
    assert {f.split for f in find_fields(None, "topography")} == {"train", "validation", "held-out"}


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "iris_sample_data", None)
    monkeypatch.setattr("mamba_diffusion.embedded.package_folder", lambda _: None)
    for subject in ("rgb", "air", "sst", "topography"):
        with pytest.raises(ValueError, match=r"pip install 'mamba-diffusion\[data\]'"):
            find_fields(None, subject)


def test_parts_are_spread_over_the_fields_and_repeat(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", values=rng.random((4, 64, 64, 1)))
    ask = {"split": "train", "side": 16, "share": 0.2, "count": 8, "resolutions": (32,)}
    parts, again = (find_parts(str(tmp_path), "sst", **ask) for _ in range(2))
    assert [p.name for p in parts] == [f"a.npz[{n}]" for n in (0, 0, 1, 1, 2, 2, 3, 3)]
    for a, b in zip(parts, again, strict=True):
        np.testing.assert_array_equal(a.sensors, b.sensors)
        assert len(a.sensors) == 51
        np.testing.assert_allclose(resample(a.fine[32], 16), a.values, rtol=1e-5)
    assert set(parts[0].with_share(0.05, 0).sensors) < set(parts[0].sensors)
    with pytest.raises(ValueError, match="no field of split held-out, there are train"):
        find_parts(str(tmp_path), "sst", **{**ask, "split": "held-out"})


def test_a_part_on_a_finer_grid_has_its_sensors_where_they_were(tmp_path):
    """Each within half a cell of its place, with the finer grid's value; a place without a number is left out."""
    np.savez(tmp_path / "a.npz", values=np.random.default_rng(0).random((1, 64, 64, 1)))
    (part,) = find_parts(str(tmp_path), "sst", split="train", side=16, share=0.2, count=1, resolutions=(16, 48))
    same, finer = part.on_grid(16), part.on_grid(48)
    np.testing.assert_array_equal(same.sensors, np.sort(part.sensors))
    assert len(finer.sensors) == len(part.sensors)
    places, values = finer.observed
    away = np.abs(places[:, None] - part.observed[0]).max(-1).min(1)
    assert away.max() < 1e-6  # 48 is 3 times 16: the cell in the middle
    np.testing.assert_array_equal(values, part.fine[48].reshape(-1, 1)[finer.sensors])
    part.fine[48][:24] = np.nan
    assert 0 < len(part.on_grid(48).sensors) < len(finer.sensors)


def write_sets(folder, sizes, unit="K"):
    """Write CSV files of scattered points of one smooth field a file."""
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        x, y = np.random.default_rng(number).random((2, size)) * [[8], [4]]
        rows = [f"{a:.5f},{b:.5f},{280 + number + np.sin(a + b):.5f}" for a, b in zip(x, y, strict=True)]
        (folder / f"day{number}.csv").write_text("\n".join([f"x,y,temperature [{unit}]", *rows]) + "\n")


def test_point_sets_are_trained_on(tmp_path, capsys):
    """Scattered points of CSV files: sensors and queries of a step come from one file, values in its unit."""
    from mamba_diffusion.pointsets import PointSets

    write_sets(tmp_path / "days", (90, 60, 75))
    (tmp_path / "days" / "broken.csv").write_text("x,y,t\n1,2\n")
    cfg = config(tmp_path / "days", model=dataclasses.replace(recipe("tiny").model, channels=1), sensors=(0.2, 0.4))
    source, shown, moments = open_source(cfg, verbose=True)
    assert isinstance(source, PointSets)
    said = capsys.readouterr().err
    assert "broken.csv" in said
    assert "1 of 4 files skipped" in said
    assert (len(source), source.unit, source.fewest, shown) == (3, "K", 60, [])
    assert 279 < moments.mean[0] < 283
    batch = source.__getitems__([0, 1, 2, 3])
    again = source.__getitems__([0, 1, 2, 3])
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert 12 <= batch["input_coords"].shape[1] <= 24
    assert batch["query_coords"].shape[1] == min(60, cfg.queries[0])
    assert float(batch["input_coords"][..., 0].max()) <= 1
    assert float(batch["input_coords"][..., 1].max()) <= 0.6  # the longer side becomes 1
    wide = batch["input_values"] - batch["query_values"].mean((1, 2), keepdim=True)
    assert float(wide.abs().max()) < 2.5  # of one file
    write_sets(tmp_path / "days", (90,), unit="degC")
    with pytest.raises(ValueError, match="is in K, others in degC"):
        open_source(cfg, verbose=False)


def test_run_on_point_sets(tmp_path):
    from mamba_diffusion.train import main

    write_sets(tmp_path / "days", (90, 60))
    asked = ["tiny", "--data", str(tmp_path / "days"), "--model.channels", "1", "--steps", "3", "--log_every", "1"]
    assert main([*asked, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def write_shard(folder, count):
    """Write a WebDataset shard of PNG pictures, the third of which is broken."""
    import io
    import tarfile

    from PIL import Image

    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 255, (24, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, format="PNG")
            data = b"no picture" if number == 2 else buffer.getvalue()
            entry = tarfile.TarInfo(f"{number:03d}.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def test_stream_of_shards_goes_on_where_it_was(tmp_path, capfd):
    """Squares of pictures out of shards; a later start gives the same later batches; a broken row is named."""
    from mamba_diffusion.data import loader
    from mamba_diffusion.stream import Stream

    write_shard(tmp_path / "shards", 7)
    cfg = config(tmp_path / "shards", steps=4)
    source, shown, moments = open_source(cfg, verbose=False)
    assert isinstance(source, Stream)
    assert shown == []
    assert moments.mean.shape == (3,)
    whole = list(loader(cfg, source, 0, 0, pin=False))
    assert len(whole) == 4
    assert whole[0]["input_values"].shape[::2] == (4, 3)
    late = list(loader(cfg, source, 2, 0, pin=False))
    assert all(torch.equal(late[n][k], whole[2 + n][k]) for n in range(2) for k in late[n])
    assert "skipped row" in capfd.readouterr().err
    with pytest.raises(ValueError, match="stream of pictures, 2 axes and 3 channels"):
        open_source(dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, channels=1)), verbose=False)


def test_more_files_than_memory_are_refused_as_soon_as_it_is_clear(pictures, monkeypatch):
    """A folder of a million pictures must not end with the system killing the process."""
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ValueError, match=r"data: 1 of 2 files take .* GB of memory .*; give fewer, or pack them into"):
        find_fields(str(pictures), "rgb")
