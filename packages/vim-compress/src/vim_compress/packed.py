"""Small data sets as one file: pictures of one size, their classes, which are held out, and where they come from.

An .npz archive (read without pickles): `images` the bytes of all pictures under xz, `shape` (N, H, W) or (N, H, W, 3),
`labels` (N,), `held` (N,) whether a picture is held out of training, `about` JSON with classes, names, domain, sources.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .pictures import Pictures

SUFFIX = ".npz"
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


def write_packed(file: Path, pictures: Pictures, held: NDArray[np.bool_], sources: list[dict[str, str]]) -> int:
    """Write a data set; return the file's bytes.

    Args:
        file: Ends in .npz.
        pictures: All of one size, in memory.
        held: Which are held out, (N,).
        sources: Package, version and licence of what is in it.
    """
    images = np.stack([np.asarray(image) for image in pictures.images])
    about = {"classes": pictures.classes, "names": list(pictures.names), "domain": pictures.domain, "sources": sources}
    data = lzma.compress(images.tobytes(), lzma.FORMAT_XZ, filters=FILTERS)
    half = file.with_name(file.name + ".tmp")
    with half.open("wb") as stream:
        np.savez(
            stream,
            images=np.frombuffer(data, np.uint8),
            shape=np.array(images.shape),
            labels=pictures.labels,
            held=held,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )
    half.replace(file)
    return file.stat().st_size


def read_packed(file: Path) -> tuple[Pictures, NDArray[np.bool_], list[dict[str, str]]]:
    """Read what `write_packed` wrote: pictures, which are held out, sources.

    Raises:
        ValueError: The file is damaged or something else.
    """
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            about: dict[str, Any] = json.loads(stored["about"].tobytes())
            raw = lzma.decompress(stored["images"].tobytes())
            images = np.frombuffer(raw, np.uint8).reshape(stored["shape"])
            labels, held = stored["labels"].astype(np.int64), stored["held"].astype(np.bool_)
        pictures = Pictures(images, labels, about["names"], tuple(about["classes"]), about["domain"])
        return pictures, held, about["sources"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, lzma.LZMAError, BadZipFile) as error:
        raise ValueError(f"data: {file} is no file of vim_compress.pack: {error!r}; pack again") from error
