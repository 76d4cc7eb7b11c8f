"""The options of the verbs that draw, pack, export and count, as dataclasses. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MOST_STEPS = 1_000  # about as many as there are tokens
LARGEST = 2**63
MOST_ENLARGED = 32


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
    guidance: float = 4.0
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
        at_least_one(self, "num", "steps")
        if self.negative is not None and not self.negative.strip():
            raise ValueError("--negative: must say what is not wanted, got nothing; leave it out")
        not_negative(self, "seed", "guidance", "sample_temperature", "mask_temperature", "top_k")
        if self.steps > MOST_STEPS:
            raise ValueError(f"--steps: must be at most {MOST_STEPS}, got {self.steps}; the default is 16")


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
        at_least_one(self, "enlarge")
        if self.enlarge > MOST_ENLARGED:
            raise ValueError(f"--enlarge: must be at most {MOST_ENLARGED}, got {self.enlarge}; the default is 4")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DrawingOptions):
    """Options of `muse-mamba generate`.

    Attributes:
        upscaler: The model/ folder of a super-resolution run, which draws the model's pictures once more, larger.
    """

    upscaler: Path | None = None


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


def at_least_one(options: Any, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        ValueError: One is.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: must be at least 1, got {getattr(options, name)}")


def not_negative(options: Any, *names: str) -> None:
    """Refuse numbers below 0, and those that are not finite or larger than a random generator takes.

    Raises:
        ValueError: One is.
    """
    for name in names:
        if not 0 <= getattr(options, name) < LARGEST:
            raise ValueError(f"--{name.replace('_', '-')}: must be at least 0 and finite, got {getattr(options, name)}")


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
