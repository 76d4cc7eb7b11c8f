"""Pictures are read and written without losing depth, grey, alpha, profile or orientation; bad files are named."""

import io
import os
import shlex
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from hybrid_sr.files import plan
from hybrid_sr.images import Picture, check_writable, picture_files, read_picture, write_picture
from PIL import Image, ImageCms

RNG = np.random.default_rng(0)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height, width, channels, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def turned(pixels, orientation):
    """What a viewer shows for an EXIF orientation, spelled out by its definition."""
    operations = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }
    return operations[orientation](pixels)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_png_chunk(data, name, content):
    """Insert a chunk after IHDR."""
    return data[:33] + png_chunk(name, content) + data[33:]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_formats_keep_every_bit_and_the_profile(tmp_path, suffix, dtype, channels):
    pixels = noise(37, 53, channels, dtype)
    write_picture(Picture(pixels, ICC), tmp_path / f"a{suffix}")
    back = read_picture(tmp_path / f"a{suffix}")
    if channels == 2 and dtype == np.uint16 and suffix != ".png":  # readers do not know it, so it is written as colour
        pixels = pixels[..., [0, 0, 0, 1]]
    assert back.pixels.dtype == dtype
    np.testing.assert_array_equal(back.pixels, pixels)
    assert back.icc_profile == ICC


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_files_of_others_keep_their_low_bytes(tmp_path, suffix, channels):
    """Pillow alone would return the high byte twice."""
    pixels = noise(20, 31, channels, np.uint16)
    order = [0] if channels == 1 else [2, 1, 0, 3][:channels]
    _, data = cv2.imencode(suffix, pixels[..., order].squeeze())
    (tmp_path / f"a{suffix}").write_bytes(data.tobytes())
    back = read_picture(tmp_path / f"a{suffix}").pixels
    np.testing.assert_array_equal(back & 255, pixels & 255)
    np.testing.assert_array_equal(back >> 8, pixels >> 8)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_files_of_ours_are_read_by_others(tmp_path, suffix, channels):
    pixels = noise(20, 31, channels, np.uint16)
    write_picture(Picture(pixels, ICC), tmp_path / f"a{suffix}")
    back = cv2.imdecode(np.frombuffer((tmp_path / f"a{suffix}").read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    order = [0] if channels == 1 else [2, 1, 0, 3][:channels]
    np.testing.assert_array_equal(back.reshape(20, 31, channels), pixels[..., order])
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.size == (31, 20)
        assert image.info["icc_profile"] == ICC


def test_16_bit_bands_join(tmp_path, monkeypatch):
    """Encoders work row band by row band; the first row of a band refers to the last of the one before."""
    monkeypatch.setattr("hybrid_sr.encode16.BAND_BYTES", 700)  # three rows
    pixels = noise(20, 31, 3, np.uint16)
    for name in ("a.png", "a.tiff"):
        write_picture(Picture(pixels), tmp_path / name)
        np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".jpg", np.uint8), (".png", np.uint16)])
