"""Read and write pictures without losing what they carry: 16 bits, grey, alpha, colour profile, orientation.

Pillow decodes 8-bit pictures. It gives 8-bit colour for 16-bit files without saying so, so OpenCV decodes those, and
`encode16` writes them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Format = Literal["png", "jpg", "webp", "tiff"]

SUFFIXES: dict[str, Format] = {
    ".png": "png",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
FORMAT_NAMES: dict[Format, str] = {"png": "PNG", "jpg": "JPEG", "webp": "WebP", "tiff": "TIFF"}
MAX_SIDE: dict[Format, int] = {"jpg": 65_500, "webp": 16_383}  # pixels; limits of the formats or their encoders
TIFF_BYTES = 4_000_000_000  # offsets in a TIFF have 32 bits
MAX_MEGAPIXELS = 128.0  # of an input, unless told otherwise
QUALITY = 95  # JPEG (4:4:4) and WebP

_ORIENTATION = 0x0112  # EXIF and TIFF tag numbers
_BITS, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 338, 339
_PNG_GREY_ALPHA = 4  # colour type of a PNG
_REFUSED_MODES = {
    "CMYK": "has CMYK colours; convert it to RGB with its profile in an image editor (the colours depend on it)",
    "LAB": "has Lab colours; convert it to RGB in an image editor",
    "HSV": "has HSV colours; convert it to RGB in an image editor",
    "F": "has floating-point values; save it with 8 or 16 bits",
    "I": "has 32 bits a channel; save it with 8 or 16 bits",
}


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    Attributes:
        pixels: (H, W, C) uint8 or uint16; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha (not premultiplied).
        icc_profile: Colour profile as found in the file, or None.
    """

    pixels: NDArray
    icc_profile: bytes | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)

    def rgb8(self) -> NDArray[np.uint8]:
        """Return (H, W, 3) uint8 for metrics and panels: grey replicated, alpha dropped, 16 bits rounded to 8."""
        pixels = _to_8_bits(self.pixels)
        if pixels.shape[2] < 3:
            return np.repeat(pixels[..., :1], 3, axis=2)
        return np.ascontiguousarray(pixels[..., :3])


