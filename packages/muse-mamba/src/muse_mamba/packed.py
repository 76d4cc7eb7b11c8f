"""One folder with everything a bare GPU machine needs: pictures, captions as vectors, weights of the loss.

manifest.json (names, captions, splits, licences), pictures.safetensors (lossless WebP files one after the other),
text.safetensors (`TextCache`), perceptual.safetensors (first stages of EfficientNet-Lite0), tokenizer/ if given.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .sources import Picture, find_pictures, open_image

MOST_OF_MEMORY = 0.8  # that pictures may take of what is free
CAPTIONED = 'write metadata.jsonl with rows {"file_name": ..., "text": ...}'

if TYPE_CHECKING:
    from .text import TextCache

MANIFEST, PICTURES, PERCEPTUAL, TOKENIZER = (
    "manifest.json",
    "pictures.safetensors",
    "perceptual.safetensors",
    "tokenizer",
)


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """A picture in memory: `pixels` (H, W, 3) uint8, or its encoded file, and what is known about it."""

    name: str
    captions: tuple[str, ...]
    split: str
    concept: str
    package: str
    pixels: NDArray[np.uint8]


def is_packed(data: str | None) -> bool:
    """Whether `data` is a folder written by `pack`."""
    return data is not None and (Path(data) / MANIFEST).is_file()


def read_all(pictures: Sequence[Picture], size: int | None, *, verbose: bool = True) -> list[Pictured]:
    """Read pictures; those that cannot be read are named on stderr, skipped and counted.

    Args:
        pictures: What to read.
        size: Side of drawings in pixels; photographs keep theirs.
        verbose: Say what was skipped.

    Raises:
        ValueError: None can be read, or they take more memory than is free.
    """
    import psutil

    good: list[Pictured] = []
    skipped: list[str] = []
    taken, free = 0, round(MOST_OF_MEMORY * psutil.virtual_memory().available)
    for number, p in enumerate(pictures, start=1):
        try:
            pixels = p.read(size)
        except (OSError, ValueError) as error:
            skipped.append(f"skipped {p.path}: {error}")
            continue
        taken += pixels.nbytes
        if taken > free:
            raise ValueError(
                f"data: {number} of {len(pictures)} images take {taken / 1e9:.1f} GB of memory per process, of which "
                f"{free / 1e9:.1f} may be used; give fewer, or pack them into parquet or WebDataset shards, which are "
                "streamed"
            )
        good.append(
            Pictured(
                name=p.name, captions=p.captions, split=p.split, concept=p.concept, package=p.package, pixels=pixels
            )
        )
    if verbose and skipped:
        print("\n".join([*skipped, f"{len(skipped)} of {len(pictures)} images skipped"]), file=sys.stderr)
    if not good:
        raise ValueError(f"data: none of {len(pictures)} images can be used; the first: {skipped[0]}")
    return good


def pack(
    out: Path,
    *,
    data: str | None,
    size: int,
    root: Path,
    encoder: str,
    length: int,
    tokenizer: Path | None = None,
    perceptual: bool = True,
) -> dict[str, Any]:
    """Write a packed folder and return its manifest's summary.

    Args:
        out: A new or empty folder.
        data: As for `find_pictures`.
        size: Side of the drawings in pixels.
        root: Where Debian's packages are.
        encoder: Name of the text encoder.
        length: Most tokens of a caption.
        tokenizer: Folder of a trained tokenizer to carry along.
        perceptual: Carry the first stages of EfficientNet-Lite0.

    Raises:
        ValueError: `out` has files in it, nothing can be read, or a package is missing.
    """
    from .pretrained import export_copy
    from .text import CACHE, TextCache, TextEncoder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"encode: --out must be a new or empty folder, {out} has files in it")
    sources = find_pictures(data, root)
    if not any(p.captions for p in sources):
        raise ValueError(f"data: none of {len(sources)} images has a caption; {CAPTIONED}")
    licences = {p.name: p.licence for p in sources}
    pictures = [p for p in read_all(sources, size) if p.pixels.min() < 250]  # a font may lack a glyph
    cache = TextCache.encode(TextEncoder(encoder, length=length), [c for p in pictures for c in p.captions])
    files = [_webp(p.pixels) for p in pictures]
    out.mkdir(parents=True, exist_ok=True)
    cache.save(out / CACHE)
    if perceptual:
        from .backbones import save_first_stages

        save_first_stages(out / PERCEPTUAL)
    if tokenizer is not None:
        export_copy(tokenizer, out / TOKENIZER)
    _write_blob(out / PICTURES, files)
    rows = [
        {
            "name": p.name,
            "captions": list(p.captions),
            "split": p.split,
            "concept": p.concept,
            "package": p.package,
            "licence": licences[p.name],
        }
        for p in pictures
    ]
    summary = {
        "pictures": len(rows),
        "splits": dict(Counter(p.split for p in pictures)),
        "packages": dict(Counter(p.package for p in pictures)),
        "captions": len(cache.sentences),
        "size": size,
        "encoder": encoder,
    }
    (out / MANIFEST).write_text(json.dumps({"summary": summary, "rows": rows}) + "\n")
    return summary | {"bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file())}


def load_packed(folder: Path) -> tuple[list[Pictured], TextCache]:
    """Read a packed folder: pictures and encoded captions.

    Raises:
        ValueError: Something is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from .text import CACHE, TextCache

    try:
        rows = json.loads((folder / MANIFEST).read_text())["rows"]
        blob = load_file(folder / PICTURES)
        data, bounds = blob["bytes"], blob["bounds"]
        pictures = [
            Pictured(
                name=row["name"],
                captions=tuple(row["captions"]),
                split=row["split"],
                concept=row["concept"],
                package=row["package"],
                pixels=open_image(data[bounds[i] : bounds[i + 1]].tobytes()),
            )
            for i, row in enumerate(rows)
        ]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"data: {folder} is no whole packed folder: {error!r}; encode it again") from error
    return pictures, TextCache.load(folder / CACHE)


def _webp(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True, quality=90, method=6)
    return buffer.getvalue()


def _write_blob(file: Path, parts: Sequence[bytes]) -> None:
    from safetensors.numpy import save_file

    bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    save_file({"bytes": np.frombuffer(b"".join(parts), np.uint8), "bounds": bounds}, file)
