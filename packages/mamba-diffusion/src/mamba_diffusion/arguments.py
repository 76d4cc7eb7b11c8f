"""The options of the verbs as dataclasses. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .config import DEFAULT_PRESET
from .recipes import Subject

if TYPE_CHECKING:
    from .predict import Prediction


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Which model runs, where, and how samples are drawn.

    Attributes:
        weights: A run or its model/ folder, shipped weights by name (rgb, temperature), or a checkpoint of the origin.
        preset: Network of a checkpoint that does not say.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        precision: Of the network's arithmetic.
        samples: How many fields are drawn.
        sampler: How: heun takes two evaluations a step, the others one.
        steps: Of the sampler.
        times: At even distances, or closer together towards the data.
        temperature: Of the sampler sde; 0 is euler.
        eta: Of the sampler ddim; 0 is euler.
        seed: Of the noise; the same seed gives the same samples.
        noise_std: Error of the sensors, in the unit of the values: what queries on sensors are given; 0 gives them the
            observed values exactly. Left to the network if not given.
        chunk: Queries decoded at once, over all samples; less takes less memory.
        json: Print JSON.
    """

    weights: str | None = None
    preset: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    samples: int = 16
    sampler: Literal["heun", "euler", "unipc", "sde", "ddim"] = "heun"
    steps: int = 10
    times: Literal["uniform", "refined"] = "uniform"
    temperature: float = 0.5
    eta: float = 0.3
    seed: int = 0
    noise_std: float | None = None
    chunk: int | None = None
    json: bool = False

    def prediction(self) -> Prediction:
        """Return what is asked of a model.

        Raises:
            ValueError: It cannot be done.
        """
        from .predict import Prediction
        from .samplers import SamplerConfig

        how = SamplerConfig(
            sampler=self.sampler, steps=self.steps, grid=self.times, temperature=self.temperature, eta=self.eta
        )
        return Prediction(
            samples=self.samples,
            sampler=how,
            seed=self.seed,
            noise_std=self.noise_std,
            chunk=self.chunk,
            bf16=self.precision == "bf16",
        )

    def __post_init__(self) -> None:
        """Refuse what no field can change."""
        _at_least(self, samples=1, steps=1, seed=0)


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(SamplingOptions):
    """Options of `mamba-diffusion reconstruct`.

    Attributes:
        grid: Points along every axis, rows first: 64x96. If not given, 64 along the longest side.
        at: Instead of a grid: file with places, CSV with the columns of the axes, or .npy.
        extent: Ends of the domain: x0,x1,y0,y1. If not given, the box around the sensors.
        normalise: Scale the values as the training data, or by the sensors' own mean and deviation.
        out: Folder for mean, spread, quantiles and samples as PNG, NPZ and NetCDF.
        overwrite: Replace its files.
        example: Without points: this held-out map of the data extra, by number.
        steps: Of the sampler.
    """

    steps: int = 5
    grid: str | None = None
    at: Path | None = None
    extent: str | None = None
    normalise: Literal["weights", "sensors"] = "weights"
    out: Path = Path("reconstruction")
    overwrite: bool = False
    example: int = 0


