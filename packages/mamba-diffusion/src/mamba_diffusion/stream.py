"""Squares of pictures from sets that do not fit on the disk: WebDataset shards, parquet, or any data set by its name.

The library `datasets` reads them and is imported only here. Field number n of a run is cut from row n of an endless
stream (shuffled with the seed, again in every epoch), whatever the number of processes. To resume, the rows that were
used are passed over without being decoded.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset

from .data import PLACE, Batch, Steps, as_float, cell_centres, collect, flip, moments_of, point_row, pyramid, shape_at
from .process import Moments
from .recipes import TrainConfig
from .sources import Field

SHUFFLE_BUFFER = 1_000  # rows
FIRST_ROWS = 64  # whose mean and deviation stand for those of the whole set
ARROW_THAT_HANGS = 24  # major version; up to it threads may hang when they are closed, for which `datasets` waits
SHARDS = {".parquet": "parquet", ".tar": "webdataset"}


class Stream(IterableDataset[Batch]):
    """Micro-batches of one process, in order.

    A row that is no image, or smaller than a square, is named on stderr and counted; the first good image of the
    stream takes its place.

    Args:
        cfg: The run; its `data` is a folder of .tar or .parquet files, one such file, or a data set's name.

    Attributes:
        start: Step to begin with.
        rank: Of the process.
        skipped: Rows that could not be used.
        unit: Of the values: shares of the brightest have none.
        moments: Mean and deviation of every channel over the first rows.

    Raises:
        ValueError: There is no such thing, it holds no images, or `datasets` is not installed.
    """

    def __init__(self, cfg: TrainConfig) -> None:
        assert cfg.data is not None
        if (cfg.model.dims, cfg.model.channels) != (2, 3):
            found = f"{cfg.model.dims} axes and {cfg.model.channels} channels"
            raise ValueError(f"data: {cfg.data} is a stream of pictures, 2 axes and 3 channels, the model has {found}")
        self.cfg, self.unit = cfg, ""
        self.start = self.rank = self.skipped = 0
        self.column, self.rows = open_rows(cfg.data, cfg.seed)
        first = [self._decode(value) for value in islice(self._values(), FIRST_ROWS)]
        images = [image for image in first if not isinstance(image, str)]
        if not images:
            raise ValueError(f"data: none of the first {FIRST_ROWS} rows of {cfg.data} is an image of use")
        self.spare = images[0]
        self.moments: Moments = moments_of([Field(name="row", values=x) for x in images], 3)

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return what the fields come from."""
        return [f"row {number} of {self.cfg.data}" for number in numbers]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the micro-batches of the process from step `start` on."""
        values, position, cfg = self._values(), 0, self.cfg
        for numbers in Steps(cfg, self.start, self.rank):
            shape = shape_at(numbers[0] // cfg.global_batch, cfg)
            grid = cell_centres((shape.side,) * 2)
            rows = []
            for number in numbers:
                value = next(islice(values, number - position, None))
                position = number + 1
                rng = np.random.default_rng((cfg.seed, PLACE, number))
                part = self._cut(self._image(value, number), shape.side, rng)
                rows.append(point_row(part, rng, number, shape, grid, cfg))
            yield collect(rows, shape)

    def _image(self, value: dict[str, Any], number: int) -> NDArray[np.uint8]:
        image = self._decode(value)
        if isinstance(image, np.ndarray):
            return image
        self.skipped += 1
        print(f"skipped row {number} of {self.cfg.data}: {image} ({self.skipped} so far)", file=sys.stderr)
        return self.spare

    def _cut(self, image: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Cut a square out of one of the image's sizes, turned or mirrored."""
        sizes = [x for x in pyramid(image, self.cfg.levels) if min(x.shape[:2]) >= side]
        chosen = sizes[rng.integers(len(sizes))]
        top, left = (int(rng.integers(n - side + 1)) for n in chosen.shape[:2])
        return as_float(flip(chosen[top : top + side, left : left + side], rng.random(3) < 0.5))

    def _values(self) -> Iterator[dict[str, Any]]:
        """Yield undecoded images without end."""
        for epoch in count():
            self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                yield row[self.column]
            if empty:
                raise ValueError(f"data: {self.cfg.data} has no rows; give a data set with images")

    def _decode(self, value: dict[str, Any]) -> NDArray[np.uint8] | str:
        least = max(self.cfg.sides)
        try:
            with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
                if min(file.size) < least:
                    return f"{file.width}x{file.height} pixels, smaller than {least}"
                return np.asarray(file.convert("RGB"))
        except (OSError, SyntaxError, TypeError) as error:  # Pillow reports some broken PNG files by SyntaxError
            return str(error)


def open_rows(data: str, seed: int) -> tuple[str, Any]:
    """Return the name of the image column and the shuffled stream of rows with undecoded images.

    Raises:
        ValueError: As `Stream`.
    """
    try:
        import datasets
        from datasets import config as settings
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data: {data} is no folder of fields, and reading it as a data set needs a library; "
            "pip install 'mamba-diffusion[streaming]'"
        ) from error
    if settings.PYARROW_VERSION.major > ARROW_THAT_HANGS:
        settings.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else five seconds at the end of every epoch
    broken = datasets.exceptions.DatasetsError  # pyright: ignore[reportAttributeAccessIssue]  # its __init__ imports it
    try:
        rows = datasets.load_dataset(*_request(data), split="train", streaming=True)
        features = rows.features or rows._resolve_features().features  # the first rows tell
    except (OSError, ValueError, broken) as error:
        raise ValueError(f"data: {data} is neither a folder of fields nor a readable data set: {error}") from error
    columns = [name for name, feature in (features or {}).items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"data: {data} has no image column, only {', '.join(features or {})}; give a set of images")
    rows = rows.select_columns(columns[0]).cast_column(columns[0], datasets.Image(decode=False))
    return columns[0], rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


def _request(data: str) -> tuple[Any, ...]:
    """Return the arguments of `load_dataset`: a reader and its files, or the name of a data set."""
    path = Path(data)
    for suffix, reader in SHARDS.items():
        files = [path] if path.is_file() and path.suffix == suffix else sorted(path.rglob(f"*{suffix}"))
        if files:
            return reader, None, None, [str(file) for file in files]
    return (data,)
