"""Files that mean harm or are merely broken, and what each package's commands should say to them."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docs_given
from soak_process import RUN, Ended

MOST_BYTES = 3 * 2**30  # of resident memory, the libraries included
STRANGE = "a folder with sp\u00e4ces \u2713 \u753b\u50cf"


class Attack:
    """Unpickling this makes a file, which a test can see."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        """Run when it is unpickled."""
        return (os.system, (f"touch '{self.mark}'",))


@dataclass(frozen=True)
class Hostile:
    """A command with a file that it should refuse, or survive.

    Attributes:
        name: What it is.
        package: Whose command.
        argv: Its arguments.
        code: Exit code that it should end with; None takes 0 or 2.
        said: What its output should contain.
        mark: A file that must not exist afterwards.
    """

    name: str
    package: str
    argv: list[str]
    code: int | None = 2
    said: str = ""
    mark: Path | None = None

    def program(self) -> Callable[[list[str]], Any]:
        """Return the function of the console script."""
        return importlib.import_module(f"{self.package.replace('-', '_')}.cli").main

    def problem(self, ended: Ended) -> str:
        """Return what was not as it should be, or an empty text."""
        last = ended.text.strip().splitlines()[-1][:200] if ended.text.strip() else "nothing was said"
        if self.mark is not None and self.mark.exists():
            return "the code in the file was run"
        if "Traceback" in ended.text:
            return f"a traceback: {last}"
        if ended.code not in ((0, 2) if self.code is None else (self.code,)):
            return f"exit code {ended.code}: {last}"
        if self.said not in ended.text:
            return f"did not say {self.said}: {last}"
        return f"{ended.peak_bytes / 2**30:.1f} GiB of memory" if ended.peak_bytes > MOST_BYTES else ""

    def seen(self, ended: Ended) -> str:
        """Return what it said."""
        last = ended.text.strip().splitlines()[-1] if ended.text.strip() else f"exit code {ended.code}"
        return last.replace(str(Path.cwd()), "").replace("\n", " ")[:120]


def cases(folder: Path, rows: int) -> Iterator[Hostile]:
    """Write the files and yield the commands."""
    yield from pictures(folder)
    yield from checkpoints(folder)
    yield from tables(folder, rows)
    yield from captions(folder)
    yield from strange_paths(folder)


def pictures(folder: Path) -> Iterator[Hostile]:
    """Bombs, broken and mislabelled pictures."""
    good = Path("picture.png").read_bytes()
    files = {
        "a decompression bomb (60000 x 60000 PNG of 450 kB)": ("bomb.png", png_bomb(60_000)),
        "a truncated PNG": ("cut.png", good[: len(good) // 2]),
        "a JPEG named .png": ("mislabelled.png", Path("photo.jpg").read_bytes()),
        "text named .png": ("text.png", b"this is no picture\n" * 50),
        "an empty file named .png": ("empty.png", b""),
    }
    for number, (name, (file, data)) in enumerate(files.items()):
        (folder / file).write_bytes(data)
        survives = None if "JPEG" in name else 2
        yield Hostile(name, "hybrid-sr", ["upscale", file, "--scale", "2", "--overwrite"], survives, file)
        beside = folder / f"beside-{number}"
        docs_given.photos(beside)
        (beside / file).write_bytes(data)
        for package, options in (("hybrid-sr", "--patch 8 --min_contrast 0"), ("mamba-diffusion", "")):
            words = (
                docs_given.TRAIN[package, "train"].split()[0],
                *RUN.split(),
                *docs_given.STEP.split(),
                *options.split(),
            )
            argv = ["train", *words, "--data", str(beside), "--out", f"out-{package}-{number}", "--steps", "2"]
            yield Hostile(f"{name}, among training pictures", package, argv, 0, "" if "JPEG" in name else file)


def checkpoints(folder: Path) -> Iterator[Hostile]:
    """Pickled code in a checkpoint, garbage with a checkpoint's name."""
    for suffix, name in ((".pth", "code in a pickled checkpoint"), (".safetensors", "code named .safetensors")):
        for package, argv in (
            ("hybrid-sr", ["upscale", "picture.png", "--scale", "2", "--overwrite", "--weights"]),
            ("mamba-diffusion", ["reconstruct", "sensors.csv", "--weights"]),
            ("vim-compress", ["classify", "picture.png", "--preset", "vim_tiny_patch16_224", "--weights"]),
            ("muse-mamba", ["generate", "a wave", "--tokenizer", "given/captioned/tokenizer", "--model"]),
        ):
            mark, file = folder / f"ran-{package}{suffix}", folder / f"evil-{package}{suffix}"
            file.write_bytes(evil(mark, zipped=suffix == ".pth"))
            yield Hostile(name, package, [*argv, str(file)], 2, "", mark)


