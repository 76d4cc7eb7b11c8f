"""Labelled pictures: in memory as uint8, or as files that are read when they are needed.

H and W are a picture's height and width; arrays are (H, W, 3) RGB or (H, W) grey.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
IN_MEMORY = 20_000  # files; more are read when they are needed
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Pictures:
    """Pictures with classes.

    Attributes:
        images: Arrays, or files.
        labels: Number of each picture's class, (N,).
        names: What a message calls each picture.
        classes: Names of the classes.
        domain: What they are pictures of, in words.
    """

    images: Sequence[NDArray[np.uint8] | Path] | NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str]
    classes: tuple[str, ...]
    domain: str

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def image(self, number: int) -> Image.Image:
        """Return a picture.

        Raises:
            OSError: Its file is missing, truncated or no image.
        """
        source = self.images[number]
        return read_image(source) if isinstance(source, Path) else Image.fromarray(source)

    def part(self, chosen: NDArray[np.bool_]) -> Pictures:
        """Return some of them."""
        numbers: list[int] = np.flatnonzero(chosen).tolist()
        images = self.images[chosen] if isinstance(self.images, np.ndarray) else [self.images[i] for i in numbers]
        names = [self.names[i] for i in numbers]
        return Pictures(images, self.labels[chosen], names, self.classes, self.domain)


def read_image(path: Path) -> Image.Image:
    """Read a picture file as RGB; what is transparent becomes white.

    Raises:
        OSError: The file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as file:
            return flatten(file)
    except SyntaxError as error:  # Pillow reports some broken PNG files so
        raise OSError(str(error)) from error


def flatten(image: Image.Image) -> Image.Image:
    """Return a picture as RGB on white."""
    if image.mode == "RGB":
        return image.copy() if image.fp is None else image.convert("RGB")  # pyright: ignore[reportAttributeAccessIssue]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*WHITE, 255))
        ground.alpha_composite(image)
        image = ground
    return image.convert("RGB")


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; hidden ones are left out."""
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def list_folder(folder: Path, classes: Sequence[str] | None = None) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """List the pictures of a folder of classes.

    Args:
        folder: Holds one folder for each class, or pictures and a table as Tiny-ImageNet's val/ does.
        classes: The classes that are expected; None takes what is there.

    Returns:
        Files, the number of each one's class, and the names of the classes.

    Raises:
        ValueError: No folder, no classes, no pictures, or other classes.
    """
    if not folder.is_dir():
        raise ValueError(f"data: {folder} is not a folder; give a folder of classes, a packed file, or a data set")
    wanted = ", ".join(sorted(IMAGE_SUFFIXES))
    if classes is not None and (folder / ANNOTATIONS).is_file():
        return *_annotated(folder, classes), tuple(classes)
    found = class_folders(folder)
    if not found:
        raise ValueError(f"data: {folder} holds no folder for each class; looked for {wanted} in such folders")
    names = tuple(f.name for f in found)
    if classes is not None and not set(names) <= set(classes):
        unknown = sorted(set(names) - set(classes))
        raise ValueError(f"data: {folder} has classes that training does not: {', '.join(unknown[:5])}")
    numbers = {name: i for i, name in enumerate(names if classes is None else classes)}
    files, labels = [], []
    for part in found:
        inside = sorted(f for f in part.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
        files += inside
        labels += [numbers[part.name]] * len(inside)
    if not files:
        raise ValueError(f"data: {folder} holds no image; looked for {wanted} in the folders of its classes")
    return files, labels, names if classes is None else tuple(classes)


def _annotated(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """List the pictures in folder/images by a table whose lines begin with file name, tab, class."""
    table = folder / ANNOTATIONS
    files, labels = [], []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes:
            raise ValueError(f"data: {table}, line {number}: class {label!r} is none of training's; mend or remove it")
        files.append(folder / "images" / name)
        labels.append(classes.index(label))
    return files, labels


def load_folder(folder: Path, side: int, *, classes: Sequence[str] | None = None, verbose: bool = True) -> Pictures:
    """Read a folder of classes; up to 20,000 pictures are kept in memory, more stay files.

    Args:
        folder: Holds one folder for each class.
        side: Pictures in memory are reduced until their shorter side is twice this, in pixels.
        classes: The classes that are expected; None takes what is there.
        verbose: Say on stderr what was skipped.

    Raises:
        ValueError: As `list_folder`, or no picture can be read.
    """
    files, labels, names = list_folder(folder, classes)
    titles = [str(f.relative_to(folder)) for f in files]
    if len(files) > IN_MEMORY:
        return Pictures(files, np.array(labels, np.int64), titles, names, f"pictures of {folder.name}")

    def attempt(path: Path) -> NDArray[np.uint8] | str:
        try:
            return np.asarray(reduced(read_image(path), 2 * side))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return f"skipped {path}: {error}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, files))
    kept = [i for i, result in enumerate(results) if not isinstance(result, str)]
    skipped = [result for result in results if isinstance(result, str)]
    if verbose and skipped:
        print("\n".join([*skipped, f"{len(skipped)} of {len(files)} images skipped"]), file=sys.stderr)
    if not kept:
        raise ValueError(f"data: none of {len(files)} images can be used; the first: {skipped[0]}")
    images = [result for result in results if not isinstance(result, str)]
    labels_kept = np.array(labels, np.int64)[kept]
    return Pictures(images, labels_kept, [titles[i] for i in kept], names, f"pictures of {folder.name}")


def reduced(image: Image.Image, shorter: int) -> Image.Image:
    """Reduce a picture, in place, until its shorter side is `shorter` pixels; smaller ones stay as they are."""
    width, height = image.size
    factor = min(1.0, shorter / min(width, height))
    image.thumbnail((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.LANCZOS)
    return image
