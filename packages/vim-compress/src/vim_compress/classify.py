"""Say what is in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .checks import refuse
from .pictures import read_image
from .preprocess import prepare, to_float

if TYPE_CHECKING:
    from .models import Network


@dataclass(frozen=True)
class Guess:
    """One class and how sure the network is, in [0, 1]."""

    label: str
    probability: float


def read_classes(file: Path) -> tuple[str, ...]:
    """Read a text file with one class a line.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes: {file} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def class_names(model: Network, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of a network's classes.

    Args:
        model: The network; its own names count.
        given: Names for a network without.

    Raises:
        ValueError: The number of names is not that of the head's outputs, or nobody knows any.
    """
    names = tuple(given) or model.config.labels
    if names and len(names) != model.num_classes:
        remedy = "give the list that these weights were trained with"
        refuse("classify", "classes", f"{model.num_classes} names, one for each output", len(names), remedy)
    return names or tuple(f"class {i}" for i in range(model.num_classes))


def classify(model: Network, picture: Path, names: Sequence[str], best: int = 3) -> list[Guess]:
    """Return the most probable classes of a picture file, the best first.

    Raises:
        ValueError: The file is no picture, or the network has no head.
    """
    if not model.num_classes:
        refuse("classify", "weights", "of a network with a head", "one without", "train it, or reset_classifier")
    try:
        pixels = prepare(read_image(picture), model.config)
    except OSError as error:
        raise ValueError(f"{picture}: cannot be read as a picture: {error}") from error
    device = next(model.parameters()).device
    with torch.inference_mode():
        x = to_float(torch.from_numpy(pixels[None]), model.config, device)
        found = model(x).float().softmax(-1)[0].topk(min(best, len(names)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [Guess(str(names[int(i)]), probability) for i, probability in pairs]
