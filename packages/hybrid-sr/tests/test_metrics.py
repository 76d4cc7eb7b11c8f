"""PSNR, SSIM and luma against the reference's numbers and known values."""

import math

import numpy as np
import pytest
from hybrid_sr.metrics import psnr, psnr_y, rgb_to_y, ssim, ssim_y, to_uint8

FUNCTIONS = {"psnr_y": psnr_y, "psnr_rgb": psnr, "ssim_y": ssim_y, "ssim_rgb": ssim}


@pytest.mark.parametrize("crop", (0, 4))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_reference(golden, name, crop):
    file = golden("psnr-ssim")
    ours = FUNCTIONS[name](file["input.a"], file["input.b"], crop=crop)
    key = f"{name}_crop{crop}"
    assert ours == pytest.approx(file.meta["values_with_float64_y"][key], abs=1e-13)
    assert ours == pytest.approx(file.meta["values"][key], abs=1e-6)  # the published code rounds Y to float32


def test_luma_equals_the_reference(golden):
    file = golden("psnr-ssim")
    np.testing.assert_allclose(rgb_to_y(file["input.a"])[::5, ::5], file["output.y_a"], rtol=0, atol=1e-13)


def test_luma_of_black_white_and_grey():
    assert rgb_to_y(np.zeros((1, 1, 3), np.uint8))[0, 0] == 16
    assert rgb_to_y(np.full((1, 1, 3), 255, np.uint8))[0, 0] == pytest.approx(235, abs=1e-12)
    assert rgb_to_y(np.full((1, 1), 255, np.uint8))[0, 0] == pytest.approx(235, abs=1e-12)
    assert rgb_to_y(np.ones((1, 1, 3)))[0, 0] == pytest.approx(235, abs=1e-12)


def test_identity():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    assert psnr_y(image, image) == psnr(image, image) == math.inf
    assert ssim_y(image, image) == pytest.approx(1, abs=1e-12)


def test_known_psnr():
    """A difference of one level everywhere is 20 log10(255) dB on RGB, and 219/255 of a level on Y."""
    a = np.full((12, 12, 3), 100, np.uint8)
    assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255))
    assert psnr_y(a, a + 1) == pytest.approx(20 * math.log10(255 * 255 / 219))


def test_crop_cuts_every_side():
    a = np.zeros((20, 20, 3), np.uint8)
    b = a.copy()
    b[:4] = b[-4:] = 255
    b[:, :4] = b[:, -4:] = 255
    assert psnr_y(a, b, crop=4) == math.inf
    assert psnr_y(a, b, crop=3) < math.inf


def test_to_uint8_clips_and_rounds():
    np.testing.assert_array_equal(to_uint8(np.array([-0.1, 0.0, 0.5 / 255 + 1e-9, 1.0, 1.2])), [0, 0, 1, 255, 255])


@pytest.mark.parametrize(
    ("function", "shape_b", "dtype", "crop", "message"),
    [
        (psnr_y, (20, 21, 3), np.uint8, 0, r"b must be of the shape of a, \(20, 20, 3\), got \(20, 21, 3\)"),
        (psnr, (20, 20, 3), np.float32, 0, "b must be uint8, got float32; round it with to_uint8"),
        (psnr_y, (20, 20, 3), np.uint8, 10, "a must be more than 20 pixels"),
        (ssim_y, (20, 20, 3), np.uint8, 5, "a must be more than 20 pixels"),
        (ssim, (20, 20, 3), np.uint8, -1, "crop must be >= 0"),
    ],
)
def test_errors(function, shape_b, dtype, crop, message):
    with pytest.raises(ValueError, match=message):
        function(np.zeros((20, 20, 3), np.uint8), np.zeros(shape_b, dtype), crop=crop)


def test_alpha_is_refused():
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) RGB or \(H, W\) grey"):
        psnr_y(np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 4), np.uint8))


def test_ssim_needs_no_opencv(monkeypatch):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 24, 30, 3), dtype=np.uint8)
    with_opencv = ssim_y(a, b)
    monkeypatch.setattr("hybrid_sr.metrics.find_spec", lambda name: None)
    assert ssim_y(a, b) == pytest.approx(with_opencv, abs=1e-12)
