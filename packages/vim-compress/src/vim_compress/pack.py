"""Pack data sets into one file each, for a machine that lacks the packages with the pictures.

    python -m vim_compress.pack fashion-mnist --out packed/ [--root DIR]
    python -m vim_compress.pack emoji --out packed/ [--npm FILE.tgz ...]

`--data packed/emoji.npz` trains on the result. Emoji are OpenMoji's drawings; archives of the npm packages
emoji-datasource-google and emoji-datasource-twitter (`npm pack NAME`) add two more drawings of each.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .packed import write_packed
from .pictures import Pictures, flatten
from .sources import (
    EMOJI_SOURCE,
    FASHION_FOLDER,
    FASHION_SOURCE,
    emoji_pictures,
    fashion_mnist,
    label_emoji,
    read_emoji,
)

VENDORS = {
    "google": {"package": "emoji-datasource-google 16.0.0 (npm)", "licence": "Noto Emoji: OFL-1.1 and Apache-2.0"},
    "twitter": {"package": "emoji-datasource-twitter 16.0.0 (npm)", "licence": "Twemoji: CC-BY-4.0"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Pack, say what is in the file, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vim_compress.pack", description="Pack a data set into one file.")
    parser.add_argument("what", choices=["fashion-mnist", "emoji"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the file")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian package is unpacked")
    parser.add_argument("--npm", type=Path, nargs="*", default=[], help="archives with more drawings of emoji")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    options = parser.parse_args(argv)
    file = options.out / f"{options.what}.npz"
    try:
        if file.exists() and not options.overwrite:
            raise ValueError(f"{file} exists; add --overwrite or choose another folder")
        if options.what == "emoji":
            pictures, held, sources = emoji_with(options.npm)
        else:
            pictures, held = fashion_mnist(options.root / FASHION_FOLDER.relative_to("/"))
            sources = [FASHION_SOURCE]
        options.out.mkdir(parents=True, exist_ok=True)
        size = write_packed(file, pictures, held, sources)
    except (ValueError, OSError) as mistake:
        print(f"vim_compress.pack: {mistake}", file=sys.stderr)
        return 2
    said = f"{len(pictures)} pictures, {held.sum()} held out, {len(pictures.classes)} classes, {size / 1e6:.1f} MB"
    print(f"{file}: {said}")
    for number, name in enumerate(pictures.classes):
        print(f"  {name:<20}{(pictures.labels == number).sum():>7}")
    return 0


def emoji_with(archives: Sequence[Path]) -> tuple[Pictures, NDArray[np.bool_], list[dict[str, str]]]:
    """Return OpenMoji's drawings and those of npm archives, which are held out, and the sources."""
    parts = [emoji_pictures()]
    sources = [EMOJI_SOURCE]
    for archive in archives:
        vendor = next((v for v in VENDORS if v in archive.name), None)
        if vendor is None or not archive.is_file():
            raise ValueError(f"--npm: must be archives of emoji-datasource-google or -twitter, got {archive}")
        parts.append(_vendor(archive, vendor))
        sources.append(VENDORS[vendor])
    pictures = Pictures(
        np.concatenate([np.asarray(p.images) for p, _ in parts]),
        np.concatenate([p.labels for p, _ in parts]),
        [name for p, _ in parts for name in p.names],
        parts[0][0].classes,
        parts[0][0].domain,
    )
    return pictures, np.concatenate([held for _, held in parts]), sources


def _vendor(archive: Path, vendor: str) -> tuple[Pictures, NDArray[np.bool_]]:
    from PIL import Image

    folder = f"package/img/{vendor}/64/"
    drawn: dict[str, bytes] = {}
    table: list[dict[str, object]] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and member.name.startswith(folder):
                drawn[member.name.removeprefix(folder).removesuffix(".png").upper()] = file.read()
            elif file is not None and member.name == "package/emoji.json":
                table = json.loads(file.read())
    emoji, images = [], []
    for entry in read_emoji(table):
        data = next((drawn[code] for code in entry.files if code in drawn), None)
        if data is None:
            continue
        with Image.open(io.BytesIO(data)) as image:
            images.append(np.asarray(flatten(image)))
        emoji.append(entry)
    return label_emoji(emoji, np.stack(images), vendor)


if __name__ == "__main__":
    raise SystemExit(main())
