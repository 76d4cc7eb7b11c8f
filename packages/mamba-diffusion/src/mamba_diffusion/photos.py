"""Debian's wallpaper photos: which files, whose, under which licence, in which split. No torch."""

from __future__ import annotations

from pathlib import Path

from .embedded import halve
from .sources import Field, Split, read_image

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
HALVED = 2  # hides the compression of the originals


def debian_photos(root: Path) -> list[Field]:
    """Read the photos of Debian's wallpaper packages that are installed under `root`, halved.

    Symbolic links are skipped: they are other names of the same photo.

    Raises:
        ValueError: None is installed.
    """
    fields = []
    for name, file, package, licence in DEBIAN_PHOTOS:
        path = root / file
        if not path.is_file() or path.is_symlink():
            continue
        split: Split = "held-out" if name in HELD_OUT else "validation" if name in VALIDATION else "train"
        pixels = halve(read_image(path), HALVED)
        fields.append(Field(name=name, values=pixels, split=split, subject="rgb", package=package, licence=licence))
    if not fields:
        packages = sorted({package for _, _, package, _ in DEBIAN_PHOTOS})
        raise ValueError(f"data: no Debian photo under {root}; install with: apt-get install {' '.join(packages)}")
    return fields
