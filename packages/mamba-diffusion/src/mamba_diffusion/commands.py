"""What the verbs do once their options are read: run, print for a person or as JSON, return an exit code.

torch is imported when a network is needed, so that mistakes in names of files answer at once.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .arguments import (
    BenchmarkOptions,
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    FieldOptions,
    InfoOptions,
    MultiscaleOptions,
    ReconstructOptions,
    SampleOptions,
    SamplingOptions,
)
from .config import PRESETS

if TYPE_CHECKING:
    import torch

    from .fieldset import Part
    from .model import SparseField

COLUMNS = ("psnr", "psnr_mean", "ssim_mean", "xsi", "xsi_mean", "crps", "coverage")
EXAMPLE_WEIGHTS = "temperature"


def load(options: SamplingOptions, weights: str | Path | None, default: str) -> tuple[SparseField, torch.device]:
    """Return a model on its device.

    Raises:
        ValueError: There are no such weights.
    """
    from .device import pick_device
    from .weights import load_model

    device = pick_device(options.device)
    return load_model(weights or default, device=device, preset=options.preset), device


def reconstruct_command(points: str | None, options: ReconstructOptions) -> int:
    """Run `mamba-diffusion reconstruct`."""
    from .device import check_free
    from .grids import default_grid, grid_places, parse_grid, parse_numbers, read_places
    from .points import read_points
    from .reconstruction import files_of, reconstruct, write_reconstruction

    if points is None:
        return _reconstruct_example(options)
    extent = None if options.extent is None else parse_numbers(options.extent, "--extent")
    given = read_points(Path(points), extent=extent)
    if options.at is not None and options.grid is not None:
        raise ValueError("--at: names places and --grid a grid; give one of them")
    if options.at is not None:
        grid, places = None, read_places(options.at, given)
    else:
        grid = default_grid(given) if options.grid is None else parse_grid(options.grid, len(given.axes))
        places = grid_places(given, grid)
    check_free(files_of(options.out, grid=grid), overwrite=options.overwrite)
    model, _ = load(options, options.weights, "rgb" if given.values.shape[1] == 3 else EXAMPLE_WEIGHTS)
    start = time.perf_counter()
    result = reconstruct(model, given, places, options.prediction(), grid=grid, normalise=options.normalise)
    seconds = time.perf_counter() - start
    files = write_reconstruction(result, options.out)
    low, high = result.quantiles[0], result.quantiles[-1]
    record = {
        "sensors": len(given.places),
        "queries": len(places),
        "samples": options.samples,
        "unit": given.unit,
        "mean": result.mean.mean(0).tolist(),
        "mean_spread": result.std.mean(0).tolist(),
        "mean_90_interval": (high - low).mean(0).tolist(),
        "seconds": seconds,
        "files": [str(file) for file in files],
    }
    _tell_reconstruction(record, options)
    return 0


def _reconstruct_example(options: ReconstructOptions) -> int:
    """Reconstruct the packaged example and compare with its truth."""
    from .device import check_free
    from .evaluate import measure_samples
    from .example import example
    from .metrics import expected_coverage
    from .reconstruction import files_of, reconstruct, write_reconstruction

    if options.grid is not None or options.at is not None or options.extent is not None:
        raise ValueError("--grid, --at, --extent: belong to points of your own; give a .csv or .npz file first")
    model, _ = load(options, options.weights, EXAMPLE_WEIGHTS)
    points, grid, places, truth = example(options.example)
    check_free(files_of(options.out, grid=grid), overwrite=options.overwrite)
    start = time.perf_counter()
    found = reconstruct(model, points, places, options.prediction(), grid=grid, normalise=options.normalise)
    seconds = time.perf_counter() - start
    result = replace(found, truth=truth)
    files = write_reconstruction(result, options.out)
    shape = (*grid, truth.shape[1])
    peak = float(truth.max() - truth.min())
    figures = measure_samples(result.samples.reshape(-1, *shape), truth.reshape(shape), peak)
    record = {"sensors": len(points.places), "queries": len(places), "samples": options.samples, "unit": points.unit}
    record |= {"psnr_mean": figures["psnr_mean"], "crps": figures.get("crps"), "coverage": figures.get("coverage")}
    record |= {"expected_coverage": expected_coverage(options.samples), "seconds": seconds}
    _tell_reconstruction({**record, "files": [str(file) for file in files]}, options)
    return 0


def _tell_reconstruction(record: dict[str, Any], options: ReconstructOptions) -> None:
    if options.json:
        print_json(record)
        return
    print(f"{record['samples']} samples at {record['queries']:,} places from {record['sensors']:,} sensors", end="")
    print(f" in {record['seconds']:.1f} s")
    for name in ("psnr_mean", "crps", "coverage"):
        if record.get(name) is not None:
            print(f"  {name:<10}{record[name]:>8.3f}")
    print("\n".join(f"  {file}" for file in record["files"]))


def parts_of(options: FieldOptions, resolutions: tuple[int, ...] = ()) -> list[Part]:
    """Return the parts that a verb measures on."""
    from .fieldset import find_parts

    return find_parts(
        options.data,
        options.subject,
        split=options.split,
        side=options.side,
        share=options.share,
        count=options.count,
        seed=options.points_seed,
        resolutions=resolutions,
    )


def default_weights(options: FieldOptions) -> str:
    """Return the shipped weights for a subject."""
    return "rgb" if options.subject == "rgb" else "temperature"


def evaluate_command(options: EvaluateOptions) -> int:
    """Run `mamba-diffusion evaluate`."""
    from .baselines import BASELINES
    from .device import check_free
    from .evaluate import check_model, evaluate_baseline, evaluate_model, finite, table

    names = [name for name in options.baselines.split(",") if name not in ("", "none")]
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"--baselines: must be none or among {', '.join(BASELINES)}, got {name}")
    if options.weights == "none" and not names:
        raise ValueError("--baselines: none and --weights none leave nothing to measure; give one of them")
    if options.out is not None:
        check_free([options.out], overwrite=options.overwrite)
    results = {}
    if options.weights == "none":
        parts = parts_of(options)
    else:
        model, device = load(options, options.weights, default_weights(options))
        parts = parts_of(options)
        label = str(options.weights or default_weights(options))
        check_model(model, parts, "--weights")
        results[label] = evaluate_model(model, parts, device, options.prediction(), report=show_part)
    results |= {name: evaluate_baseline(name, parts) for name in names}
    record = {"settings": settings_of(options), "results": results}
    if options.out is not None:
        options.out.write_text(json.dumps(finite(record), indent=1) + "\n")
    if options.json:
        print_json(record)
    else:
        print(f"{len(parts)} parts of {options.side} points a side, {options.share:.0%} sensors\n")
        print(table(results, COLUMNS))
    return 0


def show_part(row: dict[str, Any]) -> None:
    """Say on stderr that a part was measured: on a CPU one takes half a minute."""
    print(f"{row['name']}: {row['psnr_mean']:.2f} dB, {row['seconds']:.1f} s", file=sys.stderr, flush=True)


def settings_of(options: Any) -> dict[str, Any]:
    """Return options as JSON holds them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def compare_command(options: CompareOptions) -> int:
    """Run `mamba-diffusion compare`."""
    if options.a is None or options.b is None:
        raise ValueError("--a and --b: both are needed; give two runs, as in --a runs/v1 --b runs/v2")
    from .compare import RESULTS, compare, text_of, write_comparison
    from .device import check_free

    check_free([options.out / name for name in RESULTS], overwrite=options.overwrite)
    names = {"a": options.a, "b": options.b}
    models = {key: load(options, name, name)[0] for key, name in names.items()}
    device = models["a"].mean.device
    parts, asked = parts_of(options), options.prediction()
    result = compare(models["a"], models["b"], parts, device, asked)
    write_comparison(options.out, result, models, names, parts, device, asked)
    if options.json:
        print_json(result)
    else:
        print(text_of(result, names, asked) + f"\nfiles in {options.out}: {', '.join(RESULTS)}")
    return 0


