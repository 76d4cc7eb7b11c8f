"""The options of the verbs as dataclasses. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How pictures are made.

    Attributes:
        negative: What is not wanted in the pictures.
        num: Pictures of each prompt.
        steps: Passes of the model; more is slower.
        seed: Of all random choices: the same seed draws the same pictures on the same machine.
        guidance: How much the prompt counts; 1 is fastest and vaguest.
        guidance_ramp: Let the guidance rise from 1 over the steps.
        sample_temperature: Of the distribution that tokens are drawn from; 0 takes the likeliest.
        mask_temperature: Of the noise on what is settled first; falls to 0.
        top_k: Draw from the k likeliest codes only; 0 from all.
        order: What is settled first.
        model: A run's model/ folder; the shipped model if not given.
        tokenizer: A tokenizer's model/ folder; the shipped one if not given.
        text_encoder: minilm, or the name or folder of the encoder that the model was trained with.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        overwrite: Replace existing files.
        json: Print JSON.
    """

    negative: str | None = None
    num: int = 4
    steps: int = 16
    seed: int = 0
    guidance: float = 3.0
    guidance_ramp: bool = False
    sample_temperature: float = 1.0
    mask_temperature: float = 2.0
    top_k: int = 0
    order: Literal["confidence", "halton", "random"] = "confidence"
    model: Path | None = None
    tokenizer: Path | None = None
    text_encoder: str = "minilm"
    device: str = "auto"
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        _at_least_one(self, "num", "steps")
        for name in ("seed", "guidance", "sample_temperature", "mask_temperature", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')}: must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(SamplingOptions):
    """Where pictures go.

    Attributes:
        enlarge: Repeat every pixel so many times on both sides.
        out: Folder for the pictures.
    """

    enlarge: int = 4
    out: Path = Path("out")

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        super().__post_init__()
        _at_least_one(self, "enlarge")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DrawingOptions):
    """Options of `muse-mamba generate`."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(SamplingOptions):
    """Options of `muse-mamba report`.

    Attributes:
        html: The page.
    """

    html: Path = Path("report.html")

    def __post_init__(self) -> None:
        """Refuse a file of another kind."""
        super().__post_init__()
        if self.html.suffix not in (".html", ".htm"):
            raise ValueError(f"--html: must be a file ending in .html, got {self.html}; rename it")


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(DrawingOptions):
    """Options of `muse-mamba inpaint`.

    Attributes:
        image: The picture.
        mask: White where it shall be drawn anew.
    """

    image: Path | None = None
    mask: Path | None = None

    def __post_init__(self) -> None:
        """Refuse missing pictures."""
        super().__post_init__()
        _needs(self, "image", "mask")


@dataclass(frozen=True, kw_only=True)
class OutpaintOptions(DrawingOptions):
    """Options of `muse-mamba outpaint`.

    Attributes:
        image: The picture.
        share: Side of the picture as a share of the result's side.
    """

    image: Path | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse missing pictures and shares that leave nothing to draw."""
        super().__post_init__()
        _needs(self, "image")
        if not 0 < self.share < 1:
            raise ValueError(f"--share: must be between 0 and 1, got {self.share}")


@dataclass(frozen=True, kw_only=True)
class VariationOptions(DrawingOptions):
    """Options of `muse-mamba variation`.

    Attributes:
        image: The picture.
        strength: Share of the picture that is drawn anew.
    """

    image: Path | None = None
    strength: float = 0.6

    def __post_init__(self) -> None:
        """Refuse missing pictures and strengths without a meaning."""
        super().__post_init__()
        _needs(self, "image")
        if not 0 < self.strength <= 1:
            raise ValueError(f"--strength: must be above 0 and at most 1, got {self.strength}")


