"""Pictures from sets that do not fit on the disk: parquet files, WebDataset shards, or any data set by its name.

The library `datasets` reads them and is imported only here. Picture number n of a run is row n of an endless stream
(shuffled with the seed, again in every epoch), whatever the number of processes. To resume, the rows that were used
are passed over without being decoded.
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
from torch import Tensor
from torch.utils.data import IterableDataset

from .augment import Augment, kept_generators
from .data import PLACE, Steps, assemble, named
from .pictures import Pictures, flatten, reduced
from .recipes import TrainConfig

SHUFFLE_BUFFER = 1_000  # rows
FIRST_ROWS = 100  # one of them must be a picture
ARROW_THAT_HANGS = 24  # major version; up to it threads may hang when they are closed, for which `datasets` waits
SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
HELD_SPLITS = ("validation", "valid", "test")
MOST_HELD = 5_000  # pictures to validate on
LABELS = ("label", "labels", "fine_label", "cls", "class", "category")


class Stream(IterableDataset[dict[str, Tensor]]):
    """Micro-batches of one process, in order: {"image": (B, C, H, W) uint8, "target": (B, K) float32}.

    A row that is no picture is named on stderr and counted; the last good picture takes its place, with its class.

    Args:
        cfg: The run; its `data` is a folder of .parquet or .tar files, one such file, or a data set's name.
        rank: Of the process.

    Attributes:
        start: Step to begin with.
        skipped: Rows that could not be used.
        model: The network's configuration, with the classes of the data.

    Raises:
        ValueError: There is no such thing, it holds no pictures with classes, or `datasets` is not installed.
    """

    def __init__(self, cfg: TrainConfig, rank: int) -> None:
        assert cfg.data is not None
        self.cfg, self.rank = cfg, rank
        self.start = self.skipped = 0
        self.image, self.label, classes, rows = open_rows(cfg.data, "train")
        self.rows = rows.shuffle(seed=cfg.seed, buffer_size=SHUFFLE_BUFFER)
        self.model = named(cfg.model, classes, f"pictures of {cfg.data}")
        self.augment = Augment(cfg, self.model)
        self._spare: tuple[Image.Image, int] | None = None

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return what the pictures come from."""
        return [f"row {number} of {self.cfg.data}" for number in numbers]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of the process from step `start` on."""
        values = self._values()
        position = 0
        partners = bool(self.cfg.mixup or self.cfg.cutmix)
        for numbers in Steps(self.cfg, self.start, self.rank):
            found: dict[int, tuple[NDArray[np.uint8], int]] = {}
            wanted = sorted({n for m in numbers for n in (m & ~1, m | 1)}) if partners else numbers
            if wanted[0] < position:
                raise ValueError(
                    f"micro_batch: must be even, as neighbours of a stream are mixed, got {self.cfg.micro_batch}; "
                    "change it, or set mixup and cutmix to 0"
                )
            for number in wanted:
                value = next(islice(values, number - position, None))
                position = number + 1
                image, label = self._decode(value, number)
                rng = np.random.default_rng((self.cfg.seed, PLACE, number))
                with kept_generators():
                    found[number] = self.augment(image, rng), label
            yield assemble(numbers, found, self.cfg, self.model)

    def held_out(self) -> Pictures | None:
        """Read the first 5,000 pictures of the validation or test split; None if there is no such split.

        Raises:
            ValueError: There is one, and it cannot be read.
        """
        split = held_split(str(self.cfg.data))
        return None if split is None else read_rows(str(self.cfg.data), split, most=MOST_HELD)

    def _values(self) -> Iterator[dict[str, Any]]:
        """Yield undecoded rows without end."""
        for epoch in count():
            self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                yield row
            if empty:
                raise ValueError(f"data: {self.cfg.data} has no rows; give a data set with pictures")

    def _decode(self, row: dict[str, Any], number: int) -> tuple[Image.Image, int]:
        picture = _picture(row[self.image])
        if picture is not None:
            self._spare = picture, int(row[self.label])
            return self._spare
        self.skipped += 1
        print(f"skipped row {number} of {self.cfg.data}: no picture ({self.skipped} so far)", file=sys.stderr)
        if self._spare is None:
            for other in islice(self._values(), FIRST_ROWS):
                picture = _picture(other[self.image])
                if picture is not None:
                    self._spare = picture, int(other[self.label])
                    break
            else:
                raise ValueError(f"data: none of the first {FIRST_ROWS} rows of {self.cfg.data} is a picture")
        return self._spare


def _picture(value: dict[str, Any]) -> Image.Image | None:
    try:
        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as file:
            return flatten(file)
    except (OSError, SyntaxError, TypeError):  # Pillow reports some broken PNG files by SyntaxError
        return None


def read_rows(data: str, split: str, *, side: int | None = None, most: int | None = None) -> Pictures:
    """Read a split into memory; rows that are no picture are left out.

    Args:
        data: As for `open_rows`.
        split: Its name.
        side: Pictures are reduced until their shorter side is twice this, in pixels; None leaves them as they are.
        most: Read only so many rows, of "train" shuffled ones; None reads all.

    Raises:
        ValueError: As `open_rows`; or no row is a picture, or one has no class.
    """
    image, label, classes, rows = open_rows(data, split)
    if most is not None and split == "train":
        rows = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
    images, labels = [], []
    for row in islice(rows, most):
        picture = _picture(row[image])
        if picture is None:
            continue
        if not 0 <= int(row[label]) < len(classes):
            raise ValueError(
                f"data: {split} of {data} has rows without a class ({row[label]}); give a set with classes"
            )
        images.append(np.asarray(picture if side is None else reduced(picture, 2 * side)))
        labels.append(int(row[label]))
    if not images:
        raise ValueError(f"data: {split} of {data} holds no picture that can be read; give another set")
    names = [f"{split} {i}" for i in range(len(images))]
    return Pictures(images, np.array(labels, np.int64), names, classes, f"pictures of {data}")


def open_rows(data: str, split: str) -> tuple[str, str, tuple[str, ...], Any]:
    """Return the names of the columns with pictures and classes, the classes' names, and the rows, undecoded.

    Raises:
        ValueError: As `Stream`.
    """
    try:
        import datasets
        from datasets import config as settings
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data: {data} is no folder of classes, and reading it as a data set needs a library; "
            "pip install 'vim-compress[streaming]'"
        ) from error
    if settings.PYARROW_VERSION.major > ARROW_THAT_HANGS:
        settings.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else five seconds at the end of every epoch
    broken = datasets.exceptions.DatasetsError  # pyright: ignore[reportAttributeAccessIssue]  # its __init__ imports it
    try:
        rows: Any = datasets.load_dataset(*_request(data, split), streaming=True)
        features = rows.features or rows._resolve_features().features  # the first rows tell
    except (OSError, ValueError, broken) as error:
        raise ValueError(f"data: {data} is neither a folder of classes nor a readable data set: {error}") from error
    features = dict(features or {})
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name in LABELS if name in features]
    if not images or not (labels or plain):
        raise ValueError(
            f"data: {data} must have a column of pictures and one of classes, "
            f"got {', '.join(features)}; give such a set"
        )
    label = (labels or plain)[0]
    rows = rows.select_columns([images[0], label]).cast_column(images[0], datasets.Image(decode=False))
    if labels:
        return images[0], label, tuple(features[label].names), rows
    highest = max(int(row[label]) for row in rows)  # plain numbers do not say how many there are
    return images[0], label, tuple(f"class {i}" for i in range(highest + 1)), rows


def held_split(data: str) -> str | None:
    """Return the first of the held-out splits that `data` has, by its shards or by what a data set says of itself."""
    if Path(data).exists():
        return next((split for split in HELD_SPLITS if shards(data, split)), None)
    import datasets

    names = datasets.get_dataset_split_names(data)
    return next((split for split in HELD_SPLITS if split in names), None)


def shards(data: str, split: str) -> list[Path]:
    """Return the .parquet files, or else the .tar files, that `data` names or a folder holds; often none.

    Files whose names begin with a held-out split's belong to that split, the others to training.
    """
    begins = HELD_SPLITS if split == "train" else split
    path = Path(data)
    if path.suffix in SHARDS and path.is_file():
        return [path] if split == "train" else []
    for suffix in SHARDS:
        found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else []
        if found:
            return [f for f in found if f.name.startswith(begins) == (split != "train")]
    return []


def _request(data: str, split: str) -> tuple[Any, ...]:
    """Return the arguments of `load_dataset`: a reader and its files, or the name of a data set; and the split."""
    files = shards(data, split)
    if files:
        return SHARDS[files[0].suffix], None, None, [str(file) for file in files], "train"
    if Path(data).exists():
        raise ValueError(f"no shards of {split}")
    return data, None, None, None, split
