"""Pictures and captions from parquet files, WebDataset shards, or any data set by its name, through `datasets`.

Rows are read one after the other; pictures are kept as they are decoded, so the set has to fit into memory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .packed import Pictured
from .sources import EMOJI_STAMPS, IMAGE_SUFFIXES, open_image

SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
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
    """Read every row that can be read; the others are named on stderr, skipped and counted.

    Raises:
        ValueError: There is no such thing, it holds no pictures, or `datasets` is not installed.
    """
    column, text, rows = _open(data)
    good: list[Pictured] = []
    skipped: list[str] = []
    total = 0
    for number, row in enumerate(rows):
        total += 1
        try:
            value = row[column]
            pixels = open_image(Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"])
        except (OSError, TypeError, KeyError) as error:
            skipped.append(f"skipped row {number} of {data}: {error}")
            continue
        captions = _captions(row.get(text)) if text else ()
        name = f"row {number}"
        good.append(Pictured(name=name, captions=captions, split="train", concept=name, package="", pixels=pixels))
    if verbose and skipped:
        print("\n".join([*skipped, f"{len(skipped)} of {total} images skipped"]), file=sys.stderr)
    if not good:
        raise ValueError(f"data: none of {total} rows of {data} can be used")
    return good


def _captions(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        value = next((value[name] for name in CAPTIONS if name in value), None)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    texts = value if isinstance(value, list) else [value]
    return tuple(str(t).strip() for t in texts if t and str(t).strip())


def _open(data: str) -> tuple[str, str | None, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data: {data} is no folder with images, and reading it as a data set needs a library; "
            "pip install 'muse-mamba[streaming]'"
        ) from error
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