def _at_least_one(options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: must be at least 1, got {getattr(options, name)}")


def _needs(options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing; give a picture")
        if not getattr(options, name).is_file():
            raise ValueError(f"--{name}: must be a picture, {getattr(options, name)} is no file; check the path")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of `muse-mamba encode`.

    Attributes:
        out: New or empty folder for the packed pictures and captions.
        data: Folder of pictures, or emoji-stamps (openmoji, Noto emoji and stamps); openmoji alone if not given.
        root: Where Debian's packages are installed, or unpacked with dpkg -x.
        size: Side of drawings in pixels.
        text_encoder: minilm, or the name or folder of an encoder of transformers.
        text_length: Most tokens of a caption.
        tokenizer: A tokenizer's model/ folder to carry along.
        no_perceptual: Leave out the backbone of the perceptual loss.
        json: Print JSON.
    """

    out: Path | None = None
    data: str | None = None
    root: Path = Path("/")
    size: int = 64
    text_encoder: str = "minilm"
    text_length: int = 24
    tokenizer: Path | None = None
    no_perceptual: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be packed."""
        if self.out is None:
            raise ValueError("--out is missing; give a new folder")
        if self.size < 8 or self.text_length < 1:
            raise ValueError(f"--size: must be at least 8 and --text-length 1, got {self.size} and {self.text_length}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `muse-mamba export`.

    Attributes:
        out: File that ends in .onnx, .pt2 (torch.export), or .safetensors (weights in half precision).
        part: The token model (tokens, text and mask to logits), or the tokenizer's encoder or decoder.
        model: A run's model/ folder; the shipped model if not given.
        tokenizer: A tokenizer's model/ folder; the shipped one if not given.
        overwrite: Replace an existing file.
        json: Print JSON.
    """

    out: Path | None = None
    part: Literal["model", "encoder", "decoder"] = "model"
    model: Path | None = None
    tokenizer: Path | None = None
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse missing files and formats that are not known."""
        if self.out is None:
            raise ValueError("--out is missing; give a file that ends in .onnx, .pt2 or .safetensors")
        if self.out.suffix not in (".onnx", ".pt2", ".safetensors"):
            raise ValueError(f"--out: must end in .onnx, .pt2 or .safetensors, got {self.out.name}; rename it")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options of `muse-mamba train-judge`.

    Attributes:
        out: New or empty folder for the judge.
        data: Folder of pictures with captions, or openclipart (Debian's openclipart-png and -svg) if not given.
        root: Where Debian's packages are installed, or unpacked with dpkg -x.
        against: Packed folder whose held-out concepts the judge shall not know.
        text_encoder: minilm, or the name or folder of an encoder of transformers.
        dim: Width of the space that pictures and captions are brought into.
        steps: Of the optimizer.
        lr: Peak learning rate.
        weight_decay: Of AdamW.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
    """

    out: Path | None = None
    data: str | None = None
    root: Path = Path("/")
    against: Path | None = None
    text_encoder: str = "minilm"
    dim: int = 96
    steps: int = 400
    lr: float = 2e-3
    weight_decay: float = 0.1
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.out is None:
            raise ValueError("--out is missing; give a new folder")
        _at_least_one(self, "dim", "steps")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(f"--lr: must be above 0 and --weight-decay at least 0, got {self.lr}, {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `muse-mamba info`.

    Attributes:
        preset: The model or tokenizer.
        method: How text is mixed in.
        json: Print JSON.
    """

    preset: str = "study"
    method: str | None = None
    json: bool = False


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
        out: File for the JSON rows.
        overwrite: Replace it.
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
    out: Path | None = None
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        _at_least_one(self, "batch", "steps", "repeats")


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
        parallel: Runs side by side on one device.
        minutes: Start no further run after so many; what is left is done when the command is given again.
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
    parallel: int = 4
    minutes: float | None = None
    recipe: str = "study"
    prompts: int = 50
    report_only: bool = False
    extra: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.out is None:
            raise ValueError("--out is missing; give the folder of the study")
        _at_least_one(self, "steps", "parallel", "prompts")


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
        num: Most pictures; 0 for all.
        steps: Passes of the model per picture.
        guidance: How much captions count.
        seed: Of all random choices.
        text_encoder: Of captions that are not packed.
        inception: Weights of the Inception network of FID; without them there is no FID.
        clip: Folder of a CLIP model for the CLIP score; without it there is none.
        no_features: Leave out everything that needs EfficientNet-Lite0.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        out: File for the JSON; printed if not given.
        overwrite: Replace it.
    """

    data: str | None = None
    split: Literal["held-out", "validation", "train"] = "held-out"
    model: Path | None = None
    tokenizer: Path | None = None
    tokenizer_only: bool = False
    sizes: str = "64"
    num: int = 0
    steps: int = 16
    guidance: float = 3.0
    seed: int = 0
    text_encoder: str = "minilm"
    inception: Path | None = None
    clip: Path | None = None
    no_features: bool = False
    device: str = "auto"
    out: Path | None = None
    overwrite: bool = False
