"""NetCDF files: fields from any of them, through netCDF4 where it is installed, else scipy (classic format only)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .sources import KELVIN, Field, Split

LARGEST = 1e20  # beyond it a number stands for "missing"
LEAST_SIDE = 8  # points


def read_variable(file: Path, name: str) -> tuple[NDArray[np.float32], str]:
    """Read a variable with NaN where it is missing, and its unit.

    Raises:
        ValueError: There is no such variable, or no library that reads the file.
    """
    try:
        import netCDF4
    except ModuleNotFoundError:
        return _read_classic(file, name)
    with netCDF4.Dataset(file) as dataset:
        if name not in dataset.variables:
            raise ValueError(f"{file} has no variable {name}, only {', '.join(dataset.variables)}")
        variable = dataset.variables[name]
        values = np.ma.filled(variable[:].astype(np.float32), np.nan)
        unit = str(getattr(variable, "units", ""))
    return np.where(np.abs(values) > LARGEST, np.nan, values).astype(np.float32), unit


def _read_classic(file: Path, name: str) -> tuple[NDArray[np.float32], str]:
    from scipy.io import netcdf_file

    try:
        with netcdf_file(file, mmap=False) as dataset:
            if name not in dataset.variables:
                raise ValueError(f"{file} has no variable {name}, only {', '.join(dataset.variables)}")
            variable = dataset.variables[name]
            values = np.asarray(variable[:], np.float32)
            missing = getattr(variable, "missing_value", getattr(variable, "_FillValue", np.nan))
            unit = getattr(variable, "units", b"").decode()
    except TypeError as error:  # scipy's way to say that the file is of the newer kind
        raise ValueError(f"{file} is NetCDF-4; pip install netCDF4") from error
    bad = (np.abs(values) > LARGEST) | np.isclose(values, np.asarray(missing, np.float32).ravel()[0])
    return np.where(bad, np.nan, values), unit


def variables(file: Path) -> list[str]:
    """Return the names of the variables with at least two axes of eight points or more, largest first."""
    try:
        import netCDF4
    except ModuleNotFoundError:
        from scipy.io import netcdf_file

        with netcdf_file(file, mmap=False) as dataset:
            shapes = {name: v.shape for name, v in dataset.variables.items()}
    else:
        with netCDF4.Dataset(file) as dataset:
            shapes = {name: v.shape for name, v in dataset.variables.items()}
    fields = {n: s for n, s in shapes.items() if len(s) >= 2 and min(s[-2:]) >= LEAST_SIDE and "bnds" not in n}
    return sorted(fields, key=lambda n: -int(np.prod(fields[n])))


def read_netcdf(file: Path) -> list[Field]:
    """Read the largest variable of a file as a series of maps over its last two axes."""
    names = variables(file)
    if not names:
        raise ValueError(f"{file} has no variable over two axes of at least {LEAST_SIDE} points")
    values, unit = read_variable(file, names[0])
    maps = values.reshape(-1, *values.shape[-2:])
    return [Field(name=f"{file.name}:{names[0]}[{n}]", values=m[..., None], unit=unit) for n, m in enumerate(maps)]


def series(
    values: NDArray[np.float32],
    name: str,
    blocks: tuple[int, int],
    *,
    subject: str,
    unit: str,
    package: str,
    licence: str,
) -> list[Field]:
    """Make a series (time, y, x) into fields, split by time: train, then validation, then held out.

    Args:
        values: The series.
        name: Of the series.
        blocks: Where validation and held-out begin.
        subject: As `Field`.
        unit: As `Field`; temperatures in degrees Celsius become kelvin.
        package: As `Field`.
        licence: As `Field`.
    """
    if unit.lower().startswith(("degc", "deg c", "deg_c", "degree_c", "celsius")):
        values, unit = values + np.float32(KELVIN), "K"
    fields = []
    for time, values_at in enumerate(values):
        split: Split = "train" if time < blocks[0] else "validation" if time < blocks[1] else "held-out"
        field = Field(
            name=f"{name}[{time}]",
            values=values_at[..., None].astype(np.float32),
            split=split,
            subject=subject,
            unit=unit,
            package=package,
            licence=licence,
        )
        fields.append(field)
    return fields
