"""Options of the verbs that look into networks, export them and report on runs. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config import PRESETS

PartSide = int | Literal["full"]


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """Which networks are looked into, on what.

    Attributes:
        models: Comma-separated run model/ folders, weights files or names of shipped presets, compared side by side;
            the shipped weights if not given.
        scale: Upscaling factor of all of them.
        sample: A packaged photo instead of your own picture.
        input: The picture itself is what the networks see; else it is made small first.
        size: Side of the part of the original that is used, in its pixels, or "full".
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        out: Folder for the PNG and the JSON.
        overwrite: Replace existing files.
        json: Print JSON.
    """

    models: str | None = None
    scale: Literal[2, 3, 4] = 4
    sample: str | None = None
    input: bool = False
    size: PartSide = 256
    device: str = "auto"
    out: Path = Path("out")
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse parts without room."""
        if isinstance(self.size, int) and self.size < 64:
            raise ValueError(f"--size: must be at least 64 pixels, or full, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class LamOptions(LookOptions):
    """Options of `hybrid-sr lam`.

    Attributes:
        at: X,Y of the explained part's left upper corner, in pixels of the original (of the result with --input); the
            middle if not given.
        window: Side of that part, in the same pixels.
        points: Of the path from the blurred to the sharp input; fewer are faster and coarser.
    """

    at: str | None = None
    window: int = 16
    points: int = 50

    def __post_init__(self) -> None:
        """Refuse a place that is none."""
        super().__post_init__()
        self.place()
        for name in ("window", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")

    def place(self) -> tuple[int, int] | None:
        """Return --at as numbers."""
        if self.at is None:
            return None
        x, comma, y = self.at.partition(",")
        if not comma or not x.strip().isdigit() or not y.strip().isdigit():
            raise ValueError(f"--at: must be two whole numbers X,Y, got {self.at}")
        return int(x), int(y)


@dataclass(frozen=True, kw_only=True)
class NormsOptions(LookOptions):
    """Options of `hybrid-sr norms`."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `hybrid-sr export`.

    Attributes:
        weights: A run's model/ folder, a .safetensors file or a published .pth; the shipped weights if not given.
        preset: Network of a weights file that does not say, or of the shipped weights.
        scale: Upscaling factor.
        layout: Names of the parameters in a .safetensors or .pth file: ours, or those of the Contrast and HAT
            repositories.
        height: Rows of the input for .onnx and .pt2; 0 leaves them open.
        width: Columns; 0 leaves them open.
        overwrite: Replace an existing file.
        json: Print JSON.
    """

    weights: Path | None = None
    preset: str | None = None
    scale: Literal[2, 3, 4] = 4
    layout: Literal["ours", "published"] = "ours"
    height: int = 0
    width: int = 0
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what no network can change."""
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"--preset: must be one of {', '.join(PRESETS)}, got {self.preset}")
        if min(self.height, self.width) < 0 or (self.height == 0) != (self.width == 0):
            raise ValueError(
                f"--height: must be given with --width, both above 0, or neither; got {self.height} and {self.width}"
            )


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `hybrid-sr report`.

    Attributes:
        out: The page, an .html file; RUN/report.html if not given.
        data: Folder of pictures to show; else the packaged photos that the run was not trained on.
        images: Pictures shown at most.
        lam: Also show what the network looks at (slow on a CPU).
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        overwrite: Replace an existing page.
        json: Print JSON.
    """

    out: Path | None = None
    data: Path | None = None
    images: int = 4
    lam: bool = False
    device: str = "auto"
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse a page without pictures."""
        if self.images < 1:
            raise ValueError(f"--images: must be at least 1, got {self.images}")