def test_orientation_is_applied(tmp_path, orientation, suffix, dtype):
    pixels = np.zeros((16, 24, 1), dtype)
    pixels[:8, :8] = np.iinfo(dtype).max  # a corner that tells all eight apart
    pixels[:8, 8:16] = np.iinfo(dtype).max // 2
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    if dtype == np.uint16:
        write_picture(Picture(pixels), path)
        path.write_bytes(with_png_chunk(path.read_bytes(), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    else:
        Image.fromarray(pixels[..., 0]).save(path, exif=exif, quality=100)
    back = read_picture(path).pixels.astype(int)
    wanted = turned(pixels, orientation).astype(int)
    assert back.shape == wanted.shape
    assert np.abs(back - wanted).max() <= (4 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_of_tiff_is_applied_once(tmp_path, orientation, dtype):
    """Pillow and OpenCV turn a TIFF themselves."""
    pixels = noise(6, 9, 1, dtype)
    path = tmp_path / "a.tiff"
    image = Image.fromarray(pixels[..., 0])
    image.save(path, tiffinfo={274: orientation})
    np.testing.assert_array_equal(read_picture(path).pixels, turned(pixels, orientation))


def test_palette_becomes_colour_and_keeps_its_transparency(tmp_path):
    image = Image.fromarray(noise(9, 11, 3)).quantize(16)
    image.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "plain.png").pixels, np.asarray(image.convert("RGB")))
    image.save(tmp_path / "clear.png", transparency=3)
    back = read_picture(tmp_path / "clear.png").pixels
    assert back.shape == (9, 11, 4)
    np.testing.assert_array_equal(back[..., 3] == 0, np.asarray(image) == 3)


def test_one_transparent_colour_becomes_alpha(tmp_path):
    pixels = noise(9, 11, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=tuple(int(x) for x in pixels[4, 5]))
    back = read_picture(tmp_path / "a.png").pixels
    assert back.shape == (9, 11, 4)
    assert back[4, 5, 3] == 0
    assert back[0, 0, 3] == 255
    deep = noise(9, 11, 3, np.uint16)
    write_picture(Picture(deep), tmp_path / "b.png")
    key = struct.pack(">3H", *(int(x) for x in deep[4, 5]))
    (tmp_path / "b.png").write_bytes(with_png_chunk((tmp_path / "b.png").read_bytes(), b"tRNS", key))
    back = read_picture(tmp_path / "b.png").pixels
    assert back.shape == (9, 11, 4)
    assert (back[4, 5, 3], back[0, 0, 3]) == (0, 65535)


def test_black_and_white_becomes_grey(tmp_path):
    Image.fromarray(noise(9, 11, 1)[..., 0] > 127).save(tmp_path / "a.png")
    back = read_picture(tmp_path / "a.png").pixels
    assert back.shape == (9, 11, 1)
    assert set(np.unique(back)) == {0, 255}


def test_jpeg_and_webp_stay_close_and_keep_the_profile(tmp_path):
    y, x = np.mgrid[:64, :64]
    pixels = np.stack([x * 2, y * 2, (x + y)], axis=2).astype(np.uint8)
    for name in ("a.jpg", "a.webp"):
        write_picture(Picture(pixels, ICC), tmp_path / name)
        back = read_picture(tmp_path / name)
        assert np.abs(back.pixels.astype(int) - pixels).mean() < 2
        assert back.icc_profile == ICC


def test_16_bits_are_rounded_where_a_format_holds_8(tmp_path):
    """0 and 65535 become 0 and 255, 128 is the last value below the first step."""
    pixels = np.repeat(np.array([0, 128, 129, 65535], np.uint16), 64).reshape(1, -1, 1).repeat(64, 0)
    assert Picture(pixels).rgb8()[0, ::64, 0].tolist() == [0, 0, 1, 255]
    write_picture(Picture(pixels), tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").pixels.dtype == np.uint8


def test_premultiplied_16_bit_tiff_is_divided_by_its_alpha(tmp_path):
    pixels = np.full((4, 5, 4), 32768, np.uint16)
    pixels[..., :3] = 16384
    write_picture(Picture(pixels), tmp_path / "a.tiff")
    data = (tmp_path / "a.tiff").read_bytes()
    entry = struct.pack("<HHIHH", 338, 3, 1, 2, 0)
    assert data.count(entry) == 1
    (tmp_path / "a.tiff").write_bytes(data.replace(entry, struct.pack("<HHIHH", 338, 3, 1, 1, 0)))
    back = read_picture(tmp_path / "a.tiff").pixels
    assert back[0, 0].tolist() == [32768, 32768, 32768, 32768]


def refused(path, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        read_picture(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert ";" in message, "the message must say what to do"
    return message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_picture(Picture(noise(64, 64, 3)), path)
    for keep in (0.1, 0.5, 0.9):
        part = tmp_path / f"part{suffix}"
        part.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        assert "damaged or truncated" in refused(part)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_truncated_16_bit_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_picture(Picture(noise(64, 64, 3, np.uint16)), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged or truncated" in refused(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_random_damage_gives_a_picture_or_a_named_error(tmp_path, suffix):
    """No exception of a decoder gets through."""
    path = tmp_path / f"a{suffix}"
    write_picture(Picture(noise(32, 32, 3)), path)
    good = bytearray(path.read_bytes())
    random = np.random.default_rng(1)
    for _ in range(60):
        bad = bytearray(good)
        for position in random.integers(12, min(len(bad), 400), 4):
            bad[position] = int(random.integers(256))
        path.write_bytes(bytes(bad))
        try:
            picture = read_picture(path, max_megapixels=1)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert picture.pixels.ndim == 3


def test_files_that_are_no_pictures_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    assert "not a PNG, JPEG, WebP or TIFF" in refused(tmp_path / "text.png")
    (tmp_path / "empty.jpg").touch()
    assert "is empty" in refused(tmp_path / "empty.jpg")
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.png")
    assert "does not exist" in refused(tmp_path / "missing.png")


def test_wrong_suffix_is_refused_with_the_right_one(tmp_path):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "photo.png", "JPEG")
    assert "rename it to photo.jpg" in refused(tmp_path / "photo.png")
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "unknown.dat", "PNG")
    assert read_picture(tmp_path / "unknown.dat").width == 8


def test_decompression_bomb_is_refused_by_its_header(tmp_path):
    """A small file that claims 50,000 x 50,000 pixels; nothing is allocated for it."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "bomb.png").write_bytes(data + png_chunk(b"IEND", b""))
    message = refused(tmp_path / "bomb.png")
    assert "2500.0 megapixels" in message
    assert "--max-megapixels" in message


def test_pixel_limit_is_the_callers(tmp_path):
    write_picture(Picture(noise(100, 100, 3)), tmp_path / "a.png")
    refused(tmp_path / "a.png", max_megapixels=0.0099)
    assert read_picture(tmp_path / "a.png", max_megapixels=0.01).height == 100


def test_pillows_process_wide_limit_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    write_picture(Picture(noise(20, 20, 3)), tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").width == 20


@pytest.mark.parametrize("mode", ["CMYK", "F", "I", "LAB"])
def test_colours_that_are_not_rgb_are_refused(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.tiff")
    assert "convert" in (message := refused(tmp_path / "a.tiff")) or "save it" in message


@pytest.mark.parametrize("name", ("it's a.tiff", "a.webp", "a.png", "a.gif"))
def test_animations_say_how_to_extract_their_frames(tmp_path, name):
    """The command in the message is run as it stands, and its folder is then read."""
    file = tmp_path / name
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    message = refused(file)
    assert "is a GIF, which is not read" in message if name.endswith("gif") else "has 3 frames" in message
    command = message.partition("extract its frames with: python ")[2].partition("  and upscale that folder")[0]
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    found = picture_files(file.with_name(f"{file.stem}_frames"))
    assert [path.name for path in found] == ["00000.png", "00001.png", "00002.png"]
    jobs = plan([found[0].parent], scale=2)  # a folder of frames is a folder
    assert [job.target.name for job in jobs] == ["00000_x2.png", "00001_x2.png", "00002_x2.png"]
    if name.endswith(("tiff", "png")):  # the others are lossy or have few colours
        for path, frame in zip(found, frames, strict=True):
            np.testing.assert_array_equal(read_picture(path).pixels[..., :3], np.asarray(frame))


def test_phone_jpeg_with_a_second_picture_is_read(tmp_path):
    """Depth maps and gain maps of phones make a JPEG of several frames (MPO); the first is the photo."""
    first, second = Image.fromarray(noise(16, 16, 3)), Image.fromarray(noise(16, 16, 3))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    alone = io.BytesIO()
    first.save(alone, "JPEG")
    (tmp_path / "b.jpg").write_bytes(alone.getvalue())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg").pixels, read_picture(tmp_path / "b.jpg").pixels)


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = tmp_path / "a.png"
    write_picture(Picture(noise(8, 8, 3)), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="exists; add --overwrite"):
        write_picture(Picture(noise(8, 8, 3)), path)
    assert path.read_bytes() == before
    write_picture(Picture(noise(8, 8, 3)), path, overwrite=True)
    assert path.read_bytes() != before


def test_a_failed_write_leaves_neither_a_part_nor_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_picture(Picture(noise(8, 8, 3)), path)
    before = path.read_bytes()

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match="No space left") as caught:
        write_picture(Picture(noise(8, 8, 3)), path, overwrite=True)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_folders_are_made_and_files_in_the_way_are_named(tmp_path):
    write_picture(Picture(noise(8, 8, 3)), tmp_path / "new" / "deep" / "a.png")
    assert (tmp_path / "new" / "deep" / "a.png").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        write_picture(Picture(noise(8, 8, 3)), tmp_path / "file" / "a.png")


def test_what_a_format_cannot_hold_is_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="cannot hold transparency"):
        check_writable(tmp_path / "a.jpg", (8, 8, 4))
    with pytest.raises(ValueError, match="WebP allows 16383"):
        check_writable(tmp_path / "a.webp", (8, 20_000, 3))
    with pytest.raises(ValueError, match="TIFF holds 4 GB"):
        check_writable(tmp_path / "a.tiff", (60_000, 60_000, 3))
    with pytest.raises(ValueError, match=r"must end in one of \.png"):
        check_writable(tmp_path / "a.gif", (8, 8, 3))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_writable(tmp_path / "b.png", (8, 8, 3), overwrite=True)


def test_folder_listing_is_recursive_sorted_and_ignores_hidden_files(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.tif", ".hidden.png", "._a.jpg", ".cache/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(p.relative_to(tmp_path)) for p in picture_files(tmp_path)]
    assert names == ["a.jpg", "b.PNG", os.path.join("sub", "c.tif")]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no picture; looked for \.png"):
        picture_files(tmp_path / "none")
    with pytest.raises(ValueError, match="is not a folder"):
        picture_files(tmp_path / "a.jpg")
