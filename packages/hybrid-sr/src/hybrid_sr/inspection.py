"""The verbs `lam` and `norms`: which networks, on which picture, and where the results go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import PRESETS
from .images import read_picture
from .samples import find_sample
from .tool_arguments import LamOptions, LookOptions, NormsOptions

if TYPE_CHECKING:
    from .model import HybridSR


@dataclass(frozen=True)
class Scene:
    """What the networks see.

    Attributes:
        name: For files.
        lr: Their input, (h, w, 3) uint8.
        original: What their result should be, or the input with repeated pixels, (s * h, s * w, 3) uint8.
        offset: Left column and upper row of `original` in the user's picture.
    """

    name: str
    lr: NDArray[np.uint8]
    original: NDArray[np.uint8]
    offset: tuple[int, int]


def lam_command(image: str | None, options: LamOptions) -> int:
    """Run `hybrid-sr lam`."""
    from .lam import attribute
    from .maps import draw_attributions
    from .progress import Progress

    picture, name = _picture(image, options)
    place = options.place() or _middle(picture, options)
    scene = make_scene(picture, name, options, around=place)
    at = (place[0] - scene.offset[0], place[1] - scene.offset[1])
    png, file = _targets(scene, "lam", options)
    found, rows = [], []
    for label, model in load_models(options):
        with Progress(label, unit="point") as progress:
            seen = attribute(
                model,
                scene.lr,
                at,
                scale=options.scale,
                window=options.window,
                fold=options.points,
                progress=progress,
            )
        found.append((label, _result(model, scene), seen))
        rows.append(
            {
                "model": label,
                "parameters": sum(p.numel() for p in model.parameters()),
                "diffusion_index": seen.diffusion_index,
                **{f"cross_{key}": value if isfinite(value) else None for key, value in seen.cross().items()},
                "change": seen.change,
                "explained": seen.explained,
            }
        )
    png.parent.mkdir(parents=True, exist_ok=True)
    draw_attributions(scene.original, found, png)
    result = {
        "picture": name,
        "at": list(place),
        "window": options.window,
        "points": options.points,
        "scale": options.scale,
        "models": rows,
    }
    _write(file, result)
    if options.json:
        print(json.dumps({**result, "files": [str(png), str(file)]}, indent=2))
        return 0
    print(f"{'network':<36}{'diffusion index':>17}{'arms/elsewhere':>16}{'within 8 px':>13}")
    for label, _, seen in found:
        cross = seen.cross()
        near = f"{100 * cross['near']:.1f} %"
        print(f"{label:<36}{seen.diffusion_index:>17.2f}{cross['ratio']:>16.2f}{near:>13}")
    print(f"\nLook at {png}")
    return 0


def norms_command(image: str | None, options: NormsOptions) -> int:
    """Run `hybrid-sr norms`."""
    from .maps import draw_norms
    from .norms import feature_norms

    picture, name = _picture(image, options)
    scene = make_scene(picture, name, options, around=_middle(picture, options))
    png, file = _targets(scene, "norms", options)
    found = [(label, feature_norms(model, scene.lr)) for label, model in load_models(options)]
    png.parent.mkdir(parents=True, exist_ok=True)
    draw_norms(found, png)
    rows = [{"model": label, "places": [norm.figures() for norm in norms]} for label, norms in found]
    result = {"picture": name, "scale": options.scale, "models": rows}
    _write(file, result)
    if options.json:
        print(json.dumps({**result, "files": [str(png), str(file)]}, indent=2))
        return 0
    for label, norms in found:
        print(f"{label}\n{'':2}{'after':<16}{'max':>12}{'median':>12}{'max/median':>12}")
        for norm in norms:
            row = norm.figures()
            print(f"{'':2}{norm.name:<16}{row['max']:>12.4g}{row['median']:>12.4g}{row['max_over_median']:>12.2f}")
    print(f"\nLook at {png}")
    return 0


def load_models(options: LookOptions) -> list[tuple[str, HybridSR]]:
    """Load the networks that `--models` names, each with a label.

    Raises:
        ValueError: One of them cannot be loaded.
    """
    from .upscaling import pick_device
    from .weights import load_model

    device = pick_device(options.device)
    if options.models is None:
        model = load_model(scale=options.scale, device=device)
        return [(label_of(model, None), model)]
    loaded = []
    for entry in (part.strip() for part in options.models.split(",")):
        shipped = entry in PRESETS and not Path(entry).exists()
        model = load_model(
            None if shipped else entry, preset=entry if shipped else None, scale=options.scale, device=device
        )
        loaded.append((label_of(model, None if shipped else Path(entry)), model))
    return loaded


def label_of(model: HybridSR, path: Path | None) -> str:
    """Name a network: by its preset, and by its run's folder if it has one."""
    scale = model.config.scale
    known = next((name for name, make in PRESETS.items() if make(scale) == model.config), "custom")
    if path is None:
        return known
    folder = path.resolve()
    run = folder.parent.name if folder.name == "model" else folder.stem
    return run if run.startswith(known) else f"{known} ({run})"


