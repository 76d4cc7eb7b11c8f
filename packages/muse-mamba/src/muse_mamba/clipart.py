"""Debian's openclipart: drawings with titles and keywords, which the judge of pictures and captions learns from.

No model that is judged is trained on them.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from .sources import Picture, split_of

CLIPART = "usr/share/openclipart"
# Their titles name files, series or nothing that can be seen.
WITHOUT_TITLES = ("shapes/", "buttons/", "icons/", "flags/", "cards/", "patterns/", "map_symbols/")
SAYS_NOTHING = frozenset({"hash", "unsorted", "signs and symbols", "sign", "symbol", "clipart", "icons", "png", "svg"})
SERIES = ("etiquette", "aiga", "various clip")
MOST_BYTES, MOST_SIDE = 600_000, 3_000  # of a PNG
MOST_KEYWORDS = 4


def openclipart(root: Path) -> list[Picture]:
    """List the drawings of Debian's openclipart-png whose vector files (openclipart-svg) have a title.

    Raises:
        ValueError: They are not there.
    """
    folder = root / CLIPART
    found: list[Picture] = []
    for drawing in sorted((folder / "svg").rglob("*.svg")):
        relative = drawing.relative_to(folder / "svg")
        file = folder / "png" / relative.with_suffix(".png")
        if any(part in str(relative) for part in WITHOUT_TITLES) or drawing.is_symlink() or file.is_symlink():
            continue
        if not file.is_file() or file.stat().st_size > MOST_BYTES or max(_size(file)) > MOST_SIDE:
            continue
        captions = captions_in(drawing.read_text(encoding="utf-8", errors="replace"))
        if captions:
            found.append(
                Picture(
                    name=str(relative.with_suffix("")),
                    captions=captions,
                    concept=captions[0],
                    split=split_of(captions[0]),
                    package="openclipart-png",
                    licence="public domain",
                    path=file,
                )
            )
    if not found:
        wanted = "apt-get install openclipart-png openclipart-svg"
        raise ValueError(f"data: no drawings in {folder}; install them with: {wanted}")
    return found


def captions_in(svg: str) -> tuple[str, ...]:
    """Return the title of a vector file, and its keywords as one caption; what says nothing is left out."""
    titles = re.findall(r"<dc:title>(.*?)</dc:title>", svg, re.DOTALL)
    people = {_plain(title) for title in titles[1:]}  # of creator, publisher, rights
    title = _plain(re.sub(r"(?i)clip ?art by [^-]*-", " ", titles[0])) if titles else ""
    bag = re.search(r"<dc:subject>(.*?)</dc:subject>", svg, re.DOTALL)
    words = [_plain(word) for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", bag.group(1), re.DOTALL)] if bag else []
    keywords = [word for word in dict.fromkeys(words) if word and word not in people and word not in SAYS_NOTHING]
    found = [title] if len(title) > 2 and not any(name in title for name in SERIES) else []
    return tuple(found + ([", ".join(keywords[:MOST_KEYWORDS])] if keywords else []))


def _plain(text: str) -> str:
    """Return words in lower case, without numbers and punctuation."""
    spaced = re.sub(r"<[^>]*>|[_\-/()\[\],.]+", " ", html.unescape(text)).lower()
    return " ".join(word for word in spaced.split() if not any(c.isdigit() for c in word))


def _size(file: Path) -> tuple[int, int]:
    """Return width and height of a PNG from its first bytes."""
    with file.open("rb") as stream:
        head = stream.read(24)
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
