"""Crops from sets that do not fit on the disk: parquet files, WebDataset shards, or any data set by its name.

The library `datasets` reads them and is imported only here. Image number n of a run is row n of an endless stream
(shuffled with the seed, again in every epoch), whatever the number of processes; one crop is taken of each. To resume,
the rows that were used are passed over without being decoded. One process reads the rows; `workers` threads in it
decode pictures and cut crops side by side. B crops, p side of a crop, s scale.
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from .data import AHEAD, PLACE, Steps, flip
from .photos import MARGIN
from .recipes import TrainConfig
from .resize import imresize

SHUFFLE_BUFFER = 1_000  # rows
FIRST_ROWS = 100  # one of them must be an image
ARROW_THAT_HANGS = 24  # major version; up to it threads may hang when they are closed, for which `datasets` waits
SHARDS = {".parquet": "parquet", ".tar": "webdataset"}


Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # low and high resolution, channels first


class Stream(IterableDataset[dict[str, Tensor]]):
    """Micro-batches of one process, in order, uint8: {"lr": (B, 3, p, p), "hr": (B, 3, s * p, s * p)}.

    A row that is no image, or smaller than a crop, is named on stderr and counted; the first good image of the stream
    takes its place.

    Args:
        cfg: The run; its `data` is a folder of .parquet or .tar files, one such file, or a data set's name.
        rank: Of the process.

    Attributes:
        start: Step to begin with.
        skipped: Rows that could not be used.

    Raises:
        ValueError: There is no such thing, it holds no images, or `datasets` is not installed.
    """

    def __init__(self, cfg: TrainConfig, rank: int) -> None:
        assert cfg.data is not None
        self.cfg, self.rank = cfg, rank
        self.start = self.skipped = 0
        self.column, self.rows = open_rows(cfg.data, cfg.seed)
        self._spare: NDArray[np.uint8] | None = None

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return what the crops come from."""
        return [f"row {number} of {self.cfg.data}" for number in numbers]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of the process from step `start` on."""
        values = self._values()
        position = 0
        ahead: deque[tuple[list[int], list[Future[Crop | str]]]] = deque()
        pool = ThreadPoolExecutor(max(1, self.cfg.workers))
        try:
            for numbers in Steps(self.cfg, self.start, self.rank):
                futures = []
                for number in numbers:
                    value = next(islice(values, number - position, None))
                    position = number + 1
                    futures.append(pool.submit(self._crop, value, number))
                ahead.append((numbers, futures))
                if len(ahead) > AHEAD:
                    yield self._batch(*ahead.popleft())
            while ahead:
                yield self._batch(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, numbers: list[int], futures: list[Future[Crop | str]]) -> dict[str, Tensor]:
        """Put crops together in their order; the first good image of the stream takes the place of a bad one."""
        s, p = self.cfg.scale, self.cfg.patch
        lr = np.empty((len(numbers), 3, p, p), np.uint8)
        hr = np.empty((len(numbers), 3, s * p, s * p), np.uint8)
        for place, (number, future) in enumerate(zip(numbers, futures, strict=True)):
            crop = future.result()
            if isinstance(crop, str):
                self.skipped += 1
                print(f"skipped row {number} of {self.cfg.data}: {crop} ({self.skipped} so far)", file=sys.stderr)
                crop = random_crop(self.spare(), s, p, np.random.default_rng((self.cfg.seed, PLACE, number)))
            lr[place], hr[place] = crop
        return {"lr": torch.from_numpy(lr), "hr": torch.from_numpy(hr)}

    def _crop(self, value: dict[str, Any], number: int) -> Crop | str:
        """Return the crop of an undecoded image, or why there is none."""
        image = self._decode(value)
        if isinstance(image, str):
            return image
        rng = np.random.default_rng((self.cfg.seed, PLACE, number))
        return random_crop(image, self.cfg.scale, self.cfg.patch, rng)

    def spare(self) -> NDArray[np.uint8]:
        """Return the first good image of the stream.

        Raises:
            ValueError: None of the first hundred rows is one.
        """
        if self._spare is None:
            images = (self._decode(value) for value in islice(self._values(), FIRST_ROWS))
            self._spare = next((image for image in images if not isinstance(image, str)), None)
        if self._spare is None:
            raise ValueError(f"data: none of the first {FIRST_ROWS} rows of {self.cfg.data} can be used; see above")
        return self._spare

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
        least = self.cfg.patch * self.cfg.scale
        try:
            with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
                if min(file.size) < least:
                    return f"{file.width}x{file.height} pixels, smaller than a crop of {least}"
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
            f"data: {data} is no folder with images, and reading it as a data set needs a library; "
            "pip install 'hybrid-sr[streaming]'"
        ) from error
    if settings.PYARROW_VERSION.major > ARROW_THAT_HANGS:
        settings.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else five seconds at the end of every epoch
    broken = datasets.exceptions.DatasetsError  # pyright: ignore[reportAttributeAccessIssue]  # its __init__ imports it
    try:
        rows = datasets.load_dataset(*_request(data), split="train", streaming=True)
        features = rows.features or rows._resolve_features().features  # the first rows tell
    except (OSError, ValueError, broken) as error:
        raise ValueError(f"data: {data} is neither a folder of images nor a readable data set: {error}") from error
    columns = [name for name, feature in (features or {}).items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"data: {data} has no image column, only {', '.join(features or {})}; give a set of images")
    rows = rows.select_columns(columns[0]).cast_column(columns[0], datasets.Image(decode=False))
    return columns[0], rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)


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


def random_crop(
    image: NDArray[np.uint8], scale: int, patch: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut (3, p, p) and (3, s * p, s * p) from a picture of which no low-resolution version exists yet.

    Only the crop and a margin are resized; the pixels are those of the whole picture's low-resolution version.
    """
    height, width = image.shape[0] // scale, image.shape[1] // scale
    top, left = int(rng.integers(height - patch + 1)), int(rng.integers(width - patch + 1))
    flips = rng.random(3) < 0.5
    above, before = max(0, top - MARGIN), max(0, left - MARGIN)
    rows = slice(above * scale, min(height, top + patch + MARGIN) * scale)
    columns = slice(before * scale, min(width, left + patch + MARGIN) * scale)
    small = imresize(image[rows, columns], 1 / scale, dtype=np.float32)
    lr = small[top - above : top - above + patch, left - before : left - before + patch]
    hr = image[scale * top : scale * (top + patch), scale * left : scale * (left + patch)]
    return flip(lr, flips), flip(hr, flips)


def _request(data: str) -> tuple[Any, ...]:
    """Return the arguments of `load_dataset`: a reader and its files, or the name of a data set."""
    files = shards(data)
    if not files:
        return (data,)
    return SHARDS[files[0].suffix], None, None, [str(file) for file in files]
