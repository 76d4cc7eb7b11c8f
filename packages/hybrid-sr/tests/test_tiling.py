"""Tiles join without seams, weights sum to 1, memory is bounded, and the tile follows the free memory."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hybrid_sr import memory
from hybrid_sr.ensemble import SelfEnsemble
from hybrid_sr.memory import auto_tile, free_memory, network_bytes_per_pixel
from hybrid_sr.tiling import GRID, check_tile, strips, tile_count, tile_ranges, upscale_tiled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

RNG = np.random.default_rng(0)
sizes = st.integers(1, 700)
tiles = st.integers(4, 12).map(lambda n: n * GRID)


def nearest(scale):
    return lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def local_network(radius, scale=2):
    """Sees `radius` pixels in every direction, zero-padded, as a network of convolutions does."""
    generator = torch.Generator().manual_seed(0)
    side = 2 * radius + 1
    weight = torch.rand(3 * scale**2, 3, side, side, generator=generator) * 1.4 / (3 * side**2)
    return lambda x: F.pixel_shuffle(F.conv2d(x, weight, padding=radius), scale)


@settings(deadline=None, max_examples=100)
@given(length=sizes, tile=tiles, overlap=st.integers(0, 2).map(lambda n: n * GRID), scale=st.integers(1, 4))
def test_tiles_cover_everything_and_weights_sum_to_one(length, tile, overlap, scale):
    total = np.zeros(length * scale)
    placed = strips(length, tile, overlap, scale)
    for strip in placed:
        assert strip.start % GRID == 0
        assert 0 < strip.stop - strip.start <= tile
        assert strip.weight.shape == ((strip.stop - strip.start) * scale,)
        assert strip.weight.min() >= 0
        total[strip.start * scale : strip.stop * scale] += strip.weight.numpy()
    np.testing.assert_allclose(total, 1, atol=2e-7)
    assert placed[0].start == 0
    assert placed[-1].stop == length
    for left, right in pairwise(placed):
        assert left.stop - right.start >= overlap
    assert tile_count(length, length, tile, overlap) == len(placed) ** 2


def test_no_step_in_the_weights():
    """Neighbouring output pixels differ by at most a 16th of the way: a ramp, not a cut."""
    for strip in strips(400, 64, 32, 4):
        assert strip.weight.diff().abs().max() <= 1 / (16 * 4) + 1e-6


def test_tiles_are_few_and_of_one_size():
    """1000 pixels in tiles of 512 are three of 368, not two of 512 and a rest that is computed nearly twice."""
    assert tile_ranges(1000, 512, 32) == [(0, 368), (320, 688), (640, 1000)]
    assert tile_ranges(752, 512, 32) == [(0, 400), (352, 752)]
    assert tile_ranges(64, 64, 32) == [(0, 64)]
    assert tile_ranges(65, 64, 32) == [(0, 64), (16, 65)]
    assert tile_ranges(10, 64, 32) == [(0, 10)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_a_network_that_copies_pixels_is_reproduced_exactly(dtype, overlap):
    image = RNG.integers(0, np.iinfo(dtype).max + 1, (203, 131, 3)).astype(dtype)
    out = upscale_tiled(nearest(3), image, scale=3, tile=64, overlap=overlap)
    np.testing.assert_array_equal(out, image.repeat(3, 0).repeat(3, 1))


def test_a_network_of_short_sight_gives_the_whole_picture():
    """Up to a quarter of the overlap from a tile's edge nothing counts, so zero padding there cannot show."""
    image = RNG.integers(0, 256, (203, 131, 3)).astype(np.uint8)
    run = local_network(radius=8)
    whole = upscale_tiled(run, image, scale=2, tile=208, overlap=32)
    tiled = upscale_tiled(run, image, scale=2, tile=64, overlap=32)
    assert whole.std() > 5
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1  # where the value lies on a rounding tie
    assert (difference > 0).mean() < 1e-4


def test_without_overlap_the_same_network_shows_seams():
    """The test above can fail."""
    image = RNG.integers(0, 256, (203, 131, 3)).astype(np.uint8)
    run = local_network(radius=8)
    whole = upscale_tiled(run, image, scale=2, tile=208, overlap=0).astype(int)
    tiled = upscale_tiled(run, image, scale=2, tile=64, overlap=0)
    difference = np.abs(tiled - whole).max(axis=2)
    assert difference.max() > 20
    assert difference[120:128].max() > 20  # beside the edge of the first tile