def multiscale_command(options: MultiscaleOptions) -> int:
    """Run `mamba-diffusion multiscale`."""
    from .device import check_free
    from .evaluate import check_model
    from .multiscale import RESULTS, multiscale, text_of, write_multiscale
    from .samplers import Sampler

    resolutions = numbers_of(options.resolutions, "--resolutions")
    samplers: Any = options.samplers.split(",")
    for name in samplers:
        if name not in get_args(Sampler):
            raise ValueError(f"--samplers: must be among {', '.join(get_args(Sampler))}, got {name}")
    check_free([options.out / name for name in RESULTS], overwrite=options.overwrite)
    model, device = load(options, options.weights, default_weights(options))
    parts, asked = parts_of(options, tuple(resolutions)), options.prediction()
    check_model(model, parts, "--weights")
    own = options.support == "own"
    found = multiscale(model, parts, device, asked, resolutions, samplers, own_support=own)
    write_multiscale(options.out, found, model, parts, device, asked, settings_of(options), own_support=own)
    if options.json:
        print_json(found)
    else:
        print(text_of(found, asked) + f"\nfiles in {options.out}: {', '.join(RESULTS)}")
    return 0


def numbers_of(text: str, option: str) -> list[int]:
    """Read "32,64".

    Raises:
        ValueError: These are no whole numbers of at least 4.
    """
    parts = text.split(",")
    if not all(p.strip().isdigit() and int(p) >= 4 for p in parts):
        raise ValueError(f"{option}: must be whole numbers of at least 4 with commas between, got {text}")
    return [int(p) for p in parts]


