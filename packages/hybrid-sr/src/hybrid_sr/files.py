"""Upscale files: which pictures are meant, how the results are named, and what happens when one of them is bad."""

from __future__ import annotations

import glob
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from .images import (
    MAX_MEGAPIXELS,
    SUFFIXES,
    Format,
    Picture,
    check_writable,
    format_of,
    picture_files,
    read_picture,
    write_picture,
)
from .progress import Progress

OutputFormat = Format | Literal["same"]
# (H, W, C) and a progress callback -> (s * H, s * W, C)
PictureUpscaler = Callable[[NDArray, Callable[[int, int], None]], NDArray]

_OTHER_SUFFIXES = frozenset({".gif", ".bmp", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".ppm", ".pdf", ".svg", ".exr"})


@dataclass(frozen=True)
class Job:
    """One picture and where its result goes."""

    source: Path
    target: Path


@dataclass
class Report:
    """What became of every picture.

    Attributes:
        done: Rows with `source`, `target`, `width`, `height` (of the result) and `seconds`.
        failed: Rows with `source` and `error`.
    """

    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if every picture was upscaled, 1 if some were, 2 if none was."""
        return 0 if not self.failed else 1 if self.done else 2

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"n": len(self.done), "n_failed": len(self.failed), "done": self.done, "failed": self.failed}


def plan(
    inputs: Sequence[str | Path], *, scale: int, out: str | Path | None = None, output_format: OutputFormat = "png"
) -> list[Job]:
    """Decide what is upscaled into what.

    A picture `photo.jpg` becomes `photo_x4.png`: beside it; or in `out`. Pictures of a folder keep their sub-folders,
    under `out` or a new folder `FOLDER_x4` beside it. Two pictures that would get one name keep their
    suffix in it (`photo_jpg_x4.png`). Results of the same run that already exist are not taken as inputs.

    Args:
        inputs: Pictures, folders, and patterns such as "scans/*.tif" or "scans/**/*.png".
        scale: For the names.
        out: Folder, or for a single picture a file with a picture's suffix.
        output_format: "same" keeps the format of every input.

    Raises:
        ValueError: An input does not exist, a pattern or folder matches nothing, or `out` cannot be meant.
    """
    out = None if out is None else Path(out)
    found: dict[Path, Path] = {}  # source -> folder of the result
    for item in inputs:
        for source, below in _expanded(item, out, scale):
            found.setdefault(source, below)
    if out is not None and out.suffix.lower() in _OTHER_SUFFIXES:
        format_of(out)  # refuses it
    if out is not None and out.suffix.lower() in SUFFIXES and not out.is_dir():
        return [Job(_single(found, inputs, out), out)]
    plain = {source: folder / _name(source, scale, output_format) for source, folder in found.items()}
    counts = Counter(plain.values())
    jobs = [
        Job(source, target if counts[target] == 1 else target.with_name(_name(source, scale, output_format, full=True)))
        for source, target in plain.items()
    ]
    results = {job.target for job in jobs}
    return [job for job in jobs if job.source not in results]


def upscale_files(
    upscaler: PictureUpscaler,
    jobs: Sequence[Job],
    *,
    scale: int,
    overwrite: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Upscale files one by one; what cannot be read, upscaled or written is named, skipped and counted.

    Args:
        upscaler: Upscales one picture, for example `upscale` with a model and options filled in.
        jobs: From `plan`.
        scale: Of the upscaler; results that a format cannot hold are refused before the work.
        overwrite: Replace existing results.
        max_megapixels: Refuse larger inputs.
        say: Told a line per finished picture; failures and progress go to stderr.
    """
    report = Report()
    for i, job in enumerate(jobs, 1):
        label = f"[{i}/{len(jobs)}] {job.source.name}" if len(jobs) > 1 else job.source.name
        started = time.monotonic()
        try:
            picture = _readable(job, scale, overwrite=overwrite, max_megapixels=max_megapixels)
            with Progress(label) as progress:
                result = Picture(upscaler(picture.pixels, progress), picture.icc_profile)
            write_picture(result, job.target, overwrite=overwrite)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:  # RuntimeError: PyTorch out of CPU memory
            message = _message(error, job)
            report.failed.append({"source": str(job.source), "error": message})
            print(f"hybrid-sr upscale: skipped {message}", file=sys.stderr)
            continue
        seconds = round(time.monotonic() - started, 2)
        size = {"width": result.width, "height": result.height}
        report.done.append({"source": str(job.source), "target": str(job.target), **size, "seconds": seconds})
        if say is not None:
            say(f"{job.source} -> {job.target}  {result.width}x{result.height}, {seconds:.1f} s")
    return report


def _readable(job: Job, scale: int, *, overwrite: bool, max_megapixels: float) -> Picture:
    """Read the input once it is clear that the result can be written."""
    if job.target.exists() and job.source.exists() and job.target.samefile(job.source):
        raise ValueError(f"{job.source}: would be replaced by its own result; choose another --out")
    picture = read_picture(job.source, max_megapixels=max_megapixels)
    size = (picture.height * scale, picture.width * scale, picture.pixels.shape[2])
    check_writable(job.target, size, overwrite=overwrite)
    return picture


def _message(error: Exception, job: Job) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if str(job.source) in text or str(job.target) in text else f"{job.source}: {text}"


def _expanded(item: str | Path, out: Path | None, scale: int) -> list[tuple[Path, Path]]:
    """Return the pictures that one argument means, each with the folder of its result."""
    path = Path(item)
    if path.is_dir():
        named = path if path.name not in ("", "..") else path.resolve()
        root = out or named.with_name(f"{named.name}_x{scale}")
        inside = [source for source in picture_files(path) if out is None or not _is_below(source, out)]
        return [(source, root / source.relative_to(path).parent) for source in inside]
    if path.exists() or not glob.has_magic(str(item)):
        return [(path, out or path.parent)]  # a missing file is reported with the others, as a failure
    matches = [Path(match) for match in sorted(glob.glob(str(item), recursive=True)) if Path(match).is_file()]
    if not matches:
        raise ValueError(f"{item}: matches no file; check the pattern, or quote it so that the shell leaves it alone")
    return [(match, out or match.parent) for match in matches]


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _single(found: dict[Path, Path], inputs: Sequence[str | Path], out: Path) -> Path:
    if len(found) != 1 or Path(inputs[0]).is_dir():
        raise ValueError(f"--out {out}: is a file name, but {len(found)} pictures are meant; give a folder")
    return next(iter(found))


def _name(source: Path, scale: int, output_format: OutputFormat, *, full: bool = False) -> str:
    suffix = f".{output_format}" if output_format != "same" else source.suffix.lower()
    stem = source.name.replace(".", "_") if full else source.stem
    return f"{stem}_x{scale}{suffix if suffix in SUFFIXES else '.png'}"
