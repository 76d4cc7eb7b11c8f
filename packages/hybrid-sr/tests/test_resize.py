"""imresize against the reference, and its properties."""

from fractions import Fraction

import numpy as np
import pytest
from hybrid_sr.resize import imresize, modcrop


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 29, 3), np.uint8)


@pytest.mark.parametrize("scale", (2, 3, 4))
def test_equals_the_reference(golden, scale):
    file = golden("bicubic")
    high, low = modcrop(file["input.img"], scale), file["input.small"]
    for image, ratio, name in ((high, 1 / scale, "down"), (low, scale, "up")):
        exact = file[f"output.{name}_x{scale}"]
        np.testing.assert_allclose(imresize(image / 255.0, ratio), exact, rtol=0, atol=2e-15)
        np.testing.assert_array_equal(imresize(image, ratio), file[f"output.{name}_x{scale}_u8"])
        assert imresize(image, ratio).dtype == np.uint8


@pytest.mark.parametrize("scale", (Fraction(1, 3), 1 / 4, 1 / 7, 0.3, 1.0, 1.5, 2, 3, 8))
@pytest.mark.parametrize("shape", ((1, 1), (2, 5, 3), (23, 17, 1), (40, 31, 4)))
def test_a_constant_stays_constant(scale, shape):
    for value in (0, 1, 127, 255):
        out = imresize(np.full(shape, value, np.uint8), scale)
        assert (out == value).all()
        assert out.shape[:2] == tuple(int(np.ceil(n * Fraction(scale).limit_denominator(1000))) for n in shape[:2])
    np.testing.assert_allclose(imresize(np.full(shape, 0.3), scale), 0.3, rtol=1e-14)


def test_sizes_of_thirds_are_exact():
    """In binary 1/3 * 3n may exceed n: the size would be one too large."""
    for n in range(3, 600, 3):
        assert imresize(np.zeros((n, 1)), 1 / 3).shape == (n // 3, 1)
        assert imresize(np.zeros((n, 1)), 0.1).shape[0] == -(-n // 10)


def test_scale_one_is_the_identity(photo):
    np.testing.assert_array_equal(imresize(photo, 1), photo)


def test_separable_and_symmetric(photo):
    """The transposed picture gives the transposed result, the flipped one the flipped result."""
    image = photo.astype(float)
    turned = imresize(image.transpose(1, 0, 2), 1 / 3).transpose(1, 0, 2)
    np.testing.assert_allclose(turned, imresize(image, 1 / 3), rtol=0, atol=1e-12)
    even = modcrop(image, 4)
    np.testing.assert_allclose(imresize(even[::-1, ::-1], 0.25)[::-1, ::-1], imresize(even, 0.25), rtol=0, atol=1e-12)


def test_mean_colour_survives_shrinking():
    """Antialiasing: without it the mean of a checkerboard would be a matter of chance."""
    board = np.indices((64, 64)).sum(0) % 2 * 255.0
    np.testing.assert_allclose(imresize(board, 0.25)[2:-2, 2:-2], 127.5, atol=1e-9)


def test_single_precision_is_within_one_level(photo):
    fast, exact = imresize(photo, 0.25, dtype=np.float32), imresize(photo, 0.25)
    assert np.abs(fast.astype(int) - exact).max() <= 1


def test_sixteen_bits(photo):
    deep = photo.astype(np.uint16) * 257
    out = imresize(deep, 2)
    assert out.dtype == np.uint16
    assert np.abs(out / 257 - imresize(photo / 1.0, 2).clip(0, 255)).max() <= 0.5 / 257 + 1e-9


def test_modcrop(photo):
    assert modcrop(photo, 4).shape == (36, 28, 3)
    np.testing.assert_array_equal(modcrop(photo, 4), photo[:36, :28])
    with pytest.raises(ValueError, match="at least 64 x 64 pixels"):
        modcrop(photo, 64)


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (np.zeros((2, 3, 3, 3)), 2, r"image must be \(H, W\) or \(H, W, channels\)"),
        (np.zeros((0, 3)), 2, "at least one pixel"),
        (np.zeros((4, 4), np.int64), 2, "uint8, uint16 or floating"),
        (np.zeros((4, 4)), 0, "scale must be in"),
        (np.zeros((4, 4)), -1, "scale must be in"),
        (np.zeros((4, 4)), 101, "scale must be in"),
    ],
)
def test_errors(image, scale, message):
    with pytest.raises(ValueError, match=message):
        imresize(image, scale)
