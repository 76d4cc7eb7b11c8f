"""The speckle index reads noise in units of its sigma and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mamba_diffusion.speckles import RESIDUAL_STD, flat_mask, roughness, scattered_speckle, sharpness, speckle
from scipy.ndimage import gaussian_filter

SHAPES = {1: (4096, 1), 2: (96, 96, 3), 3: (24, 24, 24, 1)}


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def plane(shape: tuple[int, ...]) -> np.ndarray:
    grids = np.meshgrid(*[np.arange(n) for n in shape[:-1]], indexing="ij")
    return np.repeat(sum((a + 1) * 5e-4 * g for a, g in enumerate(grids))[..., None], shape[-1], -1)


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1])
def test_reads_the_sigma_of_noise_on_a_constant(dims, sigma):
    truth = np.full(SHAPES[dims], 0.5)
    found = speckle(truth + sigma * noise(truth.shape), truth)
    assert found is not None
    assert found.index == pytest.approx(sigma, rel=0.05)


@settings(max_examples=12, deadline=None)
@given(a=st.floats(0.005, 0.2), b=st.floats(0.005, 0.2), seed=st.integers(0, 99))
def test_is_monotone_in_sigma(a, b, seed):
    truth, e = np.zeros((32, 32, 1)), noise((32, 32, 1), seed)
    one, other = speckle(a * e, truth), speckle(b * e, truth)
    assert one is not None
    assert other is not None
    assert (one.index <= other.index) == (a <= b)


@settings(max_examples=12, deadline=None)
@given(gain=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_scales_with_gain(gain, seed):
    truth, e = np.zeros((32, 32, 3)), noise((32, 32, 3), seed)
    one, other = speckle(0.03 * e, truth), speckle(0.03 * gain * e, truth)
    assert one is not None
    assert other is not None
    assert other.index == pytest.approx(gain * one.index, rel=1e-6)


@pytest.mark.parametrize("dims", SHAPES)
def test_is_zero_on_constants_planes_and_offsets(dims):
    """Inside: at the edge the repeated border makes a plane's median one step off."""
    shape = SHAPES[dims]
    truth = plane(shape)
    for prediction in (truth, truth + 0.1, np.full(shape, 0.3)):
        found = speckle(prediction, truth)
        assert found is not None
        assert found.index < 1e-9


def test_does_not_see_a_plane_added_to_noise():
    truth, e = np.zeros((48, 48, 1)), 0.05 * noise((48, 48, 1))
    ramp = plane((48, 48, 1))
    one, other = speckle(e, truth), speckle(e + ramp, ramp)
    assert one is not None
    assert other is not None
    assert other.index == pytest.approx(one.index, rel=0.05)


def test_blur_and_smooth_errors_do_not_count():
    rng = np.random.default_rng(1)
    truth = np.zeros((64, 64, 1))
    truth[20:40, 20:40] = 1
    smooth = gaussian_filter(rng.standard_normal((64, 64, 1)), (8, 8, 0))
    for prediction in (gaussian_filter(truth, (1, 1, 0)), truth + 0.1 * smooth / smooth.std()):
        found = speckle(prediction, truth)
        assert found is not None
        assert found.index < 0.005


def test_impulses_count_and_are_counted():
    truth = np.zeros((64, 64, 1))
    spoiled = truth.copy()
    spoiled[np.random.default_rng(0).random((64, 64)) < 0.01] = 1
    found = speckle(spoiled, truth)
    assert found is not None
    assert found.index > 0.05
    assert found.density == pytest.approx(0.01, abs=0.006)


def test_flat_mask_comes_from_the_truth_alone():
    truth = np.zeros((32, 32, 3))
    truth[:, 16:] = noise((32, 16, 3))
    mask = flat_mask(truth, 1.0)
    assert mask[2:-2, 2:12].all()
    assert not mask[:, 16:].any()
    assert speckle(truth, noise((32, 32, 3))) is None


def test_missing_points_are_left_out():
    truth = np.zeros((32, 32, 1))
    truth[8:16, 8:16] = np.nan
    assert not flat_mask(truth, 1.0)[6:18, 6:18].any()
    found = speckle(np.nan_to_num(truth) + 0.05 * noise(truth.shape), truth)
    assert found is not None
    assert found.index == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("dims", SHAPES)
def test_constant_of_the_residual(dims):
    assert roughness(noise(SHAPES[dims]), np.ones(SHAPES[dims][:-1], bool)) == pytest.approx(1, abs=0.03)
    assert 0.8 < RESIDUAL_STD[dims] < 1


def test_scattered_points():
    rng = np.random.default_rng(0)
    coords = rng.random((2_000, 2))
    truth = coords @ np.array([[0.3], [0.2]])
    for sigma in (0.02, 0.1):
        found = scattered_speckle(truth + sigma * rng.standard_normal(truth.shape), truth, coords)
        assert found is not None
        assert found.index == pytest.approx(sigma, rel=0.06)
    same = scattered_speckle(2 * truth + 1, truth, coords)
    assert same is not None
    assert same.index < 1e-9


def test_sharpness_tells_blur_from_detail():
    truth = noise((48, 48, 3))
    assert sharpness(truth, truth) == pytest.approx(1)
    assert sharpness(gaussian_filter(truth, (1.5, 1.5, 0)), truth) < 0.4
    with pytest.raises(ValueError, match="same grid"):
        speckle(truth[:4], truth)
