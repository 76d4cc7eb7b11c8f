"""The options of the verbs that measure, as dataclasses. Importing this imports no torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .arguments import at_least_one, not_negative


def refuse_files(options: BenchmarkOptions | EvaluateOptions, *names: str) -> None:
    """Refuse files that exist, without --overwrite, those in folders that do not, and pictures that are no PNG."""
    for name in names:
        file: Path | None = getattr(options, name)
        if file is None:
            continue
        refuse_existing(name, file, options.overwrite)
        if not file.absolute().parent.is_dir():
            raise ValueError(f"--{name}: {file.parent} is no folder; make it, or choose another file")
        if name in ("plot", "sheet") and file.suffix != ".png":
            raise ValueError(f"--{name}: must be a file ending in .png, got {file}; rename it")


def refuse_existing(name: str, file: Path, overwrite: bool) -> None:
    """Refuse a file that exists.

    Raises:
        ValueError: It does, and must not be replaced.
    """
    if file.exists() and not overwrite:
        raise ValueError(f"--{name}: {file} exists; add --overwrite, or choose another file")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options of `muse-mamba train-judge`.

    Attributes:
        out: New or empty folder for the judge.
        data: Folders of pictures with captions, packed folders (what they do not hold out), or openclipart (Debian's
            openclipart-png and -svg), separated by commas; openclipart if not given.
        root: Where Debian's packages are installed, or unpacked with dpkg -x.
        against: Packed folder whose held-out concepts the judge shall not know, beside those of --data.
        text_encoder: minilm, or the name or folder of an encoder of transformers.
        dim: Width of the space that pictures and captions are brought into.
        ridge: Penalty of the regression.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
    """

    out: Path | None = None
    data: str | None = None
    root: Path = Path("/")
    against: Path | None = None
    text_encoder: str = "minilm"
    dim: int = 64
    ridge: float = 1_000.0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted."""
        if self.out is None:
            raise ValueError("--out is missing; give a new folder")
        at_least_one(self, "dim")
        if self.ridge <= 0:
            raise ValueError(f"--ridge: must be above 0, got {self.ridge}")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `muse-mamba benchmark`.

    Attributes:
        methods: Names separated by commas, or all.
        preset: The model whose sizes are timed; weights are random.
        lengths: Image tokens, squares separated by commas.
        batch: Pictures at a time.
        steps: Passes of the model per picture.
        repeats: Timed runs after one to warm up; the median counts.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        precision: Of the arithmetic.
        graph: Replay recorded CUDA graphs, which leaves out what the host needs to start kernels. Only on a CUDA GPU.
        out: File for the JSON rows.
        plot: PNG with both times against the length; needs matplotlib.
        overwrite: Replace both.
        json: Print JSON.
    """

    methods: str = "transformer,mamba-xattn,attn-xz,mamba2-xattn"
    preset: str = "study"
    lengths: str = "64,256,1024"
    batch: int = 4
    steps: int = 8
    repeats: int = 3
    device: str = "auto"
    precision: Literal["no", "bf16"] = "no"
    graph: bool = False
    out: Path | None = None
    plot: Path | None = None
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers below 1, and files that exist."""
        at_least_one(self, "batch", "steps", "repeats")
        refuse_files(self, "out", "plot")
        if self.plot is not None and importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot: needs matplotlib; pip install matplotlib, or leave it out")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of `muse-mamba study`.

    Attributes:
        out: Folder of the study; every run has a folder in it.
        data: Packed folder with a tokenizer in it.
        tokenizer: A tokenizer's model/ folder; that of the data if not given.
        methods: Names separated by commas, or all.
        seeds: Numbers separated by commas.
        steps: Of every run.
        jobs: Runs side by side on one device.
        max_minutes: Start no further run after so many; what is left is done when the command is given again.
        recipe: Named run whose sizes are used.
        prompts: Held-out captions that are drawn and judged.
        report_only: Train nothing; write table, plot and sheet of what is there.
        extra: Fields for every run, as in "--model.direction causal"; in quotes.
    """

    out: Path | None = None
    data: str | None = None
    tokenizer: Path | None = None
    methods: str = "all"
    seeds: str = "0,1"
    steps: int = 6_000
    jobs: int = 4
    max_minutes: float | None = None
    recipe: str = "study"
    prompts: int = 50
    report_only: bool = False
    extra: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.out is None:
            raise ValueError("--out is missing; give the folder of the study")
        at_least_one(self, "steps", "jobs", "prompts")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `muse-mamba evaluate`.

    Attributes:
        data: Packed folder, or folder of pictures with captions, that the pictures are compared with.
        split: Which of its pictures: those held out, looked at in training, or trained on.
        model: A run's model/ folder; the shipped model if not given.
        tokenizer: A tokenizer's model/ folder; the shipped one if not given.
        tokenizer_only: Measure reconstructions instead of generated pictures.
        sizes: Sides in pixels for reconstructions, separated by commas.
        num: Most pictures of the split; 0 for all.
        per_caption: Pictures drawn of every caption.
        prompts: Captions among which the judge looks for the right one (R@1, R@5); 0 for no judge.
        judge: A judge's folder (`muse-mamba train-judge`); the shipped one if not given.
        steps: Passes of the model per picture.
        guidance: How much captions count.
        seed: Of all random choices.
        text_encoder: Of captions that are not packed.
        inception: Weights of the Inception network of FID (rFID of reconstructions); without them there is none.
        lpips: Weights of torchvision's vgg16, for LPIPS of reconstructions; without them there is none.
        clip: Folder of a CLIP model for the CLIP score; without it there is none.
        no_features: Leave out everything that needs EfficientNet-Lite0.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        sheet: PNG with originals above reconstructions (one file a size), or with captions, real, drawn and (for packed
            data) the nearest training pictures.
        out: File for the JSON; printed if not given.
        overwrite: Replace files.
    """

    data: str | None = None
    split: Literal["held-out", "validation", "train"] = "held-out"
    model: Path | None = None
    tokenizer: Path | None = None
    tokenizer_only: bool = False
    sizes: str = "64"
    num: int = 0
    per_caption: int = 1
    prompts: int = 50
    judge: Path | None = None
    steps: int = 16
    guidance: float = 4.0
    seed: int = 0
    text_encoder: str = "minilm"
    inception: Path | None = None
    lpips: Path | None = None
    clip: Path | None = None
    no_features: bool = False
    device: str = "auto"
    sheet: Path | None = None
    out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning, and files that exist."""
        at_least_one(self, "steps", "per_caption")
        not_negative(self, "num", "prompts", "guidance", "seed")
        refuse_files(self, "out", "sheet")
        for name in ("inception", "lpips"):
            file = getattr(self, name)
            if file is not None and not file.is_file():
                raise ValueError(f"--{name}: must be a file, got {file}; check the path")
