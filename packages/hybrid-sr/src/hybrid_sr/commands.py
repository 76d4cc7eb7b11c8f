"""What the verbs do once their options are read: run, print for a person or as JSON, return an exit code.

torch is imported when a network is needed, so that mistakes in names of files and samples answer at once.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .arguments import BenchmarkOptions, EvaluateOptions, InfoOptions, NetworkOptions, UpscaleOptions
from .comparison import write_comparison
from .config import PRESETS
from .evaluate import NamedImage, evaluate_images, folder_images, read_low_resolution, sample_images
from .files import Job, plan, upscale_files
from .images import picture_files, read_picture
from .progress import Progress
from .samples import find_sample, sample_set
from .showcase import Gain, gain, original_of, upscale_sample

if TYPE_CHECKING:
    from .model import HybridSR
    from .upscaling import Tile

SAMPLE_OUT = Path("out")
ANY_SIDE = 1 << 20  # pixels; no limit on whole pictures but the memory
OTHERS = {
    "upscaled": "the result",
    "bicubic": "what bicubic makes of the same input",
    "lr": "the input",
    "original": "the photo itself",
}
COMPARISON = "bicubic and the result under a bar that is dragged, for a browser"


def upscale_command(inputs: list[str], options: UpscaleOptions) -> int:
    """Run `hybrid-sr upscale`."""
    if options.sample is not None:
        if inputs or options.original is not None:
            raise ValueError("--sample: takes a packaged photo instead of yours; leave out the picture and --original")
        return _upscale_sample(options)
    if not inputs:
        raise ValueError("no picture given; name pictures, a folder or a pattern, or try --sample coffee")
    jobs = plan(inputs, scale=options.scale, out=options.out, output_format=options.format)
    if not any(job.source.exists() for job in jobs):
        raise ValueError(f"{jobs[0].source}: does not exist; check the path")
    original = None if options.original is None else _checked_original(jobs, options)
    page = _page_of(jobs, options) if options.compare else None
    model, options = _load_backend(options)
    say = None if options.json else print
    report = upscale_files(
        _upscaler(model, options),
        jobs,
        scale=options.scale,
        overwrite=options.overwrite,
        max_megapixels=options.max_megapixels,
        say=say,
    )
    result = report.to_dict()
    if page is not None and report.done:
        write_comparison(page, jobs[0], options.scale)
        result["page"] = str(page)
        if say is not None:
            say(f"{page}: bicubic and the result, to compare in a browser")
    if original is not None and report.done:
        figures = gain(
            read_picture(jobs[0].source).rgb8(), read_picture(jobs[0].target).rgb8(), original, options.scale
        )
        result |= _figures(figures)
        if say is not None:
            say("\n".join(figures.lines()))
    if options.json:
        _print_json(result)
    elif len(jobs) > 1:
        skipped = f", {len(report.failed)} skipped" if report.failed else ""
        print(f"{len(report.done)} of {len(jobs)} pictures upscaled{skipped}")
    return report.exit_code


def evaluate_command(options: EvaluateOptions) -> int:
    """Run `hybrid-sr evaluate`."""
    _check_evaluation(options)
    lr = None
    if options.lr is not None:
        lr = read_low_resolution(options.lr, options.scale, max_megapixels=options.max_megapixels)
    model = _load(options)
    run = _Evaluated(model, options, options.tile)
    if not options.json:
        print(f"{_name(model, options)}, {options.precision} on {run.device}; PSNR and SSIM on luma\n")
        print(f"{'picture':<24}{'size':>11}{'bicubic':>10}{'hybrid-sr':>11}{'gain':>8}{'SSIM':>9}", flush=True)
    report = None if options.json else _print_row
    result = evaluate_images(run, _evaluation_images(options), options.scale, low_resolution=lr, report=report)
    for row, tile in zip(result["per_image"], run.tiles, strict=True):
        row["tile"] = tile
    if isinstance(options.tile, int):
        whole = _Evaluated(model, options, "full")
        _compare(result, evaluate_images(whole, _evaluation_images(options), options.scale, low_resolution=lr))
    if options.json:
        _print_json(_settings(model, options, run) | result)
        return 0
    _print_row({"name": f"mean of {result['n']}", **result})
    if "tiled_minus_full_db" in result:
        print(f"\ntiles of {options.tile} minus whole pictures: {result['tiled_minus_full_db']:+.4f} dB")
    elif any(tile != "full" for tile in run.tiles):
        print(f"\n{sum(tile != 'full' for tile in run.tiles)} pictures were done in tiles, as memory allows")
    return 0


def info_command(options: InfoOptions) -> int:
    """Run `hybrid-sr info`."""
    if options.weights is not None:
        from .keyreport import inspect_file

        report = inspect_file(options.weights, options.scale)
        if options.json:
            _print_json(report.to_dict())
        else:
            print("\n".join(report.lines()))
        return 0 if report.fits else 1
    from .info import model_info

    result = model_info(options.preset, options.scale, options.height, options.width)
    if options.json:
        _print_json(result)
        return 0
    print(f"{result['preset']} x{result['scale']}")
    print(f"  parameters  {result['parameters']:>16,}")
    print(f"  macs        {result['macs']:>16,}   multiply-adds, input {options.width}x{options.height}")
    print(f"  scan_ops    {result['scan_ops']:>16,}   of the selective scans")
    return 0


def benchmark_command(options: BenchmarkOptions) -> int:
    """Run `hybrid-sr benchmark`."""
    from .benchmark import benchmark

    result = benchmark(
        options.preset,
        scale=options.scale,
        height=options.height,
        width=options.width,
        device=options.device,
        precision=options.precision,
        repeats=options.repeats,
    )
    if options.json:
        _print_json(result)
        return 0
    where = (
        result["environment"]["GPU"] or f"{result['environment']['cpu']}, {result['environment']['threads']} threads"
    )
    size = f"{options.width}x{options.height} -> {options.width * options.scale}x{options.height * options.scale}"
    print(f"{options.preset} x{options.scale}, {size}, {options.precision} on {where}")
    print(f"  time    {result['ms']:.1f} ms (median of {options.repeats})")
    print(f"  speed   {result['output_megapixels_per_s']:.2f} megapixels of output per second")
    if result["peak_bytes"] is not None:
        print(f"  memory  {result['peak_bytes'] / 1e9:.2f} GB beyond the weights")
    return 0


def _load(options: NetworkOptions) -> HybridSR:
    from .threefold import Threefold
    from .upscaling import pick_device
    from .weights import load_model

    device = pick_device(options.device)
    if options.scale == 3 and options.weights is None:
        return cast("HybridSR", Threefold(load_model(preset=options.preset, scale=4, device=device)).eval())
    return load_model(options.weights, preset=options.preset, scale=options.scale, device=device)


def _load_backend(options: UpscaleOptions) -> tuple[HybridSR, UpscaleOptions]:
    """Load the network for PyTorch, or the ONNX file that stands for it and the tile that it takes."""
    if options.backend == "torch":
        return _load(options), options
    from .onnxnet import OnnxNetwork

    model = OnnxNetwork(options.weights or Path("none given"))
    if model.config.scale != options.scale:
        raise ValueError(f"--scale: {options.weights} upscales {model.config.scale} times, got {options.scale}")
    if model.size is not None and options.tile == "auto":
        options = replace(options, tile=min(model.size) // 16 * 16)
    return cast("HybridSR", model), options


def _page_of(jobs: list[Job], options: UpscaleOptions) -> Path:
    """Return where --compare writes."""
    if len(jobs) != 1:
        raise ValueError(f"--compare: belongs to a single picture, but {len(jobs)} are meant")
    page = jobs[0].target.with_suffix(".html")
    if page.exists() and not options.overwrite:
        raise ValueError(f"{page}: exists; add --overwrite to replace it, or choose another --out")
    return page


def _name(model: HybridSR, options: NetworkOptions) -> str:
    preset = next((name for name, make in PRESETS.items() if make(options.scale) == model.config), "custom network")
    if options.weights is None and options.scale == 3:
        return f"{preset} x4 and bicubic to 3/4"
    return f"{preset} x{options.scale}" + ("" if options.weights is None else f" ({options.weights})")


def _notify(message: str) -> None:
    print(f"hybrid-sr: {message}", file=sys.stderr)


def _upscaler(model: HybridSR, options: UpscaleOptions) -> Callable[..., NDArray]:
    if options.compile:
        from .compiled import Compiled

        does: Callable[..., NDArray] = Compiled(model)
    else:
        from .upscaling import upscale

        does = partial(upscale, model)

    def run(image: NDArray, progress: Callable[[int, int], None] | None = None) -> NDArray:
        return does(
            image,
            tile=options.tile,
            overlap=options.overlap,
            precision=options.precision,
            self_ensemble=options.self_ensemble,
            progress=progress,
            notify=_notify,
        )

    return run


def _checked_original(jobs: list[Job], options: UpscaleOptions) -> NDArray[np.uint8]:
    """Read --original and compare its size, before the work."""
    if len(jobs) != 1:
        raise ValueError(f"--original: belongs to a single picture, but {len(jobs)} are meant")
    assert options.original is not None
    original = original_of(options.original, max_megapixels=options.max_megapixels * options.scale**2)
    source = read_picture(jobs[0].source, max_megapixels=options.max_megapixels)
    wanted = (source.height * options.scale, source.width * options.scale)
    cut = tuple(n - n % options.scale for n in original.shape[:2])
    if cut != wanted:
        what = f"{options.original}: is {original.shape[1]}x{original.shape[0]}, but {options.scale} times"
        raise ValueError(f"{what} {jobs[0].source} is {wanted[1]}x{wanted[0]}; check --scale and --original")
    return original


def _upscale_sample(options: UpscaleOptions) -> int:
    assert options.sample is not None
    sample = find_sample(options.sample)
    sample.path()  # refuses a package that is not installed before the weights are read
    model, options = _load_backend(options)
    seconds = 0.0

    def run(image: NDArray) -> NDArray:
        nonlocal seconds
        start = time.monotonic()
        with Progress(sample.name) as progress:
            result = _upscaler(model, options)(image, progress)
        seconds = time.monotonic() - start
        return result

    out = options.out or SAMPLE_OUT
    page = out / f"{sample.name}_x{options.scale}.html" if options.compare else None
    if page is not None and page.exists() and not options.overwrite:
        raise ValueError(f"{page}: exists; add --overwrite to replace it, or choose another --out")
    figures, files = upscale_sample(run, sample, scale=options.scale, out=out, overwrite=options.overwrite)
    if page is not None:
        write_comparison(page, Job(files["lr"], files["upscaled"]), options.scale)
        files["page"] = page
    if options.json:
        named = {key: str(path) for key, path in files.items()}
        _print_json({"sample": sample.name, "scale": options.scale, **_figures(figures), "files": named})
        return 0
    source = read_picture(files["lr"])
    size = f"reduced to {source.width}x{source.height}"
    print(f"{sample.name}: a photo from {sample.set_name} ({sample.credit}), {size} by MATLAB bicubic")
    print(f"upscaled x{options.scale} by {_name(model, options)} in {seconds:.1f} s; PSNR and SSIM on luma:\n")
    print("\n".join(figures.lines()))
    print(f"\nLook at {files['panel']}: input, bicubic, hybrid-sr and original side by side. Beside it:")
    for key, text in OTHERS.items():
        print(f"  {files[key].name:<{max(len(f.name) for f in files.values())}}  {text}")
    if page is not None:
        print(f"  {page.name}  {COMPARISON}")
    return 0


def _figures(figures: Gain) -> dict[str, float]:
    return {
        "psnr_y": figures.psnr_y,
        "ssim_y": figures.ssim_y,
        "bicubic_psnr_y": figures.bicubic_psnr_y,
        "bicubic_ssim_y": figures.bicubic_ssim_y,
        "gain_db": figures.gain_db,
    }


def _check_evaluation(options: EvaluateOptions) -> None:
    if options.data is not None and options.set is not None:
        raise ValueError("--set: names packaged photos and --data a folder; give one of them")
    if options.lr is not None and options.data is None:
        raise ValueError("--lr: needs --data, the folder of the originals")
    if options.data is None:
        for sample in sample_set(options.set):
            sample.path()  # refuses a package that is not installed before the weights are read
    else:
        picture_files(options.data)


def _evaluation_images(options: EvaluateOptions) -> Iterable[NamedImage]:
    if options.data is not None:
        return folder_images(options.data, max_megapixels=options.max_megapixels)
    return sample_images(options.set)


class _Evaluated:
    """The upscaler that `evaluate` measures: whole pictures if memory allows or `tile` says so, else tiles.

    `tiles` collects what every picture took: "full", or the side of the tiles.
    """

    def __init__(self, model: HybridSR, options: EvaluateOptions, tile: Tile) -> None:
        from .upscaling import network_runner

        self.model, self.options = model, options
        self.tile: Tile = tile
        self.device = next(model.parameters()).device
        self.network = network_runner(model, self.device, options.precision, self_ensemble=options.self_ensemble)
        self.tiles: list[int | str] = []

    def __call__(self, lr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        from .upscaling import overlap_for, tile_for, upscale

        size, options = (lr.shape[0], lr.shape[1]), self.options
        side = tile_for(self.model, size, self.network, tile=self.tile, overlap=options.overlap, largest=ANY_SIDE)
        self.tiles.append("full" if side >= max(size) else side)
        return upscale(
            self.model,
            lr,
            tile=side,
            overlap=overlap_for(side, options.overlap),
            precision=options.precision,
            self_ensemble=options.self_ensemble,
            notify=_notify,
        )


def _compare(tiled: dict[str, Any], whole: dict[str, Any]) -> None:
    """Add what the tiles cost: PSNR in tiles minus PSNR of whole pictures, per picture and as their mean."""
    for row, full in zip(tiled["per_image"], whole["per_image"], strict=True):
        same = row["psnr_y"] == full["psnr_y"]  # both may be infinite
        row["tiled_minus_full_db"] = 0.0 if same else row["psnr_y"] - full["psnr_y"]
    tiled["tiled_minus_full_db"] = float(np.mean([row["tiled_minus_full_db"] for row in tiled["per_image"]]))


def _settings(model: HybridSR, options: EvaluateOptions, run: _Evaluated) -> dict[str, Any]:
    return {
        "model": _name(model, options),
        "scale": options.scale,
        "precision": options.precision,
        "device": str(run.device),
        "tile": options.tile,
        "overlap": options.overlap,
        "self_ensemble": options.self_ensemble,
        "data": str(options.data or options.set or "packaged photos"),
    }


def _print_row(row: dict[str, Any]) -> None:
    size = f"{row['width']}x{row['height']}" if "width" in row else ""
    figures = f"{row['bicubic_psnr_y']:>10.2f}{row['psnr_y']:>11.2f}{row['gain_db']:>+8.2f}{row['ssim_y']:>9.4f}"
    print(f"{row['name']:<24}{size:>11}{figures}", flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