def make_scene(picture: NDArray[np.uint8], name: str, options: LookOptions, *, around: tuple[int, int]) -> Scene:
    """Cut the part around a place and make the networks' input from it.

    Args:
        picture: (H, W, 3) uint8.
        name: Of it.
        options: Scale, size, and whether the picture is itself the input.
        around: X, Y in pixels of the original; of the result if the picture is the input.

    Raises:
        ValueError: The place lies outside.
    """
    scale = options.scale
    factor = scale if options.input else 1
    height, width = (n * factor // scale * scale for n in picture.shape[:2])
    if not (0 <= around[0] < width and 0 <= around[1] < height):
        raise ValueError(f"--at: must lie inside {width}x{height} pixels, got {around[0]},{around[1]}")
    size = (height, width) if options.size == "full" else (min(options.size, height), min(options.size, width))
    tall, wide = (n // scale * scale for n in size)
    left, upper = (
        min(max(0, place - side // 2), full - side) // scale * scale
        for place, side, full in ((around[0], wide, width), (around[1], tall, height))
    )
    if options.input:
        lr = picture[upper // scale : (upper + tall) // scale, left // scale : (left + wide) // scale]
        original = lr.repeat(scale, 0).repeat(scale, 1)
    else:
        original = picture[upper : upper + tall, left : left + wide]
        lr = reduce_picture(original, scale)
    return Scene(name, np.ascontiguousarray(lr), np.ascontiguousarray(original), (left, upper))


def reduce_picture(original: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Make the input as the authors of the method do, by Pillow's bicubic: (s * h, s * w, 3) -> (h, w, 3)."""
    from PIL import Image

    size = (original.shape[1] // scale, original.shape[0] // scale)
    return np.array(Image.fromarray(original).resize(size, Image.Resampling.BICUBIC))


def _picture(image: str | None, options: LookOptions) -> tuple[NDArray[np.uint8], str]:
    if (image is None) == (options.sample is None):
        raise ValueError("give one picture, or --sample coffee")
    if options.sample is not None:
        sample = find_sample(options.sample)
        return sample.read(), sample.name
    assert image is not None
    return read_picture(image).rgb8(), Path(image).stem


def _middle(picture: NDArray[np.uint8], options: LookOptions) -> tuple[int, int]:
    factor = options.scale if options.input else 1
    return picture.shape[1] * factor // 2, picture.shape[0] * factor // 2


def _targets(scene: Scene, verb: str, options: LookOptions) -> tuple[Path, Path]:
    """Return where the PNG and the JSON go, refusing to replace any."""
    files = options.out / f"{scene.name}_{verb}.png", options.out / f"{scene.name}_{verb}.json"
    for file in files:
        if file.exists() and not options.overwrite:
            raise ValueError(f"{file}: exists; add --overwrite to replace it, or choose another --out")
    return files


def _result(model: HybridSR, scene: Scene) -> NDArray[np.uint8]:
    from .validation import upscale

    return upscale(model, scene.lr, next(model.parameters()).device)


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