def evil(mark: Path, *, zipped: bool) -> bytes:
    """Return a file in torch's format, or a bare pickle, that makes `mark` when it is unpickled."""
    code = pickle.dumps({"params": Attack(mark)}, protocol=2)
    if not zipped:
        return code
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return target.getvalue()


def tables(folder: Path, rows: int) -> Iterator[Hostile]:
    """Measurements that are too many, not finite, no numbers, or a bomb of their own."""
    run = [*docs_given.TRAIN["mamba-diffusion", "train"].split(), *RUN.split(), "--out", "field-run", "--stop_at", "1"]
    yield Hostile("(a field model to ask)", "mamba-diffusion", ["train", *run], 0)
    ask = ["--weights", "field-run", "--samples", "1", "--steps", "1", "--sampler", "euler", "--grid", "8x8"]
    ask += ["--overwrite", "--out", "field"]
    head = "lon,lat,red,green,blue\n"
    texts = {
        "a header alone": (head, "header.csv"),
        "a value that is nan": (f"{head}1,2,0.1,nan,0.3\n2,3,1,1,1\n", "nan.csv"),
        "words for numbers": (f"{head}1,2,warm,0.2,0.3\n", "words.csv"),
        "a row that is short": (f"{head}1,2,0.1,0.2,0.3\n1,3,0.1\n", "short.csv"),
        "NUL bytes in a table": (f"{head}1,2,0.1,0.2,0.3\n1,\0,0.1,0.2,0.3\n", "nul.csv"),
    }
    for name, (text, file) in texts.items():
        (folder / file).write_text(text)
        yield Hostile(name, "mamba-diffusion", ["reconstruct", file, *ask], 2, "points" if "alone" in name else "")
    large = folder / "large.csv"
    line = "".join(f"{i % 400 / 10:.1f},{40 + i % 97 / 50:.2f},0.1,0.2,0.3\n" for i in range(10_000))
    with large.open("w") as target:
        target.write(head)
        for _ in range(rows // 10_000):
            target.write(line)
    yield Hostile(f"a table of {rows:,} rows", "mamba-diffusion", ["reconstruct", "large.csv", *ask], None)
    large.unlink()
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        shape = "(2000000000, 2)"
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        archive.writestr("coords.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        archive.writestr("values.npy", b"")
    yield Hostile("an NPZ that claims 32 GB", "mamba-diffusion", ["reconstruct", "bomb.npz", *ask], 2)


def captions(folder: Path) -> Iterator[Hostile]:
    """Control characters, escapes for the terminal, a very long line, right-to-left marks."""
    data = folder / "captions"
    docs_given.photos(data)
    texts = ["red \x1b[31m apple\x00 \x07\u202e elppa", "a" * 100_000]
    rows = [{"file_name": f"photo{number}.png", "text": text} for number, text in enumerate(texts)]
    (data / "metadata.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    yield Hostile("captions with control characters", "muse-mamba",
                  ["encode", "--data", "captions", "--out", "encoded", "--size", "16"], None)  # fmt: skip
    (data / "metadata.jsonl").write_text(
        '{"file_name": "photo0.png", "text": 7}\n{"file_name": "../../x.png"}\nno json\n'
    )
    yield Hostile("captions that are no text", "muse-mamba",
                  ["encode", "--data", "captions", "--out", "encoded-2", "--size", "16"], 2)  # fmt: skip


def strange_paths(folder: Path) -> Iterator[Hostile]:
    """Spaces and letters of other scripts in every path."""
    home = folder / STRANGE
    home.mkdir()
    for (package, verb), words in docs_given.TRAIN.items():
        argv = [*words.split(), *RUN.split(), "--stop_at", "1", "--out", f"{STRANGE}/{package} {verb}"]
        place = argv.index("--data") + 1
        target = home / f"data {package} {verb}"
        os.symlink(Path(argv[place]).resolve(), target)
        argv[place] = str(target)
        yield Hostile("a path with spaces and unicode", package, [verb, *argv], 0)
    (home / "ein Bild \u00e9.png").write_bytes(Path("picture.png").read_bytes())
    yield Hostile("a path with spaces and unicode", "hybrid-sr",
                  ["upscale", f"{STRANGE}/ein Bild \u00e9.png", "--scale", "2"], 0)  # fmt: skip


def png_bomb(side: int) -> bytes:
    """Return a one-bit PNG of side x side black pixels: 450 kB that become gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    line = bytes(1 + side // 8)
    body = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def many_files(sources: Path, folder: Path, count: int, different: int) -> None:
    """Fill a folder with `count` names of small pictures, hard links to a few files."""
    sources.mkdir(parents=True)
    folder.mkdir(parents=True)
    for number in range(different):
        docs_given.picture(number).save(sources / f"{number}.png")
    for number in range(count):
        os.link(sources / f"{number % different}.png", folder / f"{number:07d}.png")
