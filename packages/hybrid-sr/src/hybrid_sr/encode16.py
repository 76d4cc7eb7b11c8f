"""Write 16-bit PNG and TIFF with colour profile, row band by row band.

Pillow cannot write 16-bit colour and OpenCV writes neither a profile nor grey with alpha.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

BAND_BYTES = 1 << 24  # compressed at a time
LEVEL = 6  # of zlib

_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type
_UP = b"\x02"  # PNG filter: difference to the row above
_SHORT, _LONG, _UNDEFINED = 3, 4, 7  # TIFF field types


def encode_png16(pixels: NDArray[np.uint16], file: IO[bytes], icc_profile: bytes | None = None) -> None:
    """Write (H, W, C) uint16 as PNG; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0)
    _png_chunk(file, b"IHDR", header)
    if icc_profile:
        _png_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
    above = np.zeros((1, width * channels * 2), np.uint8)
    packer = zlib.compressobj(LEVEL)
    for band in _bands(pixels):
        rows = np.ascontiguousarray(band, dtype=">u2").view(np.uint8).reshape(len(band), -1)
        step = rows - np.concatenate([above, rows[:-1]])  # modulo 256, as the filter is defined
        above = rows[-1:]
        data = packer.compress(np.insert(step, 0, _UP[0], axis=1).tobytes())
        if data:
            _png_chunk(file, b"IDAT", data)
    _png_chunk(file, b"IDAT", packer.flush())
    _png_chunk(file, b"IEND", b"")


def encode_tiff16(pixels: NDArray[np.uint16], file: IO[bytes], icc_profile: bytes | None = None) -> None:
    """Write (H, W, C) uint16 as TIFF, deflated; grey with alpha becomes RGB with alpha, which more readers know."""
    if pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    height, width, channels = pixels.shape
    file.write(struct.pack("<2sHI", b"II", 42, 0))  # the offset of the directory is filled in at the end
    offsets, sizes = [], []
    for band in _bands(pixels):
        step = np.diff(band, axis=1, prepend=np.zeros_like(band[:, :1]))  # predictor 2: modulo 65536 along the row
        data = zlib.compress(np.ascontiguousarray(step, dtype="<u2").tobytes(), LEVEL)
        offsets.append(file.tell())
        sizes.append(len(data))
        file.write(data + b"\0" * (len(data) % 2))  # values start on even offsets
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [16] * channels),  # bits per sample
        (259, _SHORT, [8]),  # compression: deflate
        (262, _SHORT, [1 if channels == 1 else 2]),  # black is zero; RGB
        (273, _LONG, offsets),
        (277, _SHORT, [channels]),
        (278, _LONG, [_rows_per_band(pixels)]),
        (279, _LONG, sizes),
        (284, _SHORT, [1]),  # channels interleaved
        (317, _SHORT, [2]),  # predictor
        *([(338, _SHORT, [2])] if channels == 4 else []),  # alpha, not premultiplied
        (339, _SHORT, [1] * channels),  # unsigned integers
        *([(34675, _UNDEFINED, icc_profile)] if icc_profile else []),
    ]
    _tiff_directory(file, tags)


def _rows_per_band(pixels: NDArray) -> int:
    return max(1, min(pixels.shape[0], BAND_BYTES // pixels[0].nbytes))


def _bands(pixels: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
    rows = _rows_per_band(pixels)
    for y in range(0, len(pixels), rows):
        yield pixels[y : y + rows]


def _png_chunk(file: IO[bytes], name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def _tiff_directory(file: IO[bytes], tags: list[tuple[int, int, list[int] | bytes]]) -> None:
    """Write the values that do not fit into 4 bytes, then the directory, then its offset into the header."""
    entries = b""
    for tag, kind, values in tags:
        letter = "H" if kind == _SHORT else "I"
        raw = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{letter}", *values)
        if len(raw) > 4:
            where = file.tell()
            file.write(raw + b"\0" * (len(raw) % 2))
            raw = struct.pack("<I", where)
        entries += struct.pack("<HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
    where = file.tell()
    file.write(struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))
    file.seek(4)
    file.write(struct.pack("<I", where))