def read_picture(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Picture:
    """Decode a PNG, JPEG, WebP or TIFF file at its full depth and turn it upright (EXIF orientation).

    Palette pictures become RGB, or RGB and alpha if they have transparency; black-and-white ones grey.

    Args:
        path: The file.
        max_megapixels: Refuse more than this many million pixels, before anything is decoded.

    Raises:
        ValueError: The file is missing, no such picture, damaged, named like another format, too large, has several
            frames, or its colours are neither grey nor RGB. The message names the file and what to do.
    """
    path = Path(path)
    with _opened(path) as file:
        kind = _kind(path, file)
        try:
            image = _plugin(kind)(file)
            frames = 1 if kind == "jpg" else getattr(image, "n_frames", 1)  # a phone's JPEG may carry a depth map
        except Exception as error:  # a damaged file can raise anything in a decoder
            _damaged(path, kind, error)
        _check_header(path, image, frames, max_megapixels)
        try:
            return _decode16(file, kind, image) if _bits(file, kind, image) > 8 else _decode8(image)
        except MemoryError:
            _refuse(path, "does not fit into memory; make it smaller")
        except Exception as error:
            _damaged(path, kind, error)


def picture_files(folder: Path) -> list[Path]:
    """List pictures by suffix, recursively and sorted, without hidden files and without following linked folders.

    Raises:
        ValueError: It is no folder, or holds no picture; the message says what was looked for.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; give a folder of pictures")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ValueError(f"{folder}: holds no picture; looked for {', '.join(SUFFIXES)} in it and the folders in it")
    return sorted(found)


def format_of(path: str | Path) -> Format:
    """Return the format that a file name stands for.

    Raises:
        ValueError: The name ends in none of the known suffixes.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        _refuse(Path(path), f"must end in one of {', '.join(SUFFIXES)}; choose one of these formats")
    return SUFFIXES[suffix]


def check_writable(path: str | Path, shape: tuple[int, ...], *, overwrite: bool = False) -> None:
    """Refuse in advance what `write_picture` could not write, so that no hour is spent before it fails.

    Args:
        path: The file to be written.
        shape: (H, W, C) of the pixels.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ValueError: As `write_picture`.
    """
    path, kind = Path(path), format_of(path)
    if path.is_dir():
        _refuse(path, "is a folder; choose another name")
    if path.exists() and not overwrite:
        _refuse(path, "exists; add --overwrite to replace it, or choose another --out")
    height, width, channels = shape
    if channels in (2, 4) and kind == "jpg":
        _refuse(path, "cannot hold transparency as a JPEG; choose --format png, webp or tiff")
    limit = MAX_SIDE.get(kind)
    if limit and max(height, width) > limit:
        wanted = f"cannot be {width}x{height}: {FORMAT_NAMES[kind]} allows {limit} pixels a side"
        _refuse(path, f"{wanted}; choose --format png")
    if kind == "tiff" and height * width * channels * 2 > TIFF_BYTES:
        _refuse(path, f"cannot be {width}x{height}: a TIFF holds 4 GB; choose --format png")


def write_picture(picture: Picture, path: str | Path, *, overwrite: bool = False) -> None:
    """Encode by the suffix of `path`, under a temporary name that is renamed when complete. Missing folders are made.

    PNG and TIFF are lossless and keep 16 bits; JPEG (quality 95, 4:4:4) and WebP (quality 95) hold 8, so 16 are
    rounded. WebP has no grey, it becomes RGB. The colour profile is kept.

    Args:
        picture: What to write.
        path: Ends in .png, .jpg, .jpeg, .webp, .tif or .tiff.
        overwrite: Replace an existing file instead of refusing.

    Raises:
        ValueError: Unknown suffix, existing file, alpha in a JPEG, a side too long for the format, or the disk is full
            or read-only.
    """
    path = Path(path)
    check_writable(path, picture.pixels.shape, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _encode(picture, file, format_of(path))
        os.replace(temporary, path)
    except OSError as error:
        _refuse(path, f"cannot be written ({error.strerror or error}); check the folder, its rights and free space")
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; never created if the folder could not be
            temporary.unlink()


def _refuse(path: Path, what: str) -> NoReturn:
    raise ValueError(f"{path}: {what}")


def _damaged(path: Path, kind: Format, error: Exception) -> NoReturn:
    detail = " ".join(str(error).split()) or type(error).__name__
    what = f"is a damaged or truncated {FORMAT_NAMES[kind]} file ({detail}); copy or export it again"
    raise ValueError(f"{path}: {what}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.is_dir():
        _refuse(path, "is a folder; give a picture")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        _refuse(path, "does not exist; check the path")
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror or error}); check its rights")
    with file:
        yield file


def _kind(path: Path, file: IO[bytes]) -> Format:
    """Tell the format by the first bytes, and refuse a name that says another."""
    head = file.read(12)
    file.seek(0)
    if not head:
        _refuse(path, "is empty (0 bytes); copy it again")
    kind: Format
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif head.startswith(b"\xff\xd8\xff"):
        kind = "jpg"
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "webp"
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        kind = "tiff"
    elif head.startswith(b"GIF8"):
        _refuse(path, f"is a GIF, which is not read; {extract_frames(path)}")
    else:
        _refuse(path, "is not a PNG, JPEG, WebP or TIFF picture; convert it to one of these first")
    named = SUFFIXES.get(path.suffix.lower(), kind)
    if named != kind:
        right = next(suffix for suffix, other in SUFFIXES.items() if other == kind)
        what = f"is a {FORMAT_NAMES[kind]} file named like a {FORMAT_NAMES[named]}"
        _refuse(path, f"{what}; rename it to {path.stem}{right}")
    return kind


def _plugin(kind: Format) -> Callable[[IO[bytes]], Image.Image]:
    """Return Pillow's reader of one format: no other format is tried, and no process-wide pixel limit applies."""
    from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    readers: dict[Format, Callable[[IO[bytes]], Image.Image]] = {
        "png": PngImagePlugin.PngImageFile,
        "jpg": JpegImagePlugin.jpeg_factory,
        "webp": WebPImagePlugin.WebPImageFile,
        "tiff": TiffImagePlugin.TiffImageFile,
    }
    return readers[kind]


def _check_header(path: Path, image: Image.Image, frames: int, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        what = f"has {megapixels:.1f} megapixels, more than the limit of {max_megapixels:g}"
        _refuse(path, f"{what}; raise it with --max-megapixels, or make the picture smaller")
    if frames > 1:
        _refuse(path, f"has {frames} frames, and one picture is upscaled at a time; {extract_frames(path)}")
    if image.mode in _REFUSED_MODES:
        _refuse(path, _REFUSED_MODES[image.mode])


def extract_frames(path: Path) -> str:
    """Say how the frames of an animation become a folder of pictures, with what is installed beside this package."""
    folder = shlex.quote(str(path.with_name(f"{path.stem}_frames")))
    code = (
        "import os, sys; from PIL import Image, ImageSequence as S; os.mkdir(sys.argv[2]); "
        "[f.save(f'{sys.argv[2]}/{i:05}.png') for i, f in enumerate(S.Iterator(Image.open(sys.argv[1])))]"
    )
    command = f'python -c "{code}" {shlex.quote(str(path))} {folder}'
    return f"extract its frames with: {command}  and upscale that folder"


def _bits(file: IO[bytes], kind: Format, image: Image.Image) -> int:
    """Bits a channel in the file; what Pillow decodes to is no guide."""
    if kind == "png":
        file.seek(24)  # signature, length and name of IHDR, width, height
        return file.read(1)[0]
    if kind == "tiff":
        return max(image.tag_v2.get(_BITS, (1,)))  # pyright: ignore[reportAttributeAccessIssue]
    return 8


def _decode8(image: Image.Image) -> Picture:
    from PIL import ImageOps

    icc = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    grey = image.mode in ("1", "L", "LA", "I;16")
    alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    wanted = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    if image.mode != wanted:
        image = image.convert(wanted)
    pixels = np.array(image)
    return Picture(pixels.reshape(*pixels.shape[:2], -1), icc)


def _decode16(file: IO[bytes], kind: Format, image: Image.Image) -> Picture:
    import cv2

    tags = dict(image.tag_v2) if kind == "tiff" else {}  # pyright: ignore[reportAttributeAccessIssue]
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise ValueError("its 16-bit values are not unsigned integers")
    icc, key = image.info.get("icc_profile"), image.info.get("transparency")
    orientation = 1 if kind == "tiff" else image.getexif().get(_ORIENTATION, 1)  # OpenCV turns a TIFF itself
    image.load()  # finds truncated files, of which OpenCV may return the intact part
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("OpenCV cannot decode it with 16 bits")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]  # OpenCV's order is BGR
    if kind == "png" and _png_colour(file) == _PNG_GREY_ALPHA:
        pixels = pixels[..., [0, -1]]
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        pixels = 65535 - pixels
    if tags.get(_EXTRA_SAMPLES, (0,))[0] == 1 and pixels.shape[2] == 4:
        pixels = _unpremultiplied(pixels)
    if key is not None and pixels.shape[2] in (1, 3):  # one colour of a PNG stands for transparent
        opaque = np.any(pixels != np.asarray(key, np.uint16), axis=2, keepdims=True)
        pixels = np.concatenate([pixels, opaque * np.uint16(65535)], axis=2)
    return Picture(np.ascontiguousarray(_upright(pixels, orientation)), icc)


def _png_colour(file: IO[bytes]) -> int:
    file.seek(25)
    return file.read(1)[0]


def _unpremultiplied(pixels: NDArray) -> NDArray:
    colour = pixels[..., :3].astype(np.float64) * 65535 / np.maximum(pixels[..., 3:], 1)
    colour = np.minimum(np.rint(colour), 65535)
    return np.concatenate([colour.astype(np.uint16), pixels[..., 3:]], axis=2)


def _upright(pixels: NDArray, orientation: int) -> NDArray:
    """Undo an EXIF orientation: 1 is upright, 5 to 8 are also transposed."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_8_bits(pixels: NDArray) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257


def _encode(picture: Picture, file: IO[bytes], kind: Format) -> None:
    from PIL import Image

    from .encode16 import encode_png16, encode_tiff16

    if picture.pixels.dtype == np.uint16 and kind == "png":
        encode_png16(picture.pixels, file, picture.icc_profile)
        return
    if picture.pixels.dtype == np.uint16 and kind == "tiff":
        encode_tiff16(picture.pixels, file, picture.icc_profile)
        return
    pixels = _to_8_bits(picture.pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options: dict[Format, dict[str, Any]] = {
        "png": {"format": "PNG"},
        "jpg": {"format": "JPEG", "quality": QUALITY, "subsampling": 0},
        "webp": {"format": "WEBP", "quality": QUALITY},
        "tiff": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    }
    chosen = options[kind]
    if picture.icc_profile:
        chosen["icc_profile"] = picture.icc_profile
    image.save(file, **chosen)
