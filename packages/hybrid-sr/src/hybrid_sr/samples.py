"""Photos that installable packages carry: for `upscale --sample` and `evaluate`. Never for training.

The packages are looked up without being imported. Importing this module does not import torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .images import read_picture

INSTALL = "pip install 'hybrid-sr[data]'"


@dataclass(frozen=True)
class Sample:
    """One photo inside an installed package.

    Attributes:
        name: For the command line.
        set_name: "scikit-image", "scikit-learn" or "foolbox".
        package: Import name of the package that carries it.
        file: Path inside the package.
        credit: Licence and photographer or publisher.
    """

    name: str
    set_name: str
    package: str
    file: str
    credit: str

    def path(self) -> Path:
        """Return where the file is.

        Raises:
            ValueError: The package is not installed, or its release has no such file.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"sample {self.name}: the package {self.set_name} is not installed; {INSTALL}")
        path = Path(next(iter(spec.submodule_search_locations))) / self.file
        if not path.is_file():
            raise ValueError(f"sample {self.name}: this release of {self.set_name} has no {self.file}; {INSTALL}")
        return path

    def read(self) -> NDArray[np.uint8]:
        """Return the photo, (H, W, 3) RGB uint8.

        Raises:
            ValueError: As `path`.
        """
        return read_picture(self.path()).rgb8()


def _scikit_image(name: str, suffix: str, credit: str) -> Sample:
    return Sample(name, "scikit-image", "skimage", f"data/{name}.{suffix}", credit)


_NASA = "public domain, NASA"
_MIDDLEBURY = "CC0, Middlebury 2014 stereo benchmark"
_IMAGENET_CLASSES = (243, 559, 438, 990, 949, 853, 609, 609, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317, 305)
_IMAGENET = [f"{i:02}_{label}" for i, label in enumerate(_IMAGENET_CLASSES)]

SAMPLES: tuple[Sample, ...] = (
    _scikit_image("astronaut", "png", _NASA),
    _scikit_image("chelsea", "png", "CC0, Stefan van der Walt"),
    _scikit_image("coffee", "png", "CC0, Rachel Michetti"),
    _scikit_image("hubble_deep_field", "jpg", _NASA),
    _scikit_image("motorcycle_left", "png", _MIDDLEBURY),
    _scikit_image("motorcycle_right", "png", _MIDDLEBURY),
    _scikit_image("retina", "jpg", "CC0, Mikael Haggstrom"),
    _scikit_image("rocket", "jpg", "public domain, SpaceX"),
    Sample("china", "scikit-learn", "sklearn", "datasets/images/china.jpg", "CC-BY-2.0, danielbuechele"),
    Sample("flower", "scikit-learn", "sklearn", "datasets/images/flower.jpg", "CC-BY-2.0, vultilion"),
    *(
        Sample(f"imagenet_{x}", "foolbox", "foolbox", f"data/imagenet_{x}.jpg", "ImageNet, research terms")
        for x in _IMAGENET
    ),
)
SETS = tuple(dict.fromkeys(sample.set_name for sample in SAMPLES))


def find_sample(name: str) -> Sample:
    """Return a sample by its name.

    Raises:
        ValueError: No such name; the message lists those that exist.
    """
    by_name = {sample.name: sample for sample in SAMPLES}
    if name not in by_name:
        close = get_close_matches(name, by_name, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        known = ", ".join(n for n in by_name if not n.startswith("imagenet"))
        raise ValueError(f"sample: unknown name {name!r}; {hint}known are {known}, and imagenet_00_243 to _19_305")
    return by_name[name]


def sample_set(name: str | None = None) -> list[Sample]:
    """Return the samples of one set, or of all sets for None, in a fixed order.

    Raises:
        ValueError: No such set.
    """
    if name is not None and name not in SETS:
        raise ValueError(f"set: unknown name {name!r}; known are {', '.join(SETS)}")
    return [sample for sample in SAMPLES if name in (None, sample.set_name)]
