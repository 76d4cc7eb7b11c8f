"""Pictures and captions from parquet files, WebDataset shards, or any data set by its name, through `datasets`.

Rows are read one after the other. Training keeps no pictures of them (stream.py); `evaluate` reads them into memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packed import Pictured
from .sources import EMOJI_STAMPS, IMAGE_SUFFIXES, open_image

SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
ARROW_THAT_HANGS = 24  # major version; up to it threads may hang when they are closed, for which `datasets` waits
CAPTIONS = ("text", "caption", "txt", "captions", "json")


def is_rows(data: str) -> bool:
    """Whether `data` is read row by row: a shard, a folder of shards, or a data set's name."""
    path = Path(data)
    if data == EMOJI_STAMPS or (path.is_dir() and any(f.suffix.lower() in IMAGE_SUFFIXES for f in path.rglob("*"))):
        return False
    if shards(data):
        return True
    return not path.exists() and not data.startswith((".", "/", "~")) and data.count("/") == 1


def shards(data: str) -> list[Path]:
    """Return the .parquet files, or else the .tar files, that `data` names or a folder holds; often none."""
    path = Path(data)
    if path.suffix in SHARDS and path.is_file():
        return [path]
    for suffix in SHARDS:
        found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else []
        if found:
            return found
    return []


def read_rows(data: str, *, verbose: bool) -> list[Pictured]:
    """Read every row that can be read into memory.

    Raises:
        ValueError: There is no such thing, it holds no pictures, or `datasets` is not installed.
    """
    return list(each_row(data, verbose=verbose))


def each_row(data: str, *, verbose: bool) -> Iterator[Pictured]:
    """Yield every row that can be read, in order; the others are named on stderr, skipped and counted at the end.

    Raises:
        ValueError: As `read_rows`, the last one when all rows were tried.
    """
    column, text, rows = open_rows(data)
    good = total = 0
    for number, row in enumerate(rows):
        total += 1
        try:
            pixels = decode(row[column])
        except (OSError, TypeError, KeyError) as error:
            if verbose:
                print(f"skipped row {number} of {data}: {error}", file=sys.stderr)
            continue
        good += 1
        captions = _captions(row.get(text)) if text else ()
        name = f"row {number}"
        yield Pictured(name=name, captions=captions, split="train", concept=name, package="", pixels=pixels)
    if verbose and good < total:
        print(f"{total - good} of {total} images skipped", file=sys.stderr)
    if not good:
        raise ValueError(f"data: none of {total} rows of {data} can be used")


def decode(value: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the pixels of an undecoded image of `datasets`.

    Raises:
        OSError: It is damaged or no image.
    """
    return open_image(Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"])


def _captions(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        value = next((value[name] for name in CAPTIONS if name in value), None)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    texts = value if isinstance(value, list) else [value]
    return tuple(str(t).strip() for t in texts if t and str(t).strip())


def open_rows(data: str) -> tuple[str, str | None, Any]:
    """Return the names of the columns of pictures and captions, and the rows with undecoded pictures.

    Raises:
        ValueError: There is no such thing, it has no pictures, or `datasets` is not installed.
    """
    try:
        import datasets
        from datasets import config as settings
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data: {data} is no folder with images, and reading it as a data set needs a library; "
            "pip install 'muse-mamba[streaming]'"
        ) from error
    if settings.PYARROW_VERSION.major > ARROW_THAT_HANGS:
        settings.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else five seconds at the end of every epoch
    broken = datasets.exceptions.DatasetsError  # pyright: ignore[reportAttributeAccessIssue]  # its __init__ imports it
    files = shards(data)
    request: tuple[Any, ...] = (data,)
    if files:
        request = (SHARDS[files[0].suffix], None, None, [str(file) for file in files])
    try:
        rows = datasets.load_dataset(*request, split="train", streaming=True)
        features = rows.features or rows._resolve_features().features  # the first rows tell
    except (OSError, ValueError, broken) as error:
        raise ValueError(f"data: {data} is neither a folder of images nor a readable data set: {error}") from error
    columns = [name for name, feature in (features or {}).items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"data: {data} has no image column, only {', '.join(features or {})}; give a set of images")
    text = next((name for name in CAPTIONS if name in (features or {})), None)
    return columns[0], text, rows.cast_column(columns[0], datasets.Image(decode=False))