def sample_command(options: SampleOptions) -> int:
    """Run `mamba-diffusion sample`."""
    import numpy as np

    from .device import check_free
    from .pictures import row, write_rows

    files = [options.out / "samples.png", options.out / "samples.npz"]
    check_free(files, overwrite=options.overwrite)
    model, device = load(options, options.weights, default_weights(options))
    part = chosen_part(options, model)
    shape = part.values.shape[:-1]
    if options.grid is not None:
        from .grids import parse_grid

        shape = parse_grid(options.grid, len(shape))
    samples = sample_on(model, part, device, options, shape)
    np.savez_compressed(files[1], samples=samples, coords=part.coords, sensors=part.sensors, truth=part.values)
    sparse = np.full_like(part.flat, np.nan)
    sparse[part.sensors] = part.flat[part.sensors]
    first = row([sparse.reshape(part.values.shape), part.values], part.values)
    rows = [row(list(samples[n : n + 8]), part.values) for n in range(0, len(samples), 8)]
    write_rows([first, *rows], files[0])
    if options.json:
        print_json({"part": part.name, "shape": list(samples.shape), "files": [str(f) for f in files]})
    else:
        print(f"{options.samples} samples of {part.name} on {'x'.join(map(str, shape))}: {', '.join(map(str, files))}")
    return 0


def chosen_part(options: SampleOptions, model: SparseField) -> Part:
    """Return the part that `sample` and `report` show."""
    from .evaluate import check_model

    parts = parts_of(options)
    check_model(model, parts, "--weights")
    if not 0 <= options.number < len(parts):
        raise ValueError(f"--number: must be from 0 to {len(parts) - 1}, got {options.number}; raise --count")
    return parts[options.number]


def sample_on(model: SparseField, part: Part, device: torch.device, options: SamplingOptions, shape: Any) -> Any:
    """Return samples of a part on a grid of any shape over its domain, (K, *shape, C)."""
    import torch

    from .data import cell_centres
    from .predict import sample_fields

    coords, values = (torch.from_numpy(x).to(device)[None] for x in part.observed)
    queries = torch.from_numpy(cell_centres(tuple(shape))).to(device)[None]
    samples = sample_fields(model, coords, values, queries, options.prediction())[0]
    return samples.float().cpu().numpy().reshape(options.samples, *shape, -1)