@dataclass(frozen=True, kw_only=True)
class FieldOptions(SamplingOptions):
    """Which fields a model is measured on.

    Attributes:
        data: As --data of train; if not given, the fields that the data extra installs.
        subject: Which fields of it.
        split: Which of them; a folder of your own has only train.
        count: How many parts are measured, spread evenly over the fields.
        side: Points of a part along each axis.
        share: Share of its points that are sensors.
        points_seed: Of the choice of sensors.
    """

    data: str | None = None
    subject: Subject = "rgb"
    split: Literal["train", "validation", "held-out"] = "held-out"
    count: int = 32
    side: int = 32
    share: float = 0.2
    points_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no data can change."""
        super().__post_init__()
        if self.count < 1 or self.side < 4:
            raise ValueError(f"--count and --side: must be at least 1 and 4, got {self.count} and {self.side}")
        if not 0 < self.share <= 1 or self.share * self.side < 4 / self.side:
            raise ValueError(f"--share: must be in (0, 1] and give 4 sensors, got {self.share:g} of side {self.side}")
        _at_least(self, points_seed=0)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(FieldOptions):
    """Options of `mamba-diffusion evaluate`; `--weights none` measures only the classical methods.

    Attributes:
        baselines: Which classical methods are measured beside the model, such as nearest,linear,rbf,kriging; none.
        out: JSON file for the result.
        overwrite: Replace it.
    """

    baselines: str = "nearest,linear,rbf"
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class CompareOptions(FieldOptions):
    """Options of `mamba-diffusion compare`.

    Attributes:
        a: First model, as --weights.
        b: Second model; improvements are those of b over a.
        out: Folder for comparison_results.txt and .json, v1_vs_v2_comparison.png and improvement_chart.png.
        overwrite: Replace its files.
    """

    a: str | None = None
    b: str | None = None
    out: Path = Path("eval_v1_vs_v2")
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class MultiscaleOptions(FieldOptions):
    """Options of `mamba-diffusion multiscale`.

    Attributes:
        resolutions: Grids over the same part; the truth is as fine as the finest.
        samplers: Which samplers are compared.
        support: What sensors measure: "coarsest", means over the cells of the part's own grid, whatever grid is asked
            for; "own", cells of the grid that is asked for, at the same places.
        out: Folder for metrics_comparison.txt and .json, multiscale_comparison.png and performance_chart.png.
        overwrite: Replace its files.
    """

    resolutions: str = "32,64,96,128"
    samplers: str = "heun,sde,ddim"
    support: Literal["coarsest", "own"] = "coarsest"
    out: Path = Path("eval_multiscale")
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleOptions(FieldOptions):
    """Options of `mamba-diffusion sample`.

    Attributes:
        number: Which part of the data.
        grid: Points along every axis: 64x96; if not given, the side of the part.
        out: Folder for the samples as PNG and NPZ.
        overwrite: Replace its files.
    """

    number: int = 0
    grid: str | None = None
    out: Path = Path("samples")
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions(SampleOptions):
    """Options of `mamba-diffusion report`.

    Attributes:
        html: The page, one file without links.
        resolutions: Of the slider.
    """

    html: Path = Path("report.html")
    resolutions: str = "32,64,128"


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `mamba-diffusion info`.

    Attributes:
        preset: The network; all of them if not given.
        sensors: That operations are counted for.
        queries: Likewise.
        json: Print JSON.
    """

    preset: str | None = None
    sensors: int = 205
    queries: int = 1024
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `mamba-diffusion benchmark`.

    Attributes:
        preset: The network; its weights are random, which does not change the speed.
        against: Another network, such as a transformer of the same size (v4), for the crossover.
        sensors: Ni.
        queries: Sizes of the grids, such as 32x32,64x64,256x256.
        steps: Of Heun; a sample takes two evaluations a step.
        train: Time training steps of 64 fields instead of samples.
        device: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps.
        precision: Of the network's arithmetic.
        repeats: Timed runs after one to warm up; the median counts.
        out: JSON file for the rows.
        plot: PNG file for the times over the queries.
        read: JSON files of earlier runs, with commas between, whose rows are shown and drawn; nothing is timed then.
        overwrite: Replace the files.
        json: Print JSON.
    """

    preset: str = DEFAULT_PRESET
    against: str | None = None
    sensors: int = 205
    queries: str = "16x16,32x32,64x64"
    steps: int = 10
    train: bool = False
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    repeats: int = 3
    out: Path | None = None
    plot: Path | None = None
    read: str | None = None
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        _at_least(self, sensors=4, steps=1, repeats=1)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of `mamba-diffusion study`.

    Attributes:
        plan: rgb (legacy v1, v1, v2, v4, ours), fields (v2, ours on sst and topography), or smoke (tiny networks).
        data: Packed folder.
        out: Folder: study.json, and a run a row.
        methods: Only these, by name; if not given, those of the plan.
        rates: Learning rates, tried for every method.
        seeds: Of the training; those after the first only with the best rate.
        steps: Optimizer steps of every run.
        batch: Fields a step.
        jobs: Runs side by side on the device.
        count: Held-out parts that are measured.
        max_minutes: Start no new run after so many minutes.
        precision: Of the training.
        graph: Replay training steps as CUDA graphs.
        resolutions: Grids that are measured beside the first, which is 32.
        queries: Of every field in training.
        baselines: Classical methods that are measured beside the networks, with commas between; none.
        merge: Folders of studies of the same plan and budget, with commas between, whose rows are taken over: parts
            of the plan can run on several machines.
        figures: Only measure and collect the runs that are there.
    """

    plan: Literal["rgb", "fields", "smoke"] = "rgb"
    data: str | None = None
    out: Path = Path("study")
    methods: str | None = None
    rates: str = "3e-4,1e-3,3e-3"
    seeds: int = 2
    steps: int = 3_000
    batch: int = 64
    jobs: int = 2
    count: int = 32
    max_minutes: float = 60.0
    precision: Literal["no", "bf16"] = "bf16"
    graph: bool = False
    resolutions: str = "64,128"
    queries: int = 512
    baselines: str = "nearest,linear,rbf,kriging"
    merge: str | None = None
    figures: bool = False

    def __post_init__(self) -> None:
        """Refuse what no run can be made of."""
        _at_least(self, seeds=1, steps=1, batch=1, jobs=1, count=1, queries=1)
        if not all(part.isdigit() and int(part) >= 4 for part in self.resolutions.split(",") if part):
            raise ValueError(f"--resolutions: must be whole numbers of at least 4, or empty, got {self.resolutions}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `mamba-diffusion export`.

    Attributes:
        format: half writes config.json and float16 weights, as they ship; torch a program of torch.export, onnx the
            same as ONNX.
        out: Folder, or file for torch and onnx.
        sensors: Of the exported program, whose shapes are fixed.
        queries: Likewise.
        overwrite: Replace existing files.
    """

    format: Literal["half", "torch", "onnx"] = "half"
    out: Path = Path("export")
    sensors: int = 205
    queries: int = 1024
    overwrite: bool = False


def _at_least(options: object, **least: int) -> None:
    for name, number in least.items():
        if getattr(options, name) < number:
            found = getattr(options, name)
            raise ValueError(f"--{name.replace('_', '-')}: must be at least {number}, got {found}")