def test_a_longer_sight_makes_no_visible_step():
    """Where tiles disagree the result moves over smoothly from one to the other."""
    image = np.full((64, 160, 3), 128, np.uint8)
    calls = iter([0.2, 0.4, 0.6, 0.8, 1.0])

    def run(x):
        return torch.full_like(x, next(calls))

    out = upscale_tiled(run, image, scale=1, tile=64, overlap=32)[0, :, 0].astype(int)
    assert out[0] == 51
    assert np.abs(np.diff(out)).max() <= 0.2 * 255 / 16 + 2
    assert (np.diff(out) >= 0).all()


def test_memory_of_the_blending_is_one_row_of_tiles(monkeypatch):
    """A tall picture needs no more float memory than a short one: the largest tensor made is a band of one tile."""
    largest = 0
    zeros = torch.zeros

    def counted(*shape, **options):
        nonlocal largest
        out = zeros(*shape, **options)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(torch, "zeros", counted)
    upscale_tiled(nearest(2), np.zeros((1000, 80, 3), np.uint8), scale=2, tile=64, overlap=32)
    assert largest <= 3 * (2 * 64) * (2 * 80)


def test_progress_is_told_after_every_tile():
    told = []
    image = np.zeros((100, 100, 3), np.uint8)
    upscale_tiled(nearest(2), image, scale=2, tile=64, overlap=32, progress=lambda: told.append(1))
    assert len(told) == tile_count(100, 100, 64, 32) == 9


def test_numbers_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="NaN or infinity; use --precision fp32"):
        upscale_tiled(lambda x: x * float("nan"), np.zeros((64, 64, 3), np.uint8), scale=1, tile=64)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (100, 32, r"tile must be a multiple of 16.*got 100; try 96 or 112"),
        (48, 16, r"at least 64 pixels, got 48; try 64"),
        (64, 48, r"overlap must be a multiple of 16 from 0 to half a tile \(32\), got 48"),
        (64, 8, r"overlap must be a multiple of 16"),
        (64, -16, r"overlap must be"),
    ],
)
def test_tiles_off_the_grid_are_refused(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        check_tile(tile, overlap)


def test_self_ensemble_of_an_equivariant_network_changes_nothing():
    x = torch.rand(1, 3, 12, 17)
    torch.testing.assert_close(SelfEnsemble(nearest(4))(x), nearest(4)(x))


def test_self_ensemble_is_the_mean_over_the_eight_turns():
    """Compared with the eight positions written out as quarter turns, with and without a mirror."""
    x, run = torch.rand(1, 3, 12, 17), local_network(radius=2)
    total = torch.zeros_like(run(x))
    for mirror in (False, True):
        for quarters in range(4):
            y = torch.rot90(x.flip(3) if mirror else x, quarters, (2, 3))
            y = torch.rot90(run(y), -quarters, (2, 3))
            total += y.flip(3) if mirror else y
    torch.testing.assert_close(SelfEnsemble(run)(x), total / 8)
    assert not torch.allclose(run(x), total / 8)


def test_auto_tile_is_the_whole_picture_or_what_fits():
    assert auto_tile(100, 200, bytes_per_pixel=1000, free=1 << 40) == 208
    assert auto_tile(1000, 1000, bytes_per_pixel=1000, free=1 << 40) == memory.LARGEST_AUTO_TILE
    assert auto_tile(1000, 1000, bytes_per_pixel=1000, free=1 << 40, largest=5000) == 1008
    side = auto_tile(1000, 1000, bytes_per_pixel=10_000, free=500_000_000)
    assert side % GRID == 0
    assert side**2 * 10_000 <= 250_000_000 < (side + GRID) ** 2 * 10_000
    assert auto_tile(1000, 1000, bytes_per_pixel=1e9, free=1) == 64
    assert auto_tile(1, 1, bytes_per_pixel=1, free=1 << 30) == 64


def test_free_memory_respects_the_machine_and_the_container(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    assert memory._group_memory(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group_memory(tmp_path) == float("inf")
    assert memory._group_memory(tmp_path / "none") == float("inf")
    monkeypatch.setattr(memory, "_group_memory", lambda _root: 123)
    assert free_memory(torch.device("cpu")) == 123


def test_bytes_per_pixel_on_a_cpu_grow_with_the_width():
    class Wide(nn.Module):
        class config:
            dim = 100

    cpu = torch.device("cpu")
    assert network_bytes_per_pixel(Wide(), cpu, nearest(2)) == 100 * memory.CPU_BYTES_PER_CHANNEL
    assert network_bytes_per_pixel(nn.Identity(), cpu, nearest(2)) == 180 * memory.CPU_BYTES_PER_CHANNEL