def info_command(options: InfoOptions) -> int:
    """Run `mamba-diffusion info`."""
    from .info import model_info

    names = [options.preset] if options.preset else [n for n in PRESETS if not n.startswith("tiny")]
    found = [model_info(name, options.sensors, options.queries) for name in names]
    if options.json:
        print_json(found[0] if options.preset else found)
        return 0
    print(f"one evaluation, {options.sensors} sensors, {options.queries} queries")
    print(f"{'preset':<14}{'parameters':>14}{'the seed says':>15}{'macs':>18}{'scan_ops':>16}{'weights MB':>12}")
    for x in found:
        claim = f"{x['seed_claims']:,}" if "seed_claims" in x else ""
        sizes = f"{x['macs']:>18,}{x['scan_ops']:>16,}{x['weights_bytes'] / 1e6:>12.1f}"
        print(f"{x['preset']:<14}{x['parameters']:>14,}{claim:>15}{sizes}")
    return 0


def benchmark_command(options: BenchmarkOptions) -> int:
    """Run `mamba-diffusion benchmark`."""
    from .benchmark import benchmark, crossover, draw, read_rows
    from .device import check_free
    from .grids import parse_grid

    check_free([f for f in (options.out, options.plot) if f is not None], overwrite=options.overwrite)
    if options.read is not None:
        result = read_rows([Path(name) for name in options.read.split(",")])
    else:
        result = benchmark(
            [options.preset] + ([options.against] if options.against else []),
            sensors=options.sensors,
            grids=[parse_grid(text, 2) for text in options.queries.split(",")],
            steps=options.steps,
            train=options.train,
            device=options.device,
            precision=options.precision,
            repeats=options.repeats,
        )
    if options.plot is not None:
        draw(result["rows"], options.plot)
    if options.against:
        result["crossover_queries"] = crossover(result["rows"], options.preset, options.against)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print_json(result)
        return 0
    first = result["rows"][0]
    what = "training step of 64 fields" if first["train"] else f"sample, {2 * result['steps']} evaluations"
    print(f"{what}, {first['sensors']} sensors, {first['precision']} on {result['environment'].get('GPU') or 'CPU'}")
    print(f"{'preset':<14}{'queries':>10}{'ms':>12}{'GB':>8}")
    for row in result["rows"]:
        ms = row.get("error", "")[:60] if row["ms"] is None else f"{row['ms']:.1f}"
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        print(f"{row['preset']:<14}{row['queries']:>10,}{ms:>12}{memory:>8}")
    if options.against:
        print(f"{options.preset} is the faster one from {result['crossover_queries']} queries on")
    return 0


def export_command(weights: str | None, options: ExportOptions) -> int:
    """Run `mamba-diffusion export`."""
    from .device import check_free
    from .export import export_half, export_onnx, export_program
    from .weights import load_model

    if weights is None:
        raise ValueError("no weights given; name a run, its model/ folder or shipped weights")
    files = [options.out / n for n in ("config.json", "model.safetensors")]
    suffix = "onnx" if options.format == "onnx" else "pt2"
    target = options.out if options.out.suffix else options.out / f"velocity.{suffix}"
    check_free(files if options.format == "half" else [target], overwrite=options.overwrite)
    model = load_model(weights)
    if options.format == "half":
        written = export_half(model, options.out)
        print(", ".join(f"{f} ({f.stat().st_size / 1e6:.2f} MB)" for f in written))
        return 0
    write = export_onnx if options.format == "onnx" else export_program
    names = write(model, options.sensors, options.queries, target)
    print(f"{target}: inputs {', '.join(names)}")
    return 0


def print_json(value: Any) -> None:
    """Print JSON; infinity and NaN become null."""
    from .evaluate import finite

    json.dump(finite(value), sys.stdout, indent=2, default=str)
    print()
