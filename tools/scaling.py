"""What training on many images costs: the formula of docs/scaling.md, and a calculator for other numbers.

    python tools/scaling.py --rate 900 --loader 60 --bytes 60e3 --images 1e9 --epochs 1 --gpus 64

Measured numbers come from docs/results/scaling.json; everything else is arithmetic that the page explains.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

EFFICIENCY = 0.95  # of several GPUs beside one: the trainers' contract, 1.9x on two
HOURS = 3600.0
IMAGES = (1e6, 1e9)
UNKNOWN = "not measured"


class Cost(NamedTuple):
    """Result of the formula: seconds, bytes on disk, GPU hours, money, loader cores per GPU."""

    seconds: float
    disk_bytes: float
    gpu_hours: float
    money: float
    cores: int


def cost(
    *, rate: float, loader: float, sample_bytes: float, images: float, epochs: float, gpus: int, price: float
) -> Cost:
    """Return what a training costs.

    Args:
        rate: Samples per second of one GPU that never waits.
        loader: Samples per second that one CPU core decodes and augments.
        sample_bytes: Of a stored sample.
        images: In the data set.
        epochs: Passes over it.
        gpus: Of the run.
        price: Of one GPU for an hour, in any currency.

    Raises:
        ValueError: A number is not positive.
    """
    for name, value in (("rate", rate), ("loader", loader), ("images", images), ("epochs", epochs), ("gpus", gpus)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    seconds = images * epochs / (rate * gpus * (EFFICIENCY if gpus > 1 else 1.0))
    hours = seconds * gpus / HOURS
    return Cost(seconds, images * sample_bytes, hours, hours * price, math.ceil(rate / loader))


def costs(found: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return the rows of the page's table: every trainer, a million and a billion images."""
    rows = []
    for row in found["rows"]:
        rate, loader, sample = (row[key] for key in ("samples_per_s", "loader_samples_per_s_per_core", "sample_bytes"))
        for images, gpus in zip(IMAGES, (found["gpus"]["million"], found["gpus"]["billion"]), strict=True):
            known = {"rate": rate, "loader": loader or rate, "sample_bytes": sample or 0, "epochs": row["epochs"]}
            result = cost(**known, images=images, gpus=gpus, price=found["price_per_gpu_hour"])
            measured = (row["package"], row["preset"], f"{rate:,.0f}", UNKNOWN if loader is None else f"{loader:,.0f}",
                        UNKNOWN if sample is None else f"{sample:,.0f}")  # fmt: skip
            disk = UNKNOWN if sample is None else size(result.disk_bytes)
            what = (f"{images:.0e} x {row['epochs']:g}", gpus, duration(result.seconds), disk)
            paid = (f"{result.gpu_hours:,.1f}", f"{result.money:,.0f} {found['currency']}")
            rows.append((*measured, *what, *paid, UNKNOWN if loader is None else result.cores))
    return rows


def duration(seconds: float) -> str:
    """Say a time in the unit that fits."""
    for unit, length in (("days", 86400.0), ("h", HOURS), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """Say a number of bytes in the unit that fits."""
    for unit, length in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if number >= length:
            return f"{number / length:.1f} {unit}"
    return f"{number / 1e6:.0f} MB"


def main() -> None:
    """Print the result for the numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True, help="samples per second of one GPU")
    parser.add_argument("--loader", type=float, required=True, help="samples per second that one CPU core prepares")
    parser.add_argument("--bytes", type=float, required=True, help="of a stored sample")
    parser.add_argument("--images", type=float, required=True)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--price", type=float, default=0.0, help="of a GPU for an hour")
    options = vars(parser.parse_args())
    options["sample_bytes"] = options.pop("bytes")
    result = cost(**options)
    print(f"{duration(result.seconds)}, {size(result.disk_bytes)} on disk, {result.gpu_hours:,.1f} GPU hours, ", end="")
    print(f"{result.money:,.0f} for the GPUs; {result.cores} loader cores per GPU")


if __name__ == "__main__":
    main()
