"""What the verbs do once their options are read: run, print for a person or as JSON, return an exit code.

torch is imported when a network is needed, so that mistakes in names of files answer at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import (
    BenchmarkOptions,
    ClassifyOptions,
    EvaluateOptions,
    ExportOptions,
    InfoOptions,
    PruneOptions,
    ReportOptions,
    StudyOptions,
)
from .config import ModelConfig
from .presets import PRESETS, preset

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .models import Network


def classify_command(pictures: list[str], options: ClassifyOptions) -> int:
    """Run `vim-compress classify`."""
    if not pictures:
        raise ValueError("no picture given; name picture files, as in: vim-compress classify cat.png")
    files = [Path(name) for name in pictures]
    missing = [file for file in files if not file.is_file()]
    if missing:
        what = "a folder; name the pictures in it" if missing[0].is_dir() else "no such file; check the path"
        raise ValueError(f"{missing[0]}: {what}")
    from .benchmark import pick_device
    from .classify import class_names, classify, read_classes
    from .weights import load_model

    given = () if options.classes is None else read_classes(options.classes)
    model = load_model(options.weights, preset=options.preset, device=pick_device(options.device))
    names = class_names(model, given)
    domain = model.config.domain or "pictures that its weights do not name"
    found = {str(file): classify(model, file, names, options.best) for file in files}
    if options.json:
        guesses = {file: [vars(g) for g in list_] for file, list_ in found.items()}
        _print_json({"trained_on": domain, "classes": list(names), "pictures": guesses})
        return 0
    for file, guesses in found.items():
        print(file)
        for guess in guesses:
            print(f"  {100 * guess.probability:5.1f} %  {guess.label}")
    print(f"\ntrained on {domain}; its {len(names)} classes: {_shortened(names)}")
    return 0


def evaluate_command(options: EvaluateOptions) -> int:
    """Run `vim-compress evaluate`."""
    from .benchmark import pick_device
    from .data import named
    from .masks import apply_masks, load_masks, sparsity_of
    from .sources import read_part
    from .validation import Held, accuracy, outputs
    from .weights import load_model

    device = pick_device(options.device)
    model = load_model(options.weights, preset=options.preset, device=device)
    result: dict[str, Any] = {"weights": str(options.weights or "shipped"), "data": options.data or "emoji"}
    if options.masks is not None:
        masks = load_masks(options.masks)
        apply_masks(model, masks)
        result["sparsity"] = sparsity_of(masks)
    held = read_part(options.data, max(model.config.image), "held")
    pictures = held or read_part(options.data, max(model.config.image), "train")
    assert pictures is not None  # "train" is always there
    named(model.config, pictures.classes, pictures.domain)
    network: Callable[[Tensor], Tensor] = model
    if options.quantize != "none":
        from .quantize import in_half, quantize

        if options.quantize in ("fp8", "2:4"):  # whose kernels take bfloat16
            network = in_half(model)
        result |= {"quantize": options.quantize, "quantized_layers": quantize(model, options.quantize)}
    if options.merge:
        network = _merging(model, options)
        result["merge"] = options.merge
    logits, labels = outputs(network, Held(pictures, model.config), device)
    right = logits.argmax(-1) == labels
    found = [(name, right[labels == i]) for i, name in enumerate(pictures.classes) if (labels == i).any()]
    each = {name: round(100 * good.double().mean().item(), 2) for name, good in found}
    result |= {"pictures": len(labels), "held_out": bool(held)}
    result |= {"top1": accuracy(logits, labels), "top5": accuracy(logits, labels, 5), "per_class": each}
    if options.json:
        _print_json(result)
        return 0
    which = "held-out pictures" if held else "pictures, of which none is held out"
    print(f"{result['top1']:.2f} % of {len(labels)} {which} ({result['top5']:.2f} % among the best five)")
    for name, value in each.items():
        print(f"  {value:6.2f} %  {name}")
    return 0


def _merging(model: Network, options: EvaluateOptions) -> Callable[[Tensor], Tensor]:
    """Return the network with tokens merged after some blocks."""
    from .merge import merged_forward
    from .vim import VisionMamba

    if not isinstance(model, VisionMamba):
        raise ValueError("--merge: only a Vim has a sequence of tokens to merge, got another network; leave it out")
    text = options.merge_layers
    if text is not None and not all(item.isdigit() for item in text.split(",")):
        raise ValueError(f"--merge-layers: must be numbers of blocks, as 2,5,8, got {text}")
    layers = range(2, len(model.layers), 3) if text is None else [int(item) for item in text.split(",")]
    dtype = next(model.patch_embed.parameters()).dtype  # bfloat16 where the network is quantised to fp8 or 2:4
    return lambda x: merged_forward(model, x.to(dtype), layers=list(layers), share=options.merge)


def prune_command(options: PruneOptions) -> int:
    """Run `vim-compress prune`."""
    from .cost import parse_target
    from .prune import check_out

    target = parse_target(options.target)
    if options.out is None:
        raise ValueError("--out: is missing; give a new folder for the smaller network")
    check_out(options.out, overwrite=options.overwrite)
    from .benchmark import pick_device
    from .prune import Measure, prune_to, report, save_cut, taylor_batches
    from .weights import load_model

    device = pick_device(options.device)
    model = load_model(options.weights, preset=options.preset, device=device)
    batches = None
    if options.importance == "taylor":
        batches = taylor_batches(options.data, model.config, options.batches, device)
    how = Measure(batch=options.batch, device=options.device, precision=options.precision, repeats=options.repeats)
    small, plan = prune_to(
        model,
        target,
        kinds=None if options.axes is None else tuple(options.axes.split(",")),
        by=options.importance,
        spread=options.spread,
        multiple=options.multiple,
        batches=batches,
        how=how,
    )
    result = report(model, small, plan, target)
    save_cut(small, options.out, overwrite=options.overwrite)
    if options.json:
        _print_json(result)
        return 0
    print(f"{target.quantity}: {target.text(plan.before)} -> {target.text(plan.cost)} ({result['ratio']:.2f}x)")
    parameters, macs = result["parameters"], result["total_macs"]
    print(f"parameters: {parameters[0]:,} -> {parameters[1]:,}; multiply-adds: {macs[0]:,} -> {macs[1]:,}")
    print(
        f"saved {options.out}; recover its accuracy with: vim-compress train PRESET --from {options.out} --teacher ..."
    )
    return 0


def study_command(options: StudyOptions) -> int:
    """Run `vim-compress study`."""
    from .recipes import recipe
    from .rows import jobs

    if options.rows == "list":
        print("\n".join(job.name for job in jobs()))
        return 0
    if options.out is None:
        raise ValueError("--out: is missing; give the folder of the study")
    base = recipe(options.recipe)
    settings = {
        "recipe": options.recipe,
        "data": options.data or base.data,
        "steps": options.steps,
        "global_batch": options.global_batch,
        "workers": options.workers,
    }
    from .study import run_study, table

    names = options.rows.split(",") if options.rows else []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    result = run_study(
        options.out, settings, names=names, seeds=seeds, parallel=options.jobs, minutes=options.max_minutes
    )
    if options.json:
        _print_json(result)
    else:
        print(table(result["rows"]))
    if result["failed"]:
        raise ValueError(
            f"{len(result['failed'])} rows failed: {', '.join(result['failed'][:5])}; the same command goes on"
        )
    return 0


def export_command(options: ExportOptions) -> int:
    """Run `vim-compress export`."""
    if options.out is None:
        raise ValueError("--out: is missing; give a file ending in .onnx, .pt2 or .safetensors")
    _check_file(options.out, overwrite=options.overwrite)
    from .export import export, export_half
    from .weights import load_model

    model = load_model(options.weights, preset=options.preset)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix:
        export(model, options.out, batch=options.batch)
        size = options.out.stat().st_size
    else:
        export_half(model, options.out)
        size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"saved {options.out}, {size / 1e6:.2f} MB")
    return 0


def _check_file(out: Path | None, *, overwrite: bool) -> None:
    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"--out: {out} exists; choose another name, or add --overwrite")


def report_command(options: ReportOptions) -> int:
    """Run `vim-compress report`."""
    if options.run is None or not Path(options.run).is_dir():
        raise ValueError(f"run: must be the folder of a run or a study, got {options.run}; check the path")
    folder = Path(options.run)
    out = options.out or folder / "report.html"
    _check_file(out, overwrite=options.overwrite)
    from .report import write_report

    write_report(folder, out)
    print(f"saved {out}")
    return 0


def info_command(options: InfoOptions) -> int:
    """Run `vim-compress info`."""
    from .info import model_info

    size = (options.height, options.width or options.height) if options.height else None
    result = {"network": options.network} | model_info(find_config(options.network), size)
    if options.json:
        _print_json(result)
        return 0
    print(options.network)
    height, width = result["image"]
    print(f"  parameters  {result['parameters']:>16,}")
    print(f"  macs        {result['macs']:>16,}   multiply-adds, picture of {width}x{height}")
    print(f"  scan_macs   {result['scan_macs']:>16,}   of the scans")
    print(f"  total_macs  {result['total_macs']:>16,}")
    return 0


def find_config(network: str) -> ModelConfig:
    """Return the configuration of a preset, a saved folder, or weights that ship.

    Raises:
        ValueError: It is none of these; the nearest presets are named.
    """
    if network in PRESETS:
        return preset(network)
    from .weights import read_config, shipped, shipped_models

    if Path(network).is_dir():
        return read_config(Path(network))
    return read_config(shipped(network)) if network in shipped_models() else preset(network)


def benchmark_command(options: BenchmarkOptions) -> int:
    """Run `vim-compress benchmark`."""
    from .benchmark import compare

    _check_file(options.out, overwrite=options.overwrite)
    names = options.network.split(",")
    models = [entry for name in names for entry in _makers(name, options)]
    asked = [f"--{option}" for option in ("keep", "attention", "mixer") if getattr(options, option)]
    if asked and len(models) == len(names):
        kinds = "--keep is for a Vim, --attention for a MambaVision, --mixer for either"
        raise ValueError(f"{', '.join(asked)}: {options.network} has no such versions; {kinds}")
    sizes = parse_sizes(options.sizes, options.batch, names[0])
    result = compare(
        models,
        sizes=sizes,
        channels=find_config(names[0]).channels if is_ours(names[0]) else 3,
        device=options.device,
        precision=options.precision,
        repeats=options.repeats,
        modes=options.modes.split(","),
    )
    errors = [row["error"] for row in result["rows"] if "error" in row]
    if len(errors) == len(result["rows"]):
        raise ValueError(errors[0])
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(_finite(result), indent=1) + "\n")
    if options.json:
        _print_json(result)
        return 0
    where = result["environment"].get("GPU") or result["environment"]["cpu"]
    print(f"{options.precision} on {where}")
    print(f"{'network':<40}{'pixels':>12}{'batch':>7}{'mode':>10}{'ms':>10}{'images/s':>11}{'GB':>8}")
    for row in result["rows"]:
        start = (
            f"{row['model']:<40}{row['image'][1]}x{row['image'][0]:<6}".ljust(52)
            + f"{row['batch']:>7}{row['mode']:>10}"
        )
        if "error" in row:
            print(f"{start}  {row['error']}")
            continue
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        print(f"{start}{row['ms']:>10.2f}{row['images_per_s']:>11.1f}{memory:>8}")
    return 0


def is_ours(network: str) -> bool:
    """Say whether a name is a preset, a saved folder, or weights that ship."""
    from .weights import shipped_models

    return network in PRESETS or Path(network).is_dir() or network in shipped_models()


def _makers(name: str, options: BenchmarkOptions) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Return the networks that a name stands for: itself, and the other versions of it that are asked for."""
    from dataclasses import replace

    from .config import MambaVisionConfig, VimConfig
    from .models import make_network

    if not is_ours(name):
        import timm

        if timm.is_model(name):
            return [(name, lambda: timm.create_model(name))]
    config = find_config(name)
    found: list[tuple[str, Callable[[], nn.Module]]] = [(name, lambda: make_network(config))]
    keep = options.keep
    if keep and isinstance(config, VimConfig):
        widths = {f"layers.{i}.inner": max(16, round(keep * config.inner(i) / 16) * 16) for i in range(config.depth)}
        cut_config = replace(config, widths={**config.widths, **widths})
        found.append((f"{name} cut to {keep:g}", lambda: make_network(cut_config)))

        def masked() -> nn.Module:
            from .cut import mask

            model = make_network(config)
            mask(model, {axis: range(width) for axis, width in widths.items()})
            return model

        found.append((f"{name} masked to {keep:g}", masked))
    if options.attention and isinstance(config, MambaVisionConfig):
        for kind in options.attention.split(","):
            other = replace(config, attention=kind)  # pyright: ignore[reportArgumentType]
            found.append((f"{name} {kind}", partial(make_network, other)))
    if options.mixer and isinstance(config, VimConfig | MambaVisionConfig):
        for kind in options.mixer.split(","):
            other = replace(config, mixer=kind)  # pyright: ignore[reportArgumentType]
            found.append((f"{name} {kind}", partial(make_network, other)))
    return found


def parse_sizes(text: str | None, batch: int, first: str) -> list[tuple[tuple[int, int], int]]:
    """Read sizes such as 224:256,1248:8.

    Raises:
        ValueError: It is not such a list.
    """
    if text is None:
        return [(find_config(first).image if is_ours(first) else (224, 224), batch)]
    found = []
    for item in text.split(","):
        side, _, count = item.partition(":")
        if not side.isdigit() or (count and not count.isdigit()) or int(side) < 1 or count == "0":
            raise ValueError(f"--sizes: must be sides, each with a batch if wanted, as 224:256,1248:8, got {text}")
        found.append(((int(side), int(side)), int(count) if count else batch))
    return found


def _shortened(names: tuple[str, ...], most: int = 12) -> str:
    more = f", ... and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
