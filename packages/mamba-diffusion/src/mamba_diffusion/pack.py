"""Pack the training fields once, for a machine that has neither the Debian packages nor those from PyPI.

`python -m mamba_diffusion.pack --out packed/ [--root DIR]` writes the Debian photos and the Blue Marble mosaic reduced
to about a thousand pixels (validation and held-out ones losslessly, the others as JPEG of quality 95), and temperatures
and reliefs as 16-bit numbers, below 24 MB in all. `--data packed/` trains on the result; `--subject` chooses.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .embedded import air, halve, mosaics, regions, sea
from .netcdf import read_variable, series
from .photos import debian_photos
from .sources import MANIFEST, Field

LIMIT_MB = 24.0
LONGEST = 1400  # side of a packed photo; longer ones are halved
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0, "optimize": True}
LOSSLESS = {"format": "WEBP", "lossless": True, "quality": 60, "method": 4}
FERRET = {"package": "ferret-datasets", "licence": "Ferret licence (NOAA)"}
MISSING = np.iinfo(np.int16).min


def main(argv: Sequence[str] | None = None) -> int:
    """Pack, print the manifest, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mamba_diffusion.pack", description="Pack the training fields.")
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--limit", type=float, default=LIMIT_MB, help="size of the whole, in 10^6 bytes")
    options = parser.parse_args(argv)
    try:
        fields = [*debian_photos(options.root), *mosaics(("bmng",)), *air(), *sea(), *ferret(options.root)]
        rows = pack(fields, options.out, int(options.limit * 1e6))
    except (ValueError, OSError) as mistake:
        print(f"mamba_diffusion.pack: {mistake}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


def ferret(root: Path) -> list[Field]:
    """Read sea and air temperatures of a climatology and the relief of the Earth from Debian's ferret-datasets.

    Raises:
        ValueError: The package is not installed under `root`.
    """
    folder = root / "usr/share/ferret-vis/data"
    if not folder.is_dir():
        raise ValueError(f"no {folder}; install with: apt-get install ferret-datasets, or give --root")
    fields = []
    for variable, subject in (("SST", "sst"), ("AIRT", "air")):
        values, unit = read_variable(folder / "coads_climatology.cdf", variable)
        common = {"subject": subject, "unit": unit or "degC", **FERRET}
        fields += series(values, f"coads-{variable}", (8, 9), **common)
    relief, _ = read_variable(folder / "etopo20.cdf", "ROSE")
    return fields + regions(relief[..., None], "etopo20", subject="topography", unit="m", **FERRET)


def pack(fields: list[Field], out: Path, limit: int) -> list[dict[str, Any]]:
    """Write every photo, every series, and the manifest last, so that a half-packed folder is not taken for packed.

    Args:
        fields: What to pack; those of a series ("name[0]", "name[1]", ...) and of one split share a file.
        out: A new or empty folder.
        limit: Bytes that it may take.

    Returns:
        The manifest's rows.

    Raises:
        ValueError: `out` has files in it, or the limit is not enough.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"pack: --out must be a new or empty folder, {out} has files in it")
    files = [encode(list(group)) for _, group in groupby(fields, key=group_of)]
    total = sum(len(data) for _, data in files)
    if total > limit:
        raise ValueError(f"pack: the fields take {total / 1e6:.1f} MB, above the limit of {limit / 1e6:.1f} MB")
    out.mkdir(parents=True, exist_ok=True)
    for row, data in files:
        (out / row["file"]).write_bytes(data)
    rows = [row for row, _ in files]
    (out / MANIFEST).write_text(json.dumps({"fields": rows}, indent=1) + "\n")
    return rows


def group_of(field: Field) -> tuple[str, ...]:
    """Return what fields of one file share: images have files of their own."""
    if field.values.dtype == np.uint8:
        return (field.name,)
    return (field.name.partition("[")[0], field.split, str(field.values.shape))


def encode(group: list[Field]) -> tuple[dict[str, Any], bytes]:
    """Return the manifest's row of a photo or series, and its file."""
    first = group[0]
    image = first.values.dtype == np.uint8
    size = "x".join(map(str, first.values.shape[:-1]))
    series_name = f"{group_of(first)[0]}-{size}-{first.split}"
    name = first.name.replace("[", "-").replace("]", "") if image else series_name
    data, suffix, shape = (_encode_image if image else _encode_series)(group)
    row = {"name": name, "file": f"{name}.{suffix}", "subject": first.subject, "unit": first.unit}
    row |= {"package": first.package, "licence": first.licence, "split": first.split}
    return row | {"shape": shape, "bytes": len(data)}, data


def _encode_image(group: list[Field]) -> tuple[bytes, str, list[int]]:
    from PIL import Image

    pixels = group[0].values
    while max(pixels.shape) > LONGEST:
        pixels = halve(pixels, 2)
    lossless = group[0].split != "train"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **(LOSSLESS if lossless else JPEG))
    return buffer.getvalue(), "webp" if lossless else "jpg", list(pixels.shape)


def _encode_series(group: list[Field]) -> tuple[bytes, str, list[int]]:
    values = np.stack([field.values[..., 0] for field in group])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scale, offset = max(high - low, 1e-6) / 65_000, (high + low) / 2
    numbers = np.where(np.isfinite(values), np.round((values - offset) / scale), MISSING).astype(np.int16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, values=numbers, scale=scale, offset=offset)
    return buffer.getvalue(), "npz", list(values.shape)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the manifest as text, one file a line, the sums below."""
    rows = list(rows)
    lines = [f"{'file':<46}{'subject':<12}{'package':<29}{'licence':<36}{'split':<12}{'shape':>18}{'kB':>7}"]
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        source = f"{row['file']:<46}{row['subject']:<12}{row['package']:<29}{row['licence']:<36}{row['split']:<12}"
        lines.append(f"{source}{shape:>18}{row['bytes'] // 1000:>7}")
    lines.append(f"{len(rows)} files, {sum(row['bytes'] for row in rows) / 1e6:.1f} MB")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
