"""The published protocol: modcrop, MATLAB bicubic, uint8, border crop, luma, mean over images."""

import math

import numpy as np
import pytest
from hybrid_sr import samples
from hybrid_sr.evaluate import evaluate_images, folder_images, read_low_resolution, sample_images
from hybrid_sr.images import Picture, write_picture
from hybrid_sr.metrics import psnr_y, ssim_y
from hybrid_sr.resize import imresize
from hybrid_sr.samples import SAMPLES, find_sample, sample_set
from hybrid_sr.showcase import gain, panel, upscale_sample

RNG = np.random.default_rng(0)


def photo(height=66, width=50):
    """Smooth with some texture, so that bicubic is good and not perfect."""
    y, x = np.mgrid[:height, :width]
    smooth = 128 + 60 * np.sin(x / 6)[..., None] + 40 * np.cos(y / 5)[..., None] * np.array([1, 0.5, -1])
    return np.clip(smooth + RNG.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def bicubic(scale):
    return lambda lr: imresize(lr, scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_against_itself_gains_nothing_and_follows_the_protocol(scale):
    image = photo()
    result = evaluate_images(bicubic(scale), [("a", image)], scale)
    cut = image[: 66 // scale * scale, : 50 // scale * scale]
    again = imresize(imresize(cut, 1 / scale), scale)
    assert result["gain_db"] == 0
    assert result["psnr_y"] == result["bicubic_psnr_y"] == psnr_y(again, cut, crop=scale)
    assert result["ssim_y"] == ssim_y(again, cut, crop=scale)
    assert result["n"] == 1
    row = result["per_image"][0]
    assert (row["name"], row["height"], row["width"]) == ("a", *cut.shape[:2])
    assert 20 < result["psnr_y"] < 50


def test_means_are_over_images_not_pixels():
    images = [("a", photo()), ("b", photo(130, 40))]
    result = evaluate_images(bicubic(2), images, 2)
    rows = result["per_image"]
    for key in ("psnr_y", "ssim_y", "bicubic_psnr_y"):
        assert result[key] == pytest.approx((rows[0][key] + rows[1][key]) / 2, abs=1e-12)
    assert rows[0]["psnr_y"] != rows[1]["psnr_y"]


def test_a_worse_upscaler_has_a_negative_gain():
    result = evaluate_images(lambda lr: lr.repeat(2, 0).repeat(2, 1), [("a", photo())], 2)
    assert result["gain_db"] < -0.1
    assert result["gain_db"] == pytest.approx(result["psnr_y"] - result["bicubic_psnr_y"])


def test_an_exact_result_is_infinitely_good():
    image = photo(64, 48)
    result = evaluate_images(lambda _lr: image, [("a", image)], 2)
    assert result["psnr_y"] == math.inf
    assert result["gain_db"] == math.inf
    assert result["ssim_y"] == pytest.approx(1)


def test_given_low_resolution_pictures_are_used_and_checked():
    image = photo(64, 48)
    black = np.zeros((32, 24, 3), np.uint8)
    seen = []

    def watched(lr):
        seen.append(lr)
        return imresize(lr, 2)

    evaluate_images(watched, [("a", image)], 2, low_resolution={"a": black})
    np.testing.assert_array_equal(seen[0], black)
    with pytest.raises(ValueError, match="a has no low-resolution image"):
        evaluate_images(watched, [("a", image)], 2, low_resolution={"b": black})
    with pytest.raises(ValueError, match="must be 24x32, got 24x16; check --scale"):
        evaluate_images(watched, [("a", image)], 2, low_resolution={"a": black[:16]})


def test_results_of_the_wrong_size_and_empty_sets_are_errors():
    with pytest.raises(ValueError, match="a: the result is"):
        evaluate_images(bicubic(4), [("a", photo(64, 48))], 2)
    with pytest.raises(ValueError, match="there is no image"):
        evaluate_images(bicubic(4), [], 2)


def test_folders_are_read_by_name_and_scale_suffix(tmp_path):
    for name in ("hr/0801.png", "hr/sub/0802.png", "lr/0801x2.png", "lr/sub/0802.png"):
        write_picture(Picture(photo()), tmp_path / name)
    assert [name for name, _ in folder_images(tmp_path / "hr", max_megapixels=1)] == ["0801", "sub/0802"]
    assert set(read_low_resolution(tmp_path / "lr", 2, max_megapixels=1)) == {"0801", "sub/0802"}


def test_packaged_photos_are_found_without_importing_their_packages():
    import subprocess
    import sys

    code = (
        "import sys; from hybrid_sr.samples import SAMPLES; [s.path() for s in SAMPLES];"
        "print([m for m in ('torch', 'skimage', 'sklearn', 'foolbox') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_packaged_photos_are_all_there_with_credit():
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES) == 30
    assert [len(sample_set(name)) for name in samples.SETS] == [8, 2, 20]
    assert all(sample.credit for sample in SAMPLES)
    images = dict(sample_images("scikit-learn"))
    assert {name: image.shape for name, image in images.items()} == {"china": (427, 640, 3), "flower": (427, 640, 3)}
    assert find_sample("imagenet_10_541").read().shape == (683, 1024, 3)


def test_a_missing_package_names_the_install_command():
    sample = samples.Sample("x", "some-package", "no_such_package_here", "x.png", "")
    with pytest.raises(ValueError, match=r"some-package is not installed; pip install 'hybrid-sr\[data\]'"):
        sample.path()
    with pytest.raises(ValueError, match=r"this release of numpy has no x\.png"):
        samples.Sample("x", "numpy", "numpy", "x.png", "").path()


def test_unknown_samples_and_sets_are_named():
    with pytest.raises(ValueError, match="did you mean coffee"):
        find_sample("cofee")
    with pytest.raises(ValueError, match="known are scikit-image, scikit-learn, foolbox"):
        sample_set("urban100")


def test_sample_run_writes_all_five_pictures(tmp_path):
    sample = find_sample("chelsea")
    figures, files = upscale_sample(bicubic(4), sample, scale=4, out=tmp_path)
    assert figures.gain_db == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())
    assert files["upscaled"].name == "chelsea_x4.png"
    with pytest.raises(ValueError, match="exists; add --overwrite"):
        upscale_sample(bicubic(4), sample, scale=4, out=tmp_path)


def test_gain_cuts_the_original_and_refuses_other_sizes():
    original = photo(66, 50)
    lr = imresize(original[:64, :48], 1 / 4)
    result = imresize(lr, 4)
    assert gain(lr, result, original, 4).gain_db == 0
    with pytest.raises(ValueError, match="must be 48x64, 4 times the input, got 50x70"):
        gain(lr, result, photo(70, 50), 4)


def test_panel_shows_the_four_pictures_in_order():
    original = photo(64, 48)
    lr = imresize(original, 1 / 4)
    up = imresize(lr, 4)
    shades = [np.full_like(x, shade) for x, shade in ((lr, 40), (up, 80), (up, 120), (original, 160))]
    figures = gain(lr, up, original, 4)
    drawn = panel(*shades, figures)
    column = drawn.shape[1] // 4
    for i, shade in enumerate((40, 80, 120, 160)):
        middle = drawn[:, i * column + column // 2]
        assert (middle == shade).all(axis=1).sum() >= 64 + 48  # the picture and its detail
