"""Scores do what their names say, on cases whose answers are known."""

import math

import numpy as np
import pytest
from mamba_diffusion.baselines import BASELINES
from mamba_diffusion.metrics import (
    bootstrap,
    coverage,
    crps,
    expected_coverage,
    gaussian_crps,
    psnr,
    ratio_reduction,
    relative_l2,
    ssim,
)

RNG = np.random.default_rng(0)


def test_psnr_and_relative_error():
    truth = RNG.random((16, 16, 3))
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    assert psnr(truth, truth) == math.inf
    assert relative_l2(np.broadcast_to(truth.mean((0, 1)), truth.shape), truth) == pytest.approx(1)
    holes = np.where(RNG.random((16, 16, 1)) < 0.2, np.nan, truth)
    assert psnr(truth + 0.1, holes) == pytest.approx(20)


def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    a = RNG.random((40, 40, 3))
    b = np.clip(a + 0.1 * RNG.standard_normal(a.shape), 0, 1)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, theirs = structural_similarity(a, b, channel_axis=-1, full=True, **settings)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, b) == pytest.approx(theirs.mean(), abs=1e-3)


def test_crps_of_samples_is_that_of_their_distribution():
    truth = RNG.standard_normal((500, 1))
    samples = RNG.standard_normal((64, 500, 1))
    exact = gaussian_crps(np.zeros_like(truth), np.ones_like(truth), truth)
    assert crps(samples, truth) == pytest.approx(exact, rel=0.02)
    assert crps(np.stack([truth + 1] * 3), truth) == pytest.approx(1)
    opposite = np.stack([samples[:32], -samples[:32]], 1).reshape(64, 500, 1)  # the pairs as `Noise` makes them
    assert crps(opposite, truth) == pytest.approx(exact, rel=0.02)
    few = np.stack([samples[:8], -samples[:8]], 1).reshape(16, 500, 1)
    assert np.mean([crps(np.roll(few, 2 * k, 0)[:4], truth) for k in range(8)]) == pytest.approx(exact, rel=0.05)
    s = samples[:5]
    pairs = np.abs(s[:, None] - s[None]).sum((0, 1)) - 2 * (np.abs(s[0] - s[1]) + np.abs(s[2] - s[3]))
    by_pairs = np.abs(s - truth).mean(0) - pairs / (2 * 16)
    assert crps(samples[:5], truth) == pytest.approx(by_pairs.mean())


@pytest.mark.parametrize("count", [8, 16, 19, 40])
def test_coverage_of_perfect_samples_is_the_level(count):
    truth, samples = RNG.standard_normal((20_000, 1)), RNG.standard_normal((count, 20_000, 1))
    assert coverage(samples, truth) == pytest.approx(expected_coverage(count), abs=0.012)
    assert coverage(0.5 * samples, truth) < expected_coverage(count) - 0.1


def test_bootstrap():
    values = RNG.standard_normal(400) + 1
    found = bootstrap(np.append(values, np.nan))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    halved = ratio_reduction(values, values / 2)
    assert (halved.mean, halved.low, halved.high) == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(bootstrap(np.array([np.nan])).mean)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_find_a_plane(name):
    coords, queries = RNG.random((80, 2)), 0.35 + 0.3 * RNG.random((20, 2))  # well inside the sensors
    plane = lambda x: np.stack([x @ [1.0, 2.0], x @ [-3.0, 0.5]], -1)  # noqa: E731
    mean, std = BASELINES[name](coords, plane(coords), queries)
    assert mean.shape == (20, 2)
    assert np.abs(mean - plane(queries)).max() < {"nearest": 0.8, "kriging": 0.02}.get(name, 1e-6)
    assert (std is not None) == (name == "kriging")


def test_baselines_in_one_and_three_dimensions():
    for dims in (1, 3):
        coords = RNG.random((40, dims))
        for name in ("nearest", "linear", "rbf"):
            mean, _ = BASELINES[name](coords, coords[:, :1], coords[:5])
            np.testing.assert_allclose(mean, coords[:5, :1], atol=1e-6)
